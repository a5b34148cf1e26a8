"""Configurations: the released files there and back, types of slots, presets and their sizes."""

import json
import math
import shutil
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import pytest

from converters.checkpoint import PARTS
from experiments.ablations.arms import ARMS
from internvlu_jax.config import (
    SLOTS,
    CheckpointWarning,
    ConfigError,
    GenerationImageProcessorConfig,
    HeadConfig,
    ImageProcessorConfig,
    InternVLUConfig,
    VisionConfig,
)
from internvlu_jax.config_files import CONFIG_FILES, check_released, check_types, read_config, write_config
from internvlu_jax.models.internvlu import param_shapes
from internvlu_jax.presets import PRESETS
from internvlu_jax.utils.tree import paths


def test_files_come_back_unchanged(golden, tmp_path):
    write_config(read_config(golden.checkpoint), tmp_path, golden.checkpoint)
    for name in CONFIG_FILES:
        assert (tmp_path / name).read_bytes() == (golden.checkpoint / name).read_bytes()


def test_config_without_originals_is_written_complete(golden, tmp_path):
    cfg = read_config(golden.checkpoint)
    write_config(cfg, tmp_path)
    assert read_config(tmp_path) == cfg


def changed(cfg: InternVLUConfig, file: str) -> InternVLUConfig:
    """`cfg` with another value that stands in `file`, and that changes no shape of a parameter."""
    llm, head, vae, pictures = cfg.vlm.llm_config, cfg.generation_decoder, cfg.vae, cfg.processor.image_processor_kwargs
    changes: dict[str, Any] = {
        "vlm/config.json": {"vlm": replace(cfg.vlm, llm_config=replace(llm, rms_norm_eps=1e-3))},
        "generation_decoder/config.json": {"generation_decoder": replace(head, max_sequence_length=9)},
        "vae/config.json": {"vae": replace(vae, latents_mean=(0.0,) * vae.z_dim)},
        "scheduler/scheduler_config.json": {"generation_decoder": replace(head, flow_shift=9.0)},
        "processor/processor_config.json": {
            "processor": replace(cfg.processor, image_processor_kwargs=replace(pictures, image_std=(1.0, 1.0, 1.0)))
        },
    }
    return replace(cfg, **changes[file])


@pytest.mark.parametrize("file", CONFIG_FILES)
def test_a_changed_config_is_written_and_the_other_files_stay(golden, tmp_path, file):
    """The head's shift stands in two files."""
    cfg = changed(read_config(golden.checkpoint), file)
    write_config(cfg, tmp_path, golden.checkpoint)
    assert read_config(tmp_path) == cfg != read_config(golden.checkpoint)
    written = {f for f in CONFIG_FILES if (tmp_path / f).read_bytes() != (golden.checkpoint / f).read_bytes()}
    assert written == {file} | ({"generation_decoder/config.json"} if file.startswith("scheduler") else set())
    shift = json.loads((tmp_path / "scheduler/scheduler_config.json").read_text())["flow_shift"]
    assert shift == cfg.generation_decoder.flow_shift


@dataclass(frozen=True)
class Colours(VisionConfig):
    """A vision slot that no released code knows."""

    model_type: ClassVar[str] = "colours"

    bins: int = 4

    def problems(self) -> list[str]:
        return [] if self.bins > 1 else ["bins must be over 1"]


def with_colours(cfg: InternVLUConfig, **fields: Any) -> InternVLUConfig:
    vision = Colours(**{**vars(cfg.vlm.vision_config), **fields})
    return replace(cfg, vlm=replace(cfg.vlm, vision_config=vision))


def test_a_changed_file_keeps_what_is_not_read_here(golden, tmp_path):
    """A larger table of tokens; but nothing that would make another model of it."""
    old = json.loads((golden.checkpoint / "vlm/config.json").read_text())
    cfg = read_config(golden.checkpoint)
    llm = replace(cfg.vlm.llm_config, vocab_size=cfg.vlm.llm_config.vocab_size + 4)
    larger = replace(cfg, vlm=replace(cfg.vlm, llm_config=llm))
    write_config(larger, tmp_path / "new", golden.checkpoint)
    new = json.loads((tmp_path / "new/vlm/config.json").read_text())
    assert read_config(tmp_path / "new") == larger
    assert old.keys() <= new.keys() and old["llm_config"].keys() <= new["llm_config"].keys()
    changed = {key for key in old["llm_config"] if old["llm_config"][key] != new["llm_config"][key]}
    assert changed == {"vocab_size"}
    shutil.copytree(golden.checkpoint, tmp_path / "kept")
    old["llm_config"]["rope_parameters"] = {"rope_theta": old["llm_config"]["rope_theta"]}
    (tmp_path / "kept/vlm/config.json").write_text(json.dumps(old))
    turned = replace(cfg.vlm.llm_config, rope_theta=cfg.vlm.llm_config.rope_theta * 2)
    other = replace(cfg, vlm=replace(cfg.vlm, llm_config=turned))
    write_config(other, tmp_path / "b", tmp_path / "kept")
    assert read_config(tmp_path / "b") == other


def test_a_slot_holds_the_type_that_its_file_names(golden, tmp_path, monkeypatch):
    monkeypatch.setitem(SLOTS["vision_config"], "colours", Colours)
    cfg = with_colours(read_config(golden.checkpoint), bins=7)
    write_config(cfg, tmp_path, golden.checkpoint)
    written = json.loads((tmp_path / "vlm/config.json").read_text())["vision_config"]
    assert written["model_type"] == "colours" and "qk_normalization" not in written
    again = read_config(tmp_path)
    assert again == cfg and type(again.vlm.vision_config) is Colours
    with pytest.raises(ConfigError, match="bins must be over 1"):
        with_colours(cfg, bins=1)


@pytest.mark.parametrize(
    ("file", "slot", "key", "known"),
    [
        ("vlm/config.json", "vision_config", "model_type", "intern_vit_6b"),
        ("vae/config.json", None, "_class_name", "AutoencoderKLQwenImage"),
        ("generation_decoder/config.json", None, "model_type", "internvlu_generation_decoder"),
    ],
)
def test_the_type_of_a_slot(golden, tmp_path, file, slot, key, known):
    """An absent name is the released type, and so is an unknown one, for the released code does not look at it.

    In our own layout, where no tensor is checked by name and shape, it is refused; the known ones are named.
    """
    shutil.copytree(golden.checkpoint, tmp_path / "c")
    data = json.loads((tmp_path / "c" / file).read_text())
    place = data[slot] if slot else data
    place.pop(key, None)
    (tmp_path / "c" / file).write_text(json.dumps(data))
    assert read_config(tmp_path / "c") == read_config(golden.checkpoint)
    place[key] = "stranger"
    (tmp_path / "c" / file).write_text(json.dumps(data))
    with pytest.warns(CheckpointWarning, match=f"{file}.*{key} is 'stranger'; expected one of '{known}'"):
        assert read_config(tmp_path / "c") == read_config(golden.checkpoint)
    with pytest.raises(ConfigError, match=f"{file}.*{key} is 'stranger'; expected one of '{known}'"):
        check_types(tmp_path / "c")


def test_sources_of_the_head(golden, tmp_path):
    """In the file unless the head gets both, as the released one does; it has no other way."""
    cfg = read_config(golden.checkpoint)
    head = tmp_path / "generation_decoder/config.json"
    for sources in ("both", "context", "latents"):
        chosen = replace(cfg, generation_decoder=replace(cfg.generation_decoder, sources=sources))
        write_config(chosen, tmp_path)
        assert ("sources" in json.loads(head.read_text())) == (sources != "both")
        assert read_config(tmp_path) == chosen
    with pytest.raises(ConfigError, match="sources is 'neither'; expected one of 'both', 'context', 'latents'"):
        replace(cfg, generation_decoder=HeadConfig(sources="neither"))


def test_parts_of_the_head_that_studies_leave_out(golden, tmp_path):
    """In the files where they are not as released; refused by name where the released code is to read them."""
    cfg = read_config(golden.checkpoint)
    write_config(cfg, tmp_path)
    file = tmp_path / "generation_decoder/config.json"
    names = {"positions", "gate", "context_norm"}
    assert not names & {*json.loads(file.read_text()), *json.loads(file.read_text())["decoder_config"]}
    head = cfg.generation_decoder
    dit = replace(head.decoder_config, gate=False, context_norm=False)
    changed = replace(cfg, generation_decoder=replace(head, positions="sequence", decoder_config=dit))
    write_config(changed, tmp_path)
    assert names <= {*json.loads(file.read_text()), *json.loads(file.read_text())["decoder_config"]}
    assert read_config(tmp_path) == changed
    said = "does not know " + " and ".join(
        f"generation_decoder with {part}" for part in ("positions 'sequence'", "gate False", "context_norm False")
    )
    with pytest.raises(ConfigError, match=said):
        check_released(changed)
    with pytest.raises(ConfigError, match="positions is 'learned'; expected one of 'msrope', 'sequence'"):
        replace(cfg, generation_decoder=replace(head, positions="learned"))


def test_what_the_released_code_does_not_know_is_named(golden):
    cfg = read_config(golden.checkpoint)
    check_released(cfg)
    cfg = replace(with_colours(cfg), generation_decoder=replace(cfg.generation_decoder, sources="latents"))
    with pytest.raises(
        ConfigError, match="vision_config of type colours and generation_decoder with sources 'latents'"
    ):
        check_released(cfg)


@pytest.mark.parametrize(
    ("arm", "file", "place", "key", "name"),
    [
        ("shared-latent", "vlm/config.json", "vision_config", "model_type", "latent_vit"),
        ("shared-semantic", "vae/config.json", None, "_class_name", "semantic_codec"),
    ],
)
def test_types_of_studies_come_back(tmp_path, arm, file, place, key, name):
    """With the configs that stand in them, of which a wrong value is refused as anywhere."""
    cfg = ARMS[arm].config
    write_config(cfg, tmp_path)
    data = json.loads((tmp_path / file).read_text())
    part = data[place] if place else data
    assert part[key] == name
    again = read_config(tmp_path)
    assert again == cfg and type(again.vlm.vision_config) is type(cfg.vlm.vision_config)
    assert type(again.vae) is type(cfg.vae)
    with pytest.raises(ConfigError, match=f"of type {name}; such a model is kept in the Orbax layout"):
        check_released(cfg)
    whole = json.dumps(data)
    part["patch_size"] = None  # only the released classes take null for their default
    (tmp_path / file).write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="patch_size is None; expected a value like"):
        read_config(tmp_path)
    data = json.loads(whole)
    part = data[place] if place else data
    inner = part["codec" if place else "encoder"]
    inner["num_attention_heads" if "num_attention_heads" in inner else "z_dim"] = 3
    (tmp_path / file).write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=r"vision codec: .* z_dim, 3|semantic codec: .* must divide by its 3 heads"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("arm", "name"),
    [("shared-latent", "latent_vit"), ("shared-semantic", "semantic_codec"), ("shared-discrete", "code_vision")],
)
def test_a_copied_encoder_reads_pixels_on_one_scale(arm, name):
    """The vision encoder and the autoencoder scale pixels by settings of their own; here they have to be equal."""
    cfg = ARMS[arm].config
    pictures = ImageProcessorConfig(cfg.processor.image_processor_kwargs.size)
    with pytest.raises(ConfigError, match=rf"{name} holds .* image_std \(\(0\.485, .* \(\(0\.5, 0\.5, 0\.5\), \(0\.5"):
        replace(cfg, processor=replace(cfg.processor, image_processor_kwargs=pictures))


def test_codes_are_read_and_predicted_of_one_codec():
    cfg = ARMS["shared-discrete"].config
    with pytest.raises(ConfigError, match="code_vision and code_head have a codec that is not the vae; expected"):
        replace(cfg, vae=replace(cfg.vae, levels=(4,) * 4))
    with pytest.raises(ConfigError, match=r"code head: z_dim 8 must be a multiple of the 3 levels"):
        replace(cfg, generation_decoder=replace(cfg.generation_decoder, codec=replace(cfg.vae, levels=(5, 5, 5))))


def test_widths_of_attention_heads():
    """The autoencoder's one attention is XLA's whatever is asked for."""
    assert InternVLUConfig().attention_widths == (64, 128, 128)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_come_back(preset, tmp_path):
    write_config(PRESETS[preset](), tmp_path)
    assert read_config(tmp_path) == PRESETS[preset]()


def test_released_sizes():
    """Millions of parameters as published; the autoencoder's with the temporal kernels that pictures never use."""
    cfg = InternVLUConfig()
    shapes = param_shapes(cfg)

    def millions(tree) -> float:
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) / 1e6

    sizes = {
        "vit": millions(shapes["vlm"]["vit"]),
        "projector": millions(shapes["vlm"]["projector"]),
        "llm": millions(shapes["vlm"]["llm"]),
        "head": millions(shapes["head"]),
    }
    assert {k: round(v, 1) for k, v in sizes.items()} == {
        "vit": 304.0,
        "projector": 12.6,
        "llm": 2031.7,
        "head": 1808.0,
    }
    leaves = paths(shapes["vae"])
    released = 0
    for row in PARTS["vae"].rows(cfg):
        shape = row.shape if hasattr(row, "shape") else row.released_shape(leaves[row.target].shape)
        released += math.prod(shape)
    assert round(released / 1e6, 1) == 126.9


def test_a_ratio_that_is_almost_a_third_is_a_third():
    assert GenerationImageProcessorConfig(gen_down_sample_ratio=0.33333334).factor == 24
