"""The order in which training windows are visited: a permutation computed item by item, never stored.

A Feistel network over the smallest even-width binary domain that holds n items, walked until the image falls below n
(Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). O(1) memory, so 10^9 windows cost nothing.
"""

import numpy as np

from ticks.arguments import at_least

ROUNDS = 4
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd: spreads the bits of a round's input


def permute(index: np.ndarray, n: int, *, seed: int) -> np.ndarray:
    """Images of `index` (whole numbers below n, any shape) under the permutation of range(n) chosen by `seed`."""
    at_least(1, n=n)
    half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
    keys = np.random.Generator(np.random.Philox(seed)).integers(0, 2**64, ROUNDS, dtype=np.uint64)
    image = _feistel(index.astype(np.uint64), keys, half_bits)
    while (outside := image >= n).any():
        image[outside] = _feistel(image[outside], keys, half_bits)
    return image.astype(np.int64)


def _feistel(x: np.ndarray, keys: np.ndarray, half_bits: int) -> np.ndarray:
    mask = np.uint64((1 << half_bits) - 1)
    left, right = x >> np.uint64(half_bits), x & mask
    for key in keys:
        mixed = (right + key) * _MULTIPLIER  # wraps modulo 2^64 on purpose
        mixed = (mixed ^ (mixed >> np.uint64(29))) * _MULTIPLIER
        left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
    return (left << np.uint64(half_bits)) | right
