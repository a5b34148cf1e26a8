"""The toy data that the debug configuration trains on."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from experiments.configs.debug import TOY
from experiments.toy.make import make
from internvlu_jax.data.examples import ExampleBuilder
from internvlu_jax.data.sources import open_source
from tests.helpers.data import CFG, DATA, TOKENIZER


def test_the_toy_data_is_what_its_script_makes(tmp_path):
    """Text byte for byte, pictures pixel for pixel: their bytes are a matter of the version of zlib."""
    make(tmp_path)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
    assert len(names) == 3 + 16
    assert names == sorted(str(path.relative_to(TOY)) for path in [*TOY.glob("*.jsonl"), *TOY.glob("pictures/*")])
    for name in names:
        if name.endswith(".jsonl"):
            assert (tmp_path / name).read_bytes() == (TOY / name).read_bytes()
        else:
            with Image.open(tmp_path / name) as made, Image.open(TOY / name) as shipped:
                assert made.mode == shipped.mode == "RGB"
                np.testing.assert_array_equal(np.asarray(made), np.asarray(shipped))
    assert sum(path.stat().st_size for path in TOY.rglob("*.*") if path.suffix != ".pyc") < 60_000


@pytest.mark.parametrize(("name", "task"), [("t2i", "t2i"), ("edit", "edit"), ("questions", "understanding")])
def test_every_toy_record_can_be_read(name, task):
    data = dataclasses.replace(DATA, text_lengths=(64, 160), batch_size=8, packed_rows=8, shuffle=False)
    source = open_source(TOY / f"{name}.jsonl")
    found = [ExampleBuilder(CFG, TOKENIZER, data).draft(source[n]) for n in range(len(source))]
    assert len(found) == 8 and {source[n].task for n in range(8)} == {task}
    if task == "understanding":
        assert all(np.any(draft.written) for draft in found)
        assert sum(draft.tiles for draft in found) == 7
    else:
        assert {draft.kind.target for draft in found} == {(64, 64)}
        pixels = [source[n].image.pixels().tobytes() for n in range(8)]
        assert len(set(pixels)) == 8
