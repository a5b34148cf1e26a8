"""Adapters in PEFT's layout: each update is where the released matrix has it, and what cannot be said is named."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from converters.adapters import Factors, export_adapter, linear_maps, read_adapter, trained_adapter
from converters.checkpoint import PARTS
from converters.engine import ConversionError, export
from internvlu_jax.checkpoints import loading
from internvlu_jax.checkpoints.adapters import joined, with_scale
from internvlu_jax.models import lora
from internvlu_jax.utils.tree import from_paths, paths
from tests.conftest import GOLDENS
from tests.helpers.adapters import DOWN2, LAST, O1, Q0, TO_Q, V1, factors, update, weights, write_adapter

CHECKPOINT = GOLDENS / "base/checkpoint"


@pytest.fixture(scope="module")
def base():
    return loading.load(CHECKPOINT)


@pytest.fixture(scope="module")
def matrices():
    return weights(CHECKPOINT)


def released(model, adapter) -> dict[str, np.ndarray]:
    """The matrices of a model with an adapter folded in, by released module."""
    leaves = paths(model.params)
    for path, (a, b) in adapter.items():
        leaves[f"{path}/kernel"] = lora.folded(leaves[f"{path}/kernel"], a, b)
    params = from_paths(leaves)
    tensors = {
        name: tensor
        for part in ("vlm", "head")
        for name, tensor in export(PARTS[part].rows(model.config), params[part]).items()
    }
    return {name.removesuffix(".weight"): tensor.read() for name, tensor in tensors.items()}


def test_every_map_gets_its_update(base, matrices, tmp_path):
    """All linear maps of both parts, those of stacks, of heads and of several vectors: W + alpha / r B A."""
    tensors = factors(matrices)
    got = released(base, read_adapter(write_adapter(tmp_path / "all", tensors), base.config))
    assert set(linear_maps(base.config)[0]) == set(matrices) and len(matrices) == 84
    for module, matrix in matrices.items():
        np.testing.assert_allclose(got[module], matrix + 2 * update(tensors, module), atol=1e-6, err_msg=module)


def test_ranks_and_scales_of_single_modules(base, matrices, tmp_path):
    """By hand: 3 / 2, but alpha 8 in layer 1's o, and rank 4 in layer 2's down; the first pattern counts."""
    chosen = {module: matrices[module] for module in (Q0, O1, DOWN2)}
    tensors = factors({m: chosen[m] for m in (Q0, O1)}) | factors({DOWN2: chosen[DOWN2]}, rank=4)
    folder = write_adapter(
        tmp_path / "a", tensors, lora_alpha=3, rank_pattern={"mlp.down_proj": 4},
        alpha_pattern={r"layers\.1\.self_attn\.o_proj": 8, ".*o_proj": 1000},
    )  # fmt: skip
    got = released(base, read_adapter(folder, base.config))
    for module, scale in {Q0: 3 / 2, O1: 8 / 2, DOWN2: 3 / 4}.items():
        np.testing.assert_allclose(got[module], chosen[module] + scale * update(tensors, module), atol=1e-6)
    np.testing.assert_array_equal(got[V1], matrices[V1])


def test_stabilised_ranks(base, matrices, tmp_path):
    tensors = factors({V1: matrices[V1]})
    got = released(base, read_adapter(write_adapter(tmp_path / "a", tensors, use_rslora=True), base.config))
    np.testing.assert_allclose(got[V1], matrices[V1] + 4 / np.sqrt(2) * update(tensors, V1), atol=1e-6)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (Q0, "base_model.model." + Q0.removeprefix("language_model.")),  # PEFT around the language model alone
        (Q0, Q0.replace("language_model.", "language_model.base_model.model.")),  # and as part of the whole
        (TO_Q, TO_Q.removeprefix("decoder.")),
        (TO_Q, f"base_model.model.{TO_Q}"),
    ],
)
def test_modules_within_a_part(base, matrices, tmp_path, module, name):
    whole = factors({module: matrices[module]})
    renamed = {key.replace(f"base_model.model.{module}", name): array for key, array in whole.items()}
    one, other = (read_adapter(write_adapter(tmp_path / n, t), base.config) for n, t in (("a", whole), ("b", renamed)))
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_array_equal(one[path].b, other[path].b)


def run_parameters(base, pattern=r"(vlm/llm|head)/.*/(q|out|down)|vlm/projector/fc1", rank=3):
    """What a run with adapters trains, B no longer zero."""
    import jax

    tree = paths(lora.add(base.params, pattern, rank, jax.random.key(0)))
    rng = np.random.default_rng(1)
    return from_paths({
        path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in tree.items() if "lora_" in path
    })  # fmt: skip


def test_there_and_back(base, tmp_path):
    """What a run trained comes back from the files as the run has it, and PEFT finds what it needs in them."""
    trained = run_parameters(base)
    export_adapter(tmp_path / "out", base.config, trained, alpha=6.0, base="ORG/NAME")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["generation_decoder", "vlm"]
    own, back = trained_adapter(trained, 6.0, base.config), read_adapter(tmp_path / "out", base.config)
    assert own.keys() == back.keys()
    for path in own:
        np.testing.assert_array_equal(own[path].a, back[path].a)
        np.testing.assert_array_equal(own[path].b, back[path].b)
    stored = json.loads((tmp_path / "out/vlm/adapter_config.json").read_text())
    tensors = load_file(tmp_path / "out/vlm/adapter_model.safetensors")
    assert (stored["r"], stored["lora_alpha"], stored["base_model_name_or_path"]) == (3, 6, "ORG/NAME")
    assert {f"base_model.model.{m}.lora_{s}.weight" for m in stored["target_modules"] for s in "AB"} == set(tensors)
    assert tensors[f"base_model.model.{Q0}.lora_A.weight"].shape == (3, 64)


def test_the_updates_of_a_run_are_those_that_merging_gives(base, tmp_path):
    trained = run_parameters(base)
    merged = lora.merge(from_paths(paths(base.params) | paths(trained)), 6.0 / 3)
    own = paths(base.params)
    for path, (a, b) in trained_adapter(trained, 6.0, base.config).items():
        folded = lora.folded(own[f"{path}/kernel"], a, b)
        np.testing.assert_allclose(folded, paths(merged)[f"{path}/kernel"], atol=1e-6)


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        (
            {"head/mmdit/latent_in/kernel": np.zeros((64, 48), np.float32)},
            "trained beside adapters: head/mmdit/latent_in",
        ),
        ({"vae/decoder/conv_in/lora_a": np.zeros(2), "vae/decoder/conv_in/lora_b": np.zeros(2)}, "vae/decoder/conv_in"),
    ],
)
def test_what_a_run_trained_besides_is_not_lost_without_a_word(base, tmp_path, beside, message):
    trained = from_paths(paths(run_parameters(base)) | beside)
    with pytest.raises(ConversionError, match=message):
        export_adapter(tmp_path / "out", base.config, trained, 6.0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "use_dora True"),
        ({"bias": "lora_only"}, "bias 'lora_only'"),
        ({"lora_bias": True}, "lora_bias True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save \['lm_head'\]"),
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4', which changes"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"invented_later": 0.5}, "invented_later 0.5"),
        ({"r": 3}, r"q_proj: lora_A is \(2, 64\), expected \(3, 64\)"),
        ({"r": "3"}, "the rank r is '3'"),
        ({"lora_alpha": None}, "alpha is None"),
        ({"rank_pattern": {"(": 3}}, "is damaged"),
    ],
)
def test_what_an_update_cannot_say_is_refused_by_name(base, matrices, tmp_path, settings, named):
    folder = write_adapter(tmp_path / "a", factors({Q0: matrices[Q0]}), **settings)
    with pytest.raises(ConversionError, match=named):
        read_adapter(folder, base.config)


def test_harmless_settings_are_taken(base, matrices, tmp_path):
    """As peft 0.21 writes them."""
    settings = {
        "alora_invocation_tokens": None, "arrow_config": None, "auto_mapping": {"base_model_class": "X"},
        "ensure_weight_tying": False, "exclude_modules": None, "fan_in_fan_out": False, "init_lora_weights": "gaussian",
        "layer_replication": None, "loftq_config": {}, "lora_bias": False, "lora_dropout": 0.1, "corda_config": None,
        "megatron_core": "megatron.core", "modules_to_save": None, "peft_version": "0.21.2",
        "target_modules": ["q_proj"], "qalora_group_size": 16, "target_parameters": None, "task_type": "CAUSAL_LM",
        "use_bdlora": None, "use_dora": False, "use_qalora": False,
    }  # fmt: skip
    folder = write_adapter(tmp_path / "a", factors({Q0: matrices[Q0]}), **settings)
    assert list(read_adapter(folder, base.config)) == ["vlm/llm/layers/attn/q"]


def test_all_that_is_wrong_comes_in_one_error(base, matrices, tmp_path):
    tensors = factors(
        {Q0: matrices[Q0], "language_model.model.layers.9.self_attn.q_proj": matrices[Q0], "made.up": matrices[V1]}
    )
    tensors |= {
        "base_model.model.language_model.lm_head.weight": matrices[V1],
        f"{LAST}.lora_magnitude_vector": matrices[V1],
    }
    del tensors[f"base_model.model.{Q0}.lora_B.weight"]
    with pytest.raises(ConversionError) as error:
        read_adapter(write_adapter(tmp_path / "a", tensors, use_dora=True), base.config)
    text = str(error.value)
    assert "2 targets that the model does not have as linear maps: language_model.model.layers.9" in text
    assert "made.up" in text and "2 tensors that are no factor of a linear map" in text and "lora_magnitude" in text
    assert "1 targets with one factor of two: " + Q0 in text and "use_dora True" in text


def test_damage_is_said(base, matrices, tmp_path):
    with pytest.raises(ConversionError, match="is no adapter: expected adapter_config"):
        read_adapter(tmp_path, base.config)
    tensors = factors({Q0: matrices[Q0]})
    tensors[f"base_model.model.{Q0}.lora_A.weight"][0, 0] = np.nan
    with pytest.raises(ConversionError, match="q_proj holds NaN"):
        read_adapter(write_adapter(tmp_path / "nan", tensors), base.config)
    folder = write_adapter(tmp_path / "pickle", tensors)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ConversionError, match="bin is a pickle"):
        read_adapter(folder, base.config)


def test_several_are_one_whose_update_is_their_sum():
    rng = np.random.default_rng(0)
    path = "vlm/llm/layers/attn/q"
    some = [Factors(rng.normal(size=(2, 5, r)).astype("f"), rng.normal(size=(2, r, 3, 4)).astype("f")) for r in (1, 3)]
    a, b = joined([({path: some[0]}, 0.5), ({path: some[1]}, -2.0)])[path]
    want = sum(s * np.einsum("lir,lrnh->linh", *own) for s, own in zip((0.5, -2.0), some, strict=True))
    np.testing.assert_allclose(np.einsum("lir,lrnh->linh", a, b), want, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("mine", ("mine", 1.0)), ("runs/mine:0.5", ("runs/mine", 0.5)), ("ORG/NAME:-1e-1", ("ORG/NAME", -0.1)),
        ("a:b", ("a:b", 1.0)), ("a:b:2", ("a:b", 2.0)), (":1", (":1", 1.0)),
    ],
)  # fmt: skip
def test_a_scale_in_the_shell(text, want):
    assert with_scale(text) == want


def test_a_scale_is_finite():
    with pytest.raises(ValueError, match="scale of an adapter is inf"):
        with_scale("mine:inf")
