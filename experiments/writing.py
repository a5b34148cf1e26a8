"""Seconds of writing with a language model alone, beside those of transformers and what a bare product reads.

    python -m experiments.writing --transformers ENV/bin/python

`ENV` is an environment of your own with `torch` and `transformers`; without it only this side is timed. Both sides have
random weights of the same sizes in float32, read a prompt and write so many tokens, greedily. They take turns, and the
least of each counts: other work on the machine only adds to it. "weights, GB/s" is what a token reads of the weights,
times tokens a second; "of a product" is that over what a matrix-vector product reads alone.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from experiments.benchmark import normal
from experiments.command import command
from experiments.rows import Row
from internvlu_jax.config import Compute, Qwen3Config
from internvlu_jax.config_parts import Layers
from internvlu_jax.decode.generate import generate
from internvlu_jax.decode.model import prefill
from internvlu_jax.decode.settings import TextSettings
from internvlu_jax.models.qwen3 import KVCache, Qwen3, Qwen3Output, as_list
from internvlu_jax.utils.files import write_json

_PRODUCT = (1024, 65536)  # larger than caches


@dataclass(frozen=True)
class Arguments:
    model: Qwen3Config = Qwen3Config(vocab_size=32000, hidden_size=1024, num_hidden_layers=8, intermediate_size=3072)
    prompt: int = 128
    tokens: int = 64
    rounds: int = 5
    transformers: Path | None = None
    """The Python of an environment that has transformers."""
    json: Path | None = None


@dataclass(frozen=True)
class LanguageModelAlone:
    """A `TextModel` without anything around it; `params` are those of `Qwen3`."""

    cfg: Qwen3Config
    compute: Compute
    capture: tuple[int, ...] = ()

    def embed(self, params: Any, ids: jax.Array) -> jax.Array:
        return self._apply(params, ids, method="embed")

    def forward(
        self, params: Any, x: jax.Array, positions: jax.Array, cache: KVCache | None, return_kv: bool
    ) -> Qwen3Output:
        return self._apply(params, x, positions, cache=cache, return_kv=return_kv)

    def logits(self, params: Any, last: jax.Array) -> jax.Array:
        return self._apply(params, last, method="logits")

    def _apply(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        return Qwen3(self.cfg, self.compute).apply({"params": params}, *args, **kwargs)


@dataclass
class Least:
    """The first round, with what it compiles or warms up, and the least of the others: seconds in all, and of writing
    alone where that is known."""

    first: float = 0.0
    whole: float = float("inf")
    writing: float = float("inf")

    def add(self, whole: float, writing: float) -> None:
        if not self.first:
            self.first = whole
            return
        self.whole, self.writing = min(self.whole, whole), min(self.writing, writing)


def random_params(cfg: Qwen3Config) -> dict[str, Any]:
    """Small normal numbers for a `Qwen3`, layers stacked."""
    module = Qwen3(cfg)

    def touch_all(llm: Qwen3) -> None:
        ids = jnp.zeros((1, 1), jnp.int32)
        llm.logits(llm(llm.embed(ids), ids).last)

    return normal(jax.eval_shape(lambda key: module.init(key, method=touch_all), jax.random.key(0))["params"])


def bytes_read(params: dict[str, Any]) -> int:
    """Of the weights for one token: all but a table of embeddings of its own, of which one row is read."""
    read = params if "lm_head" not in params else {name: part for name, part in params.items() if name != "embed"}
    return sum(leaf.nbytes for leaf in jax.tree.leaves(read))


def write_here(
    args: Arguments, params: dict[str, Any], layers: str, rows: int = 1, dtype: str = "float32"
) -> tuple[float, float]:
    """(seconds of prompt and text, of the text alone) of so many rows at once."""
    model = LanguageModelAlone(args.model, Compute(dtype, layers=layers))
    ids, lengths = jnp.ones((rows, args.prompt), jnp.int32), jnp.full(rows, args.prompt)
    begin = time.perf_counter()
    prompt = prefill(model, params, model.embed(params, ids), lengths, capacity=args.prompt + args.tokens)
    jax.block_until_ready(prompt)
    read = time.perf_counter()
    settings = TextSettings(stop_ids=(-1,), pad_id=0, max_new_tokens=args.tokens, buffer=args.tokens)
    text = generate(model, params, prompt, settings)
    jax.block_until_ready(text)
    end = time.perf_counter()
    return end - begin, end - read


def rates(args: Arguments, counts: Sequence[int], dtype: str) -> list[Row]:
    """A row for each number of texts at once, layers as a scan and as a list: the least seconds of `args.rounds`."""
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), random_params(args.model))
    read, found = bytes_read(params), list[Row]()
    for layers in get_args(Layers):
        if layers == "unrolled":
            params["layers"] = as_list(params["layers"])
        for rows in counts:
            least = Least()
            for _ in range(args.rounds + 1):
                least.add(*write_here(args, params, layers, rows, dtype))
            rate = (args.tokens - 1) / least.writing
            found.append({
                "layers": layers, "rows": rows, "first run, s": least.first, "seconds": least.whole,
                "tokens/s": rows * rate, "weights, GB/s": rate * read / 1e9,
            })  # fmt: skip
    return found


def product() -> Callable[[], float]:
    """Bytes a second that a matrix-vector product reads, measured once a call."""
    weights, x = normal(jax.ShapeDtypeStruct(_PRODUCT, jnp.float32)), jnp.ones((1, _PRODUCT[0]))
    run = jax.jit(jnp.matmul)

    def once() -> float:
        begin = time.perf_counter()
        jax.block_until_ready(run(x, weights))
        return weights.nbytes / (time.perf_counter() - begin)

    once()
    return once


@contextmanager
def transformers_side(python: Path, args: Arguments) -> Iterator[Callable[[], float]]:
    """A process that writes with transformers, once a call; what it gives are its seconds.

    Raises ValueError, with what the process said, if it ends before it was asked to.
    """
    sizes = asdict(args.model) | {"prompt": args.prompt, "tokens": args.tokens}
    command = [str(python), str(Path(__file__).with_name("writing_transformers.py")), json.dumps(sizes)]
    # Without buffers there is nothing left to write when a process that ended is closed.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        asked, answers = process.stdin, process.stdout
        assert asked and answers

        def once() -> float:
            with suppress(BrokenPipeError):  # it ended: so there is no answer
                asked.write(b"\n")
            line = answers.readline()
            if not line:
                raise ValueError(f"{python} ended without an answer; expected a Python that has torch and transformers")
            return float(line)

        yield once


def measure(args: Arguments) -> tuple[dict[str, Least], float, int]:
    """By side what was measured; bytes a second of a product; bytes of weights a token.

    Raises ValueError if there are no rounds, or the other side's Python is none.
    """
    if args.rounds < 1:
        raise ValueError(f"--rounds is {args.rounds}; expected at least 1")
    if args.transformers is not None and shutil.which(args.transformers) is None:
        raise ValueError(
            f"--transformers {args.transformers} is no program; expected the Python of an environment that has torch "
            "and transformers, such as ENV/bin/python"
        )
    params = random_params(args.model)
    read = bytes_read(params)
    apart = {**params, "layers": as_list(jax.tree.map(jnp.copy, params["layers"]))}
    of_product, fastest = product(), 0.0
    with ExitStack() as stack:
        sides: dict[str, Callable[[], tuple[float, float]]] = {
            layers: partial(write_here, args, apart if layers == "unrolled" else params, layers)
            for layers in get_args(Layers)
        }
        if args.transformers is not None:
            other = stack.enter_context(transformers_side(args.transformers, args))
            sides["transformers"] = lambda: (other(), float("inf"))
        found = {name: Least() for name in sides}
        for _ in range(args.rounds + 1):
            for name, once in sides.items():
                found[name].add(*once())
            fastest = max(fastest, *(of_product() for _ in range(5)))
    return found, fastest, read


def main(args: Arguments) -> None:
    found, fastest, read = measure(args)
    table = Table("side", "first round, s", "prompt and text, s", "tokens/s", "weights, GB/s", "of a product")
    for name, least in found.items():
        rate = (args.tokens - 1) / least.writing  # the prompt gives the first token
        written = [f"{rate:.1f}", f"{rate * read / 1e9:.1f}", f"{rate * read / fastest:.0%}"] if rate else []
        table.add_row(name, f"{least.first:.2f}", f"{least.whole:.3f}", *written)
    console = Console(width=120)
    console.print(table)
    console.print(f"a matrix-vector product reads {fastest / 1e9:.1f} GB/s, a token {read / 1e9:.2f} GB of weights")
    if "transformers" in found:
        console.print(f"unrolled is {found['transformers'].whole / found['unrolled'].whole:.2f} times transformers")
    if args.json is not None:
        rows = {name: {k: v for k, v in asdict(least).items() if math.isfinite(v)} for name, least in found.items()}
        write_json(args.json, {"seconds": rows, "product": fastest, "read": read}, allow_nan=False)


if __name__ == "__main__":
    command(main, Arguments, "experiments.writing", __doc__)
