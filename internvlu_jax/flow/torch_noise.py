"""Standard normal numbers as PyTorch draws them, in numpy: `torch.randn(n, generator=...manual_seed(seed))`.

On a CPU a Mersenne twister (MT19937; Matsumoto and Nishimura 1998) and the transform of Box and Muller, in one of two
ways: with at least 16 numbers pairs (i, i + 8) of each 16 (`_block`), with fewer one pair after the other, in float64.
Read off ATen's native/cpu/DistributionTemplates.h, avx_mathfun.h, core/DistributionsHelper.h and MT19937RNGEngine.h
(2.6 to 2.14), and equal to numbers recorded from it to the bit on x86-64. Where torch was built for another processor,
logarithm, sine and cosine are those of its C library: some last bits differ.

On CUDA Philox 4x32-10 (Salmon et al. 2011), a stream for every thread: ATen's native/cuda/DistributionTemplates.h and
cuRAND's curand_kernel.h and curand_normal.h. With T threads, 256 in a block,

    (1)  T = 256 min(ceil(n / 256), multiprocessors * (most threads of one / 256))
    (2)  number i is number i // T of the stream of thread i mod T

so as long as n is at most what the card runs at once, number i is the first of thread i on every card. Above that the
card decides; here it is that of `CUDA_THREADS`. cuRAND takes the hardware's sine and cosine, which are off by up to
2^-21, so numbers agree to 2.6e-6: compared on an H200 (which runs as many threads as an H100) with PyTorch 2.11 and
CUDA 13.0, for 1 to 2^21 numbers and five seeds. There bfloat16 and float16 are these numbers rounded; float64 is
another stream, which is not here.
"""

from __future__ import annotations

import numpy as np

CUDA_THREADS = 132 * 2048
"""Threads that an H100 (SXM) runs at once: multiprocessors times threads of each. An A100 has 108 * 2048."""

_CUDA_BLOCK = 256
_LOW = 0xFFFFFFFF
# Of Philox 4x32: multipliers, and what the key grows by each round.
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
# cuRAND's float32 constants: 2^-32 and 2 pi 2^-32.
_STEP = np.float32(2.3283064e-10)
_TURN = np.float32(_STEP * np.float32(6.2831855))
# Cephes' polynomials for float32, as ATen has them.
_LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
    2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_LN2 = (-2.12194440e-4, 0.693359375)  # in two parts, the small one first
_SINE = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COSINE = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
_QUARTER_PI = (0.78515625, 2.4187564849853515625e-4, 3.77489497744594108e-8)  # in three parts


def cpu_normal(seed: int, count: int) -> np.ndarray:
    """float32 [count] as `torch.randn(count, generator=torch.Generator("cpu").manual_seed(seed))`.

    seed: of its bits the Mersenne twister takes the lowest 32.
    """
    twister = np.random.RandomState(seed & _LOW)
    if count < 16:
        return _pairs(_uniform64(twister, count + count % 2))[:count].astype(np.float32)
    rest = count % 16
    drawn = _uniform32(twister, count)
    numbers = np.empty(count, np.float32)
    numbers[: count - rest] = _block(drawn[: count - rest])
    if rest:  # the last 16 numbers are drawn again
        numbers[-16:] = _block(_uniform32(twister, 16))
    return numbers


def cuda_normal(seed: int, count: int, threads: int = CUDA_THREADS) -> np.ndarray:
    """float32 [count] as `torch.randn` with a generator on a CUDA device that runs so many `threads` at once."""
    width = min(threads // _CUDA_BLOCK, -(-count // _CUDA_BLOCK)) * _CUDA_BLOCK  # (1)
    thread = np.arange(width, dtype=np.uint64)
    parts = []
    for call in range(-(-count // (4 * width))):
        a, b, c, d = philox((np.full_like(thread, call), np.zeros_like(thread), thread & np.uint64(_LOW),
                             thread >> np.uint64(32)), (seed & _LOW, seed >> 32))  # fmt: skip
        parts += [*_curand_pair(a, b), *_curand_pair(c, d)]
    return np.concatenate(parts)[:count]  # (2)


def philox(counter: tuple[np.ndarray, ...], key: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Ten rounds of Philox 4x32: four words of 32 bits for each counter, all as uint64."""
    a, b, c, d = counter
    for number in range(10):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        keys = [np.uint64((k + number * w) & _LOW) for k, w in zip(key, _WEYL, strict=True)]
        a, b = (second >> np.uint64(32)) ^ b ^ keys[0], second & np.uint64(_LOW)
        c, d = (first >> np.uint64(32)) ^ d ^ keys[1], first & np.uint64(_LOW)
    return a, b, c, d


def _curand_pair(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two normal float32 of two words each; sine first."""
    u = _fused(x.astype(np.float32), _STEP, _STEP / np.float32(2)).astype(np.float64)
    angle = _fused(y.astype(np.float32), _TURN, _TURN / np.float32(2)).astype(np.float64)
    radius = np.sqrt(-2 * np.log(u))
    return (radius * np.sin(angle)).astype(np.float32), (radius * np.cos(angle)).astype(np.float32)


def _words(twister: np.random.RandomState, count: int) -> np.ndarray:
    return twister.randint(0, 2**32, count, dtype=np.uint32)


def _uniform32(twister: np.random.RandomState, count: int) -> np.ndarray:
    """float32 in [0, 1): 24 bits of a word each."""
    return (_words(twister, count) & np.uint32(2**24 - 1)).astype(np.float32) * np.float32(2**-24)


def _uniform64(twister: np.random.RandomState, count: int) -> np.ndarray:
    """float64 in [0, 1): 53 bits of two words each, the upper word first."""
    high, low = _words(twister, 2 * count).astype(np.uint64).reshape(-1, 2).T
    return (((high << np.uint64(32)) | low) & np.uint64(2**53 - 1)).astype(np.float64) * 2.0**-53


def _pairs(uniform: np.ndarray) -> np.ndarray:
    turn, u = uniform.reshape(-1, 2).T
    radius = np.sqrt(-2 * np.log1p(-u))
    return np.stack([radius * np.cos(2 * np.pi * turn), radius * np.sin(2 * np.pi * turn)], axis=1).ravel()


def _block(uniform: np.ndarray) -> np.ndarray:
    """Pairs (i, i + 8) of each 16 uniform float32."""
    first, second = np.moveaxis(uniform.reshape(-1, 2, 8), 1, 0)
    radius = np.sqrt(np.float32(-2) * _log(np.float32(1) - first))
    sine, cosine = _sin_cos(np.float32(2 * np.pi) * second)
    return np.stack([radius * cosine, radius * sine], axis=1).ravel()


def _fused(x: np.ndarray, y: np.ndarray | np.floating | float, z: np.ndarray | np.floating | float) -> np.ndarray:
    """x y + z of float32, rounded once, as the processor's multiply-add has it."""
    exact = np.multiply(x, np.float32(y), dtype=np.float64)  # 48 bits
    return np.add(exact, np.float32(z), dtype=np.float64).astype(np.float32)


def _polynomial(x: np.ndarray, coefficients: tuple[float, ...]) -> np.ndarray:
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = _fused(value, x, coefficient)
    return value


def _log(x: np.ndarray) -> np.ndarray:
    """log of float32 over 0 as `log256_ps` computes it: of mantissa and exponent, the mantissa nearest to 1."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < np.float32(0.707106781186547524)
    mantissa = (mantissa - np.float32(1)) + np.where(small, mantissa, np.float32(0))
    exponent = exponent.astype(np.float32) - small.astype(np.float32)
    square = mantissa * mantissa
    rest = _fused(_polynomial(mantissa, _LOG) * mantissa, square, exponent * np.float32(_LN2[0]))
    return _fused(exponent, _LN2[1], mantissa + _fused(square, -0.5, rest))


def _sin_cos(angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sine and cosine of float32 from 0 up as `sincos256_ps` computes them: the octant, and two polynomials."""
    octant = ((angle * np.float32(4 / np.pi)).astype(np.int32) + 1) & ~1
    for part in _QUARTER_PI:
        angle = _fused(octant.astype(np.float32), -part, angle)
    square = angle * angle
    cosine = _fused(_polynomial(square, _COSINE) * square, square, -(square * np.float32(0.5))) + np.float32(1)
    sine = _fused(_polynomial(square, _SINE) * square, angle, angle)
    swapped = (octant & 2) != 0
    sine, cosine = np.where(swapped, cosine, sine), np.where(swapped, sine, cosine)
    return np.where(octant & 4, -sine, sine), np.where((octant + 2) & 4, -cosine, cosine)
