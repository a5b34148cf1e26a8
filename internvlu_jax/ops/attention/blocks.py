"""Blocks, the sizes from which on they pay, and what was measured.

CHUNK, two CPU cores shared with other work, float32, seconds of CPU time, the least of several runs:

    rows, tokens, heads x width      pass              all scores   (256, 512)   (256, 1024)   (512, 512)   (128, 1024)
    1 x  512, 16 x 64                forward           0.070        0.042
    1 x 1024, 16 x 64                forward           0.34         0.14         0.11          0.15         0.11
    1 x 1024, 16 x 64                both              0.73         0.52         0.60          0.59         0.53
    2 x 2048, 12 x 128               forward           2.5          1.3          1.1           1.1
    1 x 2048, 16 of 8 x 128, causal  both              4.3          1.8          2.4           2.1

So chunks are slower nowhere, and the thresholds bound what all scores may take: 64 MB in float32. Small models stay
below, and compute what they always did.

SPLASH_BLOCKS and SPLASH_KEYS are not measured: 512 is what MaxText uses, the others keep what is filled up small, and
rows shorter than one block of keys are left to XLA.
"""

# Queries and keys of a block.
CHUNK = (256, 512)
# "auto" takes chunks above both: keys of a row, and scores of a call (batch x heads x queries x keys).
CHUNKED_KEYS = 512
CHUNKED_SCORES = 2**24

# Sizes of the kernel's blocks, which must be multiples of 128, from the largest.
SPLASH_BLOCKS = (512, 384, 256, 128)
# "auto" takes the kernel from this number of keys on.
SPLASH_KEYS = 512


def even_block(tokens: int, most: int) -> int:
    """The size of the fewest blocks of at most `most` that a row is evenly cut into, rounded up to a multiple of 16.

    It is at most `most` where that is such a multiple.
    """
    parts = -(-tokens // most)
    return -(-tokens // (16 * parts)) * 16


def splash_block(tokens: int) -> int:
    """The largest block of the kernel that fills a row up by at most an eighth."""
    return next((size for size in SPLASH_BLOCKS if -tokens % size * 8 <= tokens), SPLASH_BLOCKS[-1])
