import jax
import jax.numpy as jnp
import numpy as np
import pytest

from converters.vlm import vlm_rules
from internvlu_jax.config import Compute
from internvlu_jax.models.vit import Block
from internvlu_jax.ops.patches import pixel_shuffle
from tests.conftest import sizes_only
from tests.helpers.measures import assert_close, channels_last
from tests.helpers.vlm import build, cast, layer_of, load, vlm_config

# Properties hold for any weights: one recorded model is enough.
one_model = pytest.mark.parametrize("golden", ["base"], indirect=True)


@pytest.fixture(scope="module")
def recorded(golden):
    """(config, parameters, pixels, recorded numbers)."""
    numbers = golden.component("vit")
    return vlm_config(golden), load(golden, "vit"), jnp.asarray(channels_last(numbers["pixel_values"])), numbers


@sizes_only
def test_encoder_equals_recorded(recorded):
    cfg, params, pixels, numbers = recorded
    vit, _ = build(cfg, "vit")
    assert_close(vit.apply({"params": params}, pixels, method="embed"), numbers["embeddings"], what="embeddings")
    assert_close(vit.apply({"params": params}, pixels), numbers["last"][:, 1:], what="last")


@sizes_only
def test_scan_equals_unrolled_and_first_layer_recorded(recorded):
    cfg, params, pixels, numbers = recorded
    vit, _ = build(cfg, "vit")
    x, block = vit.apply({"params": params}, pixels, method="embed"), jax.jit(Block(cfg.vision_config).apply)
    for i in range(cfg.vision_config.num_hidden_layers):
        x, _ = block({"params": layer_of(params["layers"], i)}, x)
        if i == 0:
            assert_close(x, numbers["layer1"], what="layer1")
    assert_close(vit.apply({"params": params}, pixels), x[:, 1:], 1e-6)
    assert_close(x, numbers["last"], what="class token too")


@sizes_only
def test_positions_are_interpolated_for_another_grid(golden, recorded):
    cfg, params, _, _ = recorded
    numbers = golden.component("vit_resized")
    pixels = jnp.asarray(channels_last(numbers["pixel_values"]))
    assert_close(build(cfg, "vit")[0].apply({"params": params}, pixels), numbers["last"][:, 1:])


@sizes_only
def test_projector_equals_recorded(golden, recorded):
    cfg, _, _, numbers = recorded
    side = cfg.vision_config.image_size // cfg.vision_config.patch_size
    patches = jnp.asarray(numbers["last"][:, 1:]).reshape(2, side, side, -1)
    tokens = pixel_shuffle(patches, cfg.shuffle).reshape(2, cfg.tokens_per_tile, -1)
    projected = build(cfg, "projector")[0].apply({"params": load(golden, "projector")}, tokens)
    assert_close(projected, numbers["projected"])


@one_model
def test_projector_norm_has_its_own_epsilon(golden, recorded):
    """Faint input: on the recorded one, an epsilon of 1e-6 would pass."""
    cfg, _, _, _ = recorded
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), load(golden, "projector"))
    x = 1e-3 * np.random.default_rng(0).standard_normal((1, 4, p["norm"]["scale"].size))
    hidden = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    hidden = (hidden * p["norm"]["scale"] + p["norm"]["bias"]) @ p["fc1"]["kernel"] + p["fc1"]["bias"]
    hidden = np.asarray(jax.nn.gelu(jnp.asarray(hidden, jnp.float32), approximate=False), np.float64)
    want = hidden @ p["fc2"]["kernel"] + p["fc2"]["bias"]
    projector, _ = build(cfg, "projector")
    assert_close(projector.apply({"params": load(golden, "projector")}, jnp.asarray(x, jnp.float32)), want)


@one_model
def test_encoder_norms_take_their_epsilon_from_the_config(recorded):
    """The recorded streams are too large for an epsilon of 1e-5 to show in them."""
    cfg, params, _, _ = recorded
    block = {"params": layer_of(params["layers"], 0)}
    x = 1e-3 * jax.random.normal(jax.random.key(0), (1, 4, cfg.vision_config.hidden_size))
    assert cfg.vision_config.layer_norm_eps == 1e-6
    _, state = Block(cfg.vision_config).apply(block, x, capture_intermediates=lambda m, _: m.name == "norm1")
    got = state["intermediates"]["norm1"]["__call__"][0]
    wide = np.asarray(x, np.float64)
    normed = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    norm1 = block["params"]["norm1"]
    assert_close(got, normed * np.asarray(norm1["scale"]) + np.asarray(norm1["bias"]))


@one_model
def test_picture_that_does_not_divide_is_refused(recorded):
    cfg, params, _, _ = recorded
    with pytest.raises(ValueError, match="does not divide into 14x14 patches"):
        build(cfg, "vit")[0].apply({"params": params}, jnp.zeros((1, 50, 56, 3)))


@one_model
@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_bfloat16_is_close_to_float32(recorded, param_dtype):
    cfg, params, pixels, _ = recorded
    want = build(cfg, "vit")[0].apply({"params": params}, pixels)
    got = build(cfg, "vit", Compute(dtype="bfloat16"))[0].apply({"params": cast(params, param_dtype)}, pixels)
    assert got.dtype == jnp.bfloat16
    assert_close(got.astype(jnp.float32), want, 2e-2)


@one_model
def test_rematerialisation_leaves_gradients_alone(recorded):
    cfg, params, pixels, _ = recorded

    def gradient(remat):
        vit, _ = build(cfg, "vit", Compute(remat=remat))
        return jax.jit(jax.grad(lambda p: jnp.sum(vit.apply({"params": p}, pixels[:1]) ** 2)))(params)

    want = gradient("none")
    assert all(np.linalg.norm(leaf) > 0 for leaf in jax.tree.leaves(want))
    for remat in ("dots", "full"):
        jax.tree.map(lambda a, b: assert_close(a, b, 2e-5), gradient(remat), want)


def test_every_released_tensor_has_one_row(golden):
    from safetensors import safe_open

    with safe_open(golden.checkpoint / "vlm/model.safetensors", "np") as file:
        released = sorted(file.keys())
    assert sorted(name for rule in vlm_rules(vlm_config(golden)) for name in rule.names()) == released
