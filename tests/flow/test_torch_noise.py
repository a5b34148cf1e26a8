"""Numbers of `torch.randn`, recorded on a CPU and on a GPU or printed by others, come out of numpy."""

import hashlib
import json

import numpy as np
import pytest

from internvlu_jax.flow.torch_noise import cpu_normal, cuda_normal, philox
from tests.conftest import GOLDENS

RECORDED = json.loads((GOLDENS / "torch_randn.json").read_text())["cases"]
CUDA = dict(np.load(GOLDENS / "torch_randn_cuda.npz"))


def name(case: dict) -> str:
    return f"{case['seed']}-{case['count']}"


@pytest.mark.parametrize("case", [case for case in RECORDED if case["dtype"] == "float32"], ids=name)
def test_cpu(case):
    drawn = cpu_normal(case["seed"], case["count"])
    assert drawn.dtype == np.float32 and drawn.shape == (case["count"],)
    ends = drawn if case["count"] <= 17 else np.concatenate([drawn[:4], drawn[-16:-12], drawn[-4:]])
    np.testing.assert_array_equal(ends.astype(np.float64), case["values"])
    assert hashlib.sha256(drawn.tobytes()).hexdigest() == case["sha256"]


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_has_the_words_of_its_authors(counter, key, words):
    """The known answers of Random123 for philox4x32-10."""
    drawn = philox(tuple(np.array([word], np.uint64) for word in counter), key)
    assert tuple(int(word[0]) for word in drawn) == words


@pytest.mark.parametrize("case", [case for case in CUDA if case.endswith("float32")])
def test_cuda_numbers_are_those_of_a_gpu(case):
    """Of many numbers the first 256, as many from the middle on, and the last: under, at and over one for a thread."""
    seed, count, _ = case.split("/")
    drawn = cuda_normal(int(seed), middle := int(count))
    if middle > 4096:
        drawn = np.concatenate([drawn[:256], drawn[middle // 2 :][:256], drawn[-256:]])
    np.testing.assert_allclose(drawn, CUDA[case], rtol=0, atol=2.6e-6)


@pytest.mark.parametrize(("dtype", "step"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_narrow_cuda_numbers_are_these_rounded(dtype, step):
    drawn = cuda_normal(42, 1000)[:256]
    assert np.all(np.abs(drawn - CUDA[f"42/1000/{dtype}"]) <= 1.01 * step * np.abs(drawn) + 3e-6)


# Printed by programs that others ran on a GPU after torch.manual_seed(seed): four decimals.
PRINTED = {
    42: (0.1940, 2.1614, -0.1721, 0.8491, -1.9244, 0.6530, -0.6494, -0.8175, 0.5280, -1.2753, -1.6621, -0.3033, -0.0926,
         0.1992, -1.1204, 1.8577, -0.7145, 0.6881, 0.7968),
    0: (-0.9247, -0.4253, -2.6438, 0.1452, -0.1209, -0.5797, -0.6229, -0.3284, -1.0745, -0.3631, -1.6711, 2.2655,
        0.3117, -0.1842, 1.2866, 1.1820, -0.1271, 1.2169, 1.4353, 1.0605, -0.4941, -1.4244, -0.7244, -1.2973),
}  # fmt: skip


@pytest.mark.parametrize("seed", PRINTED)
def test_cuda_has_printed_digits(seed):
    np.testing.assert_allclose(cuda_normal(seed, 781)[: len(PRINTED[seed])], PRINTED[seed], atol=6e-5)


def test_a_row_printed_from_the_middle():
    """Rows of 781: columns of rows 0, 1 and 7."""
    rows = cuda_normal(42, 10 * 781).reshape(10, 781)
    np.testing.assert_allclose(rows[0, -3:], (-0.8353, -1.6443, 0.1315), atol=6e-5)
    np.testing.assert_allclose(rows[1, :3], (-0.1797, 0.9744, -2.0136), atol=6e-5)
    np.testing.assert_allclose(rows[7, [0, 1, 2, -1]], (1.9695, 0.5996, 0.5583, 0.9274), atol=6e-5)


def test_more_numbers_than_threads_are_later_ones_of_their_streams():
    """Number i is number i // T of the stream of thread i mod T, by a scalar count of both."""
    threads, count = 512, 512 * 9 + 100
    drawn = cuda_normal(5, count, threads)
    for i in (0, 511, 512, 1024 + 7, 2048 + 3, 4096 + 511, count - 1):
        thread, number = i % threads, i // threads
        counter = tuple(np.array([word], np.uint64) for word in (number // 4, 0, thread, 0))
        words = [int(word[0]) for word in philox(counter, (5, 0))]
        x, y = words[:2] if number % 4 < 2 else words[2:]
        turn = np.cos if number % 2 else np.sin
        expected = np.sqrt(-2 * np.log((x + 0.5) / 2**32)) * turn(2 * np.pi * (y + 0.5) / 2**32)
        np.testing.assert_allclose(drawn[i], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("draw", [cpu_normal, cuda_normal])
def test_moments(draw):
    numbers = draw(7, 2**18).astype(np.float64)
    assert abs(numbers.mean()) < 0.01 and abs(numbers.std() - 1) < 0.01
    assert abs((numbers**4).mean() - 3) < 0.1
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.01


def test_large_seeds_are_told_apart_on_cuda_alone():
    """The Mersenne twister takes 32 bits of a seed, Philox 64."""
    np.testing.assert_array_equal(cpu_normal(2**40 + 3, 16), cpu_normal(3, 16))
    assert not np.array_equal(cuda_normal(2**40 + 3, 16), cuda_normal(3, 16))
