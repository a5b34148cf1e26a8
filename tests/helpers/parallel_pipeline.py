"""What the pipeline gives on one device, on a mesh and under pmap: parts that `tests.helpers.parallel` runs."""

import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from PIL import Image

from internvlu_jax.inference.pipeline import InternVLUPipeline
from internvlu_jax.utils.tree import paths
from tests.helpers.adapters import DOWN2, LAST, Q0, TO_Q, factors, weights, write_adapter

CHECKPOINT = Path(__file__).parents[1] / "goldens/base/checkpoint"
PLACES = {"one": None, "mesh": "data=2,tensor=4", "pmap": "pmap"}


def thought(pipe: InternVLUPipeline, sources: Any = None) -> dict[str, np.ndarray]:
    """Words and then a picture for three prompts, which no number of devices divides."""
    prompts = ["a cat", "make it blue, and then red", "join them"]
    small = {"height": 32, "width": 48, "num_inference_steps": 2, "max_new_tokens": 6, "seed": 3}
    out = pipe(prompts, sources, "text_image", **small)
    return {"words": padded(out.tokens), "pictures": np.stack([np.asarray(picture) for picture in out.images])}


def with_sources(pipe: InternVLUPipeline) -> dict[str, np.ndarray]:
    """`thought` where two of the prompts have a source; words at random, and the best of two beams."""
    draw, prompts = np.random.default_rng(0), ["a cat", "Why is the sky", "two"]
    sources = [Image.fromarray(draw.integers(0, 256, (48, 64, 3), np.uint8)) for _ in range(2)]
    random = pipe(prompts, do_sample=True, temperature=1.5, top_p=0.9, max_new_tokens=6, seed=11)
    found = {"random": padded(random.tokens), "beams": padded(pipe(prompts, num_beams=2, max_new_tokens=6).tokens)}
    return found | thought(pipe, [None, *sources])


def held(pipe: InternVLUPipeline) -> np.ndarray:
    """The share of the parameters that the first device holds."""
    own = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(pipe.params))
    return np.array(own / sum(leaf.nbytes for leaf in jax.tree.leaves(pipe.parameters())))


def padded(rows: list[np.ndarray]) -> np.ndarray:
    return np.stack([np.pad(row, (0, 8 - len(row)), constant_values=-1) for row in rows])


def by_each(ask: Any) -> dict[str, np.ndarray]:
    """What a pipeline answers by one device, on a mesh and under pmap: {"mesh/words": ...}."""
    found = {}
    for name, devices in PLACES.items():
        pipe = InternVLUPipeline.from_pretrained(CHECKPOINT, devices=devices)
        found |= {f"{name}/{key}": value for key, value in {**ask(pipe), "held": held(pipe)}.items()}
    return found


def pipeline() -> dict[str, np.ndarray]:
    return by_each(thought)


def pipeline_with_sources() -> dict[str, np.ndarray]:
    return by_each(with_sources)


def pipeline_across() -> dict[str, np.ndarray]:
    """What both of two processes get, which make up the mesh."""
    return with_sources(InternVLUPipeline.from_pretrained(CHECKPOINT, devices=PLACES["mesh"]))


def conversed(pipe: InternVLUPipeline) -> dict[str, np.ndarray]:
    """Two turns, the second of which outgrows the cache; reasoning as a stream, and its picture; and latents of prompts
    read before, halved after each step."""
    source = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    shown = [{"type": "image", "image": source}, {"type": "text", "text": "what is this"}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": shown}]
    first = pipe.chat(messages, max_new_tokens=6, stop_strings="never")
    messages += [{"role": "assistant", "content": "No"}, {"role": "user", "content": "why " * 500}]
    second = pipe.chat(messages, max_new_tokens=6)
    small = {"height": 32, "width": 48, "num_inference_steps": 2}
    stream = pipe.stream("a cat", generation_mode="text_image", max_new_tokens=6, seed=3, do_sample=True, **small)
    pieces = "".join(stream)
    out = stream.result()
    assert out.text == [pieces]
    halved = pipe(
        prompt_embeds=pipe.encode_prompt(["a cat", "b", "c"], [None, source, None]), generation_mode="image",
        generator=jax.random.key(1), output_type="latent", **small,
        callback_on_step_end=lambda pipe, step, timestep, given: {"latents": given["latents"] * 0.5},
    )  # fmt: skip
    return {
        "words": padded([first.tokens, second.tokens, out.tokens[0]]),
        "read": np.array([first.read, second.read]),
        "picture": np.asarray(out.images[0]),
        "latents": halved.images,
    }


def conversation() -> dict[str, np.ndarray]:
    return by_each(conversed)


def conversation_across() -> dict[str, np.ndarray]:
    """What both of two processes get, which make up the mesh."""
    return conversed(InternVLUPipeline.from_pretrained(CHECKPOINT, devices=PLACES["mesh"]))


def kernels(pipe: InternVLUPipeline, folder: Path) -> dict[str, np.ndarray]:
    """Kernels with two adapters folded in, and once more after one of them is unloaded; they lie where they lay."""
    matrices = weights(CHECKPOINT)
    found, places = {}, [leaf.sharding for leaf in jax.tree.leaves(pipe.params)]
    for name, own in (("first", (Q0, TO_Q)), ("second", (Q0, DOWN2, LAST))):
        if not (folder / name).exists():
            write_adapter(folder / name, factors({module: matrices[module] for module in own}))
        pipe.load_lora_weights(folder / name, scale=0.5)
    for when in ("both", "one"):
        assert [leaf.sharding for leaf in jax.tree.leaves(pipe.params)] == places
        some = {path: leaf for path, leaf in paths(pipe.parameters()).items() if re.search("q/kernel|down|mod", path)}
        found |= {f"{when} {path}": process_allgather(leaf, tiled=True) for path, leaf in some.items()}
        pipe.delete_adapters("first" if when == "both" else "second")
    return found


def adapters() -> dict[str, np.ndarray]:
    return by_each(partial(kernels, folder=Path(sys.argv[2]).parent))


def adapters_across() -> dict[str, np.ndarray]:
    """By both of two processes, which make up the mesh, and read what each wrote for itself."""
    folder = Path(sys.argv[2]).with_suffix("")
    return kernels(InternVLUPipeline.from_pretrained(CHECKPOINT, devices=PLACES["mesh"]), folder)
