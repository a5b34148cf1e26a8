"""Bad input is a ValueError that names the value, raised before anything is computed."""

import io
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from internvlu_jax import InternVLUPipeline
from internvlu_jax.inference import programs
from internvlu_jax.inference.encoding import PromptEmbeds
from tests.conftest import GOLDENS

CHECKPOINT = GOLDENS / "base/checkpoint"
PICTURE = Image.new("RGB", (64, 48), "red")


@pytest.fixture(scope="module")
def loaded():
    return InternVLUPipeline.from_pretrained(CHECKPOINT)


@pytest.fixture
def pipe(loaded, monkeypatch):
    """A pipeline that must not compute."""

    def reached(*args, **kwargs):
        raise AssertionError("a computation was reached")

    for name in ("visual_tokens", "embed", "contexts", "encode", "condition", "draw", "draw_step", "decode"):
        monkeypatch.setattr(programs, name, reached)
    return loaded


def truncated() -> Image.Image:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "JPEG")
    return Image.open(io.BytesIO(buffer.getvalue()[:600]))


DRAW = {"generation_mode": "image"}


@pytest.mark.parametrize(
    ("prompt", "image", "kwargs", "message"),
    [
        ([], None, {}, "list of prompts is empty"),
        (None, None, {}, "NoneType"),
        (["a", 3], None, {}, "prompt 1 is a int"),
        (["a", "b"], [PICTURE], {}, r"2 prompt.*1 entries"),
        (["a", "b"], PICTURE, {}, "one picture for 2 prompts"),
        ("<image> and <image>", PICTURE, {}, r"2 <image> marks but 1 image"),
        ("a", None, {"generation_mode": "video"}, "'video'"),
        ("a", None, {**DRAW, "height": 15}, "height is 15"),
        ("a", None, {**DRAW, "width": 0}, "width is 0"),
        ("a", None, {**DRAW, "width": -64}, "width is -64"),
        ("a", None, {**DRAW, "height": 64.5}, r"height is 64\.5"),
        ("a", None, {**DRAW, "height": "64"}, "height is '64'"),
        ("a", None, {**DRAW, "height": True}, "height is True"),
        ("a", None, {**DRAW, "height": 100_000}, "height 100000.*16384 pixels"),
        ("a", None, {**DRAW, "num_inference_steps": 0}, "num_inference_steps is 0"),
        ("a", None, {**DRAW, "num_inference_steps": 2.0}, r"num_inference_steps is 2\.0"),
        ("a", None, {**DRAW, "num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ("a", None, {**DRAW, "all_cfg_scale": float("nan")}, "all_cfg_scale is nan"),
        ("a", None, {**DRAW, "part_cfg_scale": 1e39}, r"part_cfg_scale is 1e\+39; expected a finite number"),
        ("a", None, {**DRAW, "all_cfg_scale": 10**400}, "all_cfg_scale is 1000.*; expected a finite number"),
        ("a", None, {**DRAW, "flow_shift": 0}, "flow_shift is 0; expected a number over 0"),
        ("a", None, {**DRAW, "flow_shift": 1e9}, r"flow_shift is 1000000000\.0 with 20 steps, whose noise levels"),
        ("a", None, {**DRAW, "flow_shift": 1e-45}, "flow_shift is 1e-45 with 20 steps"),
        ("a", None, {**DRAW, "callback": 3}, "callback is 3"),
        ("a", None, {**DRAW, "seed": 1.5}, r"seed is 1\.5"),
        ("a", None, {**DRAW, "seed": 2**32}, "seed is 4294967296; expected a whole number from 0 to 4294967295"),
        ("a", None, {"seed": -1}, "seed is -1; expected a whole number from 0"),
        ("a", None, {**DRAW, "seed": 2**63}, "seed is 9223372036854775808; expected"),
        ("a", None, {"seed": True}, "seed is True; expected"),
        ("a", None, {**DRAW, "seed": [1, 2]}, "seed has 2 entries; expected one for all, or 1, one for each"),
        ("a", None, {**DRAW, "seed": [3, -1], "num_images_per_prompt": 2}, "seed 1 is -1; expected"),
        ("a", None, {**DRAW, "noise": "torch"}, "noise is 'torch'; expected one of 'torch-cpu', 'torch-cuda', 'jax'"),
        ("a", None, {**DRAW, "latents": np.zeros((1, 8, 9, 16), np.float32)}, r"\(1, 8, 9, 16\).*\(1, 8, 8, 16\)"),
        ("a", None, {**DRAW, "latents": np.zeros((1, 8, 8, 16), np.int32)}, "int32"),
        ("a", None, {**DRAW, "latents": np.full((1, 8, 8, 16), np.inf, np.float32)}, "not finite"),
        ("a", None, {"num_beams": 3, "do_sample": True}, "num_beams is 3 and do_sample"),
        ("a", None, {"num_beams": 0}, "num_beams is 0"),
        ("a", None, {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ("a", None, {"do_sample": True, "temperature": 0.0}, r"temperature is 0\.0"),
        ("a", None, {"do_sample": True, "temperature": 1e-31}, "temperature is 1e-31; expected a number from 1e-30 on"),
        ("a", None, {"do_sample": True, "temperature": 1e39}, r"temperature is 1e\+39; expected a number"),
        ("a", None, {"do_sample": True, "top_p": 1.5}, r"top_p is 1\.5"),
        ("a", None, {"do_sample": True, "top_k": 0}, "top_k is 0; expected at least 1"),
        ("a", None, {"stop_strings": ["a", ""]}, "stop_strings has ''; expected"),
        ("a", None, {"stop_strings": 3}, "stop_strings is 3; expected"),
        ("a", None, {"stop_strings": "a", "num_beams": 2}, "num_beams is 2 and stop_strings"),
        ("a", None, {"repetition_penalty": -1.0}, r"repetition_penalty is -1\.0"),
        ("a", None, {"repetition_penalty": 1e-40}, "repetition_penalty is 1e-40; expected a number from 1e-30 on"),
        ("a", PICTURE, {"max_tiles": 0}, "max_tiles is 0"),
        ("a <img>", None, {}, "<img>"),
        ("a", "photo.png", {}, "^photo.png: no such picture file"),
        ("a", [["photo.png"]], {}, "^photo.png: no such picture file"),
        ("a", [[b"photo.png"]], {}, "expected a PIL image, found bytes"),
        ("a", np.zeros((4, 4, 2), np.uint8), {}, r"an array of shape \(4, 4, 2\) and dtype uint8 is no picture"),
        ("a", np.full((40, 40, 3), 2.0), {}, r"dtype float64 is no picture; expected.* floats from 0 to 1"),
        ("a", [[truncated()]], {}, "truncated"),
        ("a", Image.new("RGB", (0, 4)), {}, "0 x 4"),
        ("a", Image.new("RGB", (3000, 10)), {}, "aspect ratio of 300"),
        ("a", Image.new("RGB", (12, 40)), DRAW, "12"),
    ],
)
def test_call(pipe, prompt, image, kwargs, message):
    with pytest.raises(ValueError, match=message):
        pipe(prompt, image, **kwargs)


SEEN = [0.9, 0.5]


def fake_torch_generator():
    """As torch's is called; torch is not imported."""
    return type("Generator", (), {"__module__": "torch._C"})()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"seed": 1, "generator": 1}, "seed and generator are given; expected one of them"),
        ({"all_cfg_scale": 2.0, "guidance_scale": 2.0}, "all_cfg_scale and guidance_scale are given"),
        ({"sigmas": SEEN, "timesteps": [900, 500]}, "sigmas and timesteps are given"),
        ({"sigmas": SEEN, "flow_shift": 3.0}, "sigmas and flow_shift are given"),
        ({"callback": print, "callback_on_step_end": print}, "callback and callback_on_step_end are given"),
        ({"generator": fake_torch_generator()}, r"generator is a torch\.Generator; expected an int, a JAX key"),
        ({"generator": np.random.default_rng(0)}, "generator is a Generator; expected an int"),
        ({"generator": [1, 2.5]}, "generator is a float; expected an int"),
        ({"generator": [1, 2]}, "seed has 2 entries; expected one for all, or 1"),
        ({"generator": jax.random.key(0), "noise": "torch-cpu"}, "noise is 'torch-cpu' and the generator is a JAX key"),
        ({"output_type": "pt"}, "output_type is 'pt'; expected one of 'pil', 'np', 'latent'"),
        ({"callback_on_step_end": 3}, "callback_on_step_end is 3; expected a function"),
        ({"sigmas": [0.5, 0.9]}, r"sigmas is \[0\.5, 0\.9\]; expected numbers that fall, from at most 1 "),
        ({"sigmas": [0.5, 0.0]}, "expected numbers that fall"),
        ({"sigmas": [0.5, 1e-46]}, "expected numbers that fall, from at most 1 to over 0, as float32 has them"),
        ({"sigmas": [1.0, 0.99999999, 0.5]}, "expected numbers that fall"),
        ({"timesteps": [500, 500 - 1e-6]}, "expected numbers that fall"),
        ({"sigmas": []}, r"sigmas is \[\]; expected"),
        ({"sigmas": ["a"]}, r"sigmas is \['a'\]; expected a list of numbers"),
        ({"timesteps": [1500, 10]}, r"timesteps is \[1500, 10\]; expected numbers that fall, from at most 1000"),
        ({"sigmas": SEEN, "num_inference_steps": 3}, "num_inference_steps is 3 and sigmas has 2 entries"),
        ({"negative_prompt": 3}, "negative_prompt is 3; expected a string"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt has 2 entries; expected one for all, or 1, one each"),
        ({"negative_prompt": "<img>"}, "<img>"),
        ({"generation_mode": "text", "negative_prompt": "a"}, "negative_prompt is given and generation_mode is 'text'"),
        ({"generation_mode": "text", "sigmas": np.array(SEEN)}, "sigmas is given and generation_mode is 'text'"),
        ({"generation_mode": "text", "output_type": "np"}, "output_type is given and generation_mode is 'text'"),
    ],
)
def test_arguments_as_diffusers_has_them(pipe, kwargs, message):
    with pytest.raises(ValueError, match=message):
        pipe("a", **{**DRAW, **kwargs})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"prompt": "a", **DRAW}, "prompt_embeds and prompt are given; expected it in the call of encode_prompt"),
        ({"image": PICTURE, **DRAW}, "prompt_embeds and image are given"),
        ({"negative_prompt": "a", **DRAW}, "prompt_embeds and negative_prompt are given"),
        ({"max_tiles": 2, **DRAW}, "prompt_embeds and max_tiles are given"),
        ({}, "prompt_embeds is given and generation_mode is 'text'"),
        ({"generation_mode": "text_image"}, "generation_mode is 'text_image'; expected 'image'"),
    ],
)
def test_prompt_embeds_stand_alone(pipe, kwargs, message):
    with pytest.raises(ValueError, match=message):
        pipe(prompt_embeds=PromptEmbeds((), ()), **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"generation_mode": "image"}, "generation_mode is 'image', in which no text is written"),
        ({"num_beams": 2}, "num_beams is 2; a stream cannot show beams"),
        ({"prompt": ["a"]}, "the prompt is a list; a stream has one"),
    ],
)
def test_what_cannot_be_streamed(pipe, kwargs, message):
    with pytest.raises(ValueError, match=message):
        pipe.stream(**{"prompt": "a", **kwargs})


def test_prompt_embeds_of_another_kind(pipe):
    with pytest.raises(ValueError, match="prompt_embeds is a ndarray; expected what encode_prompt gives"):
        pipe(prompt_embeds=np.zeros((1, 7, 64)), **DRAW)


def test_unknown_arguments(pipe):
    for call in (pipe, pipe.stream):
        with pytest.raises(TypeError, match="'sede'"):
            call("a", sede=3)


USER = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], r"messages is \[\]; expected a list of"),
        ("a", "messages is 'a'; expected a list of"),
        ([3], r"messages\[0\]: it is a int without a role"),
        ([{"role": "user"}], r"messages\[0\]: content is a NoneType; expected a text or a list of parts"),
        ([{"role": "user", "content": " "}], r"messages\[0\]: it is empty"),
        ([USER, USER], r"messages\[1\]: role is 'user'; expected user and assistant in turn"),
        ([{"role": "tool", "content": "a"}], r"messages\[0\]: role is 'tool'"),
        ([USER, {"role": "assistant", "content": "a"}], "the last of the messages is not the user's"),
        ([USER, {"role": "assistant", "content": "<img>"}, USER], r"messages\[1\]: the answer holds <img>"),
        ([{"role": "system", "content": "<|im_end|>"}, USER], r"messages\[0\]: the system_prompt holds"),
        ([{"role": "user", "content": "<image>"}], r"messages\[0\]: the prompt has 1 <image> marks but 0"),
        ([{"role": "user", "content": [{"type": "audio"}]}], r"messages\[0\]: it has a part of type 'audio'"),
        (
            [USER, {"role": "assistant", "content": [{"type": "image", "image": PICTURE}]}, USER],
            r"messages\[1\]: it has a part of type 'image'",
        ),
        ([{"role": "user", "content": [{"type": "image", "image": "no.png"}]}], "^no.png: no such picture file"),
    ],
)
def test_messages(pipe, messages, message):
    with pytest.raises(ValueError, match=message):
        pipe.chat(messages)


def copy(tmp_path):
    return shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")


def test_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere"):
        InternVLUPipeline.from_pretrained(tmp_path / "nowhere")


def test_checkpoint_that_is_a_file(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model\.safetensors is a file"):
        InternVLUPipeline.from_pretrained(tmp_path / "model.safetensors")


def test_incomplete_checkpoint_names_everything_missing(tmp_path):
    root = copy(tmp_path)
    (root / "vae/diffusion_pytorch_model.safetensors").unlink()
    (root / "scheduler/scheduler_config.json").unlink()
    shutil.rmtree(root / "generation_decoder")
    with pytest.raises(ValueError) as error:
        InternVLUPipeline.from_pretrained(root)
    for name in ("vae", "scheduler_config.json", "generation_decoder"):
        assert name in str(error.value)


def test_checkpoint_without_a_tokenizer(tmp_path):
    root = copy(tmp_path)
    for name in ("tokenizer.json", "vocab.json"):
        (root / "processor" / name).unlink()
    with pytest.raises(ValueError, match="tokenizer"):
        InternVLUPipeline.from_pretrained(root)


def test_checkpoint_of_another_model(tmp_path):
    root = copy(tmp_path)
    config = json.loads((root / "vlm/config.json").read_text())
    config["llm_config"]["architectures"] = ["LlamaForCausalLM"]
    (root / "vlm/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"architectures is \['LlamaForCausalLM'\]"):
        InternVLUPipeline.from_pretrained(root)


def test_tensors_of_another_size(tmp_path):
    root = copy(tmp_path)
    shutil.copy(GOLDENS / "mlp/checkpoint/vlm/model.safetensors", root / "vlm/model.safetensors")
    with pytest.raises(ValueError) as error:
        InternVLUPipeline.from_pretrained(root)
    for problem in (
        "11 tensors not expected",
        "15 tensors missing",
        "class_embedding is (1, 1, 48), expected (1, 1, 32)",
    ):
        assert problem in str(error.value)


@pytest.mark.parametrize("options", [{"dtype": "int8"}, {"attention": "flash"}, {"attention": "cudnn"}])
def test_computation_that_cannot_run(options):
    with pytest.raises(ValueError, match=next(iter(options.values()))):
        InternVLUPipeline.from_pretrained(CHECKPOINT, **options)
