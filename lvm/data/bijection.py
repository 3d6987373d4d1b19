"""Keyed permutations of 0..n-1 that are never written down: any element in O(1), all elements in any order.

A Feistel network over two mixed-radix digits (a x b, the smallest rectangle that holds n) with cycle walking
(Black and Rogaway 2002). The rectangle is at most sqrt(n) larger than n, so walking is rare.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.runtime.hashing import hash64, mix64

if TYPE_CHECKING:
    from jaxtyping import Int64

_ROUNDS = 6
_STEP = 0x9E3779B97F4A7C15


def permute(x: Any, size: Any, key: Any, inverse: bool = False) -> "Int64[np.ndarray, 'n']":
    """The image of each x in 0..size-1 under the permutation of `key`; all three are scalars or arrays [n]."""
    x, size, key = np.broadcast_arrays(np.atleast_1d(x), size, key)
    out, size, key = x.astype(np.uint64), size.astype(np.uint64), key.astype(np.uint64)
    a = np.ceil(np.sqrt(size.astype(np.float64))).astype(np.uint64)
    b = (size + a - np.uint64(1)) // a
    out = _feistel(out, a, b, key, inverse)
    outside = np.flatnonzero(out >= size)
    while outside.size:
        out[outside] = _feistel(out[outside], a[outside], b[outside], key[outside], inverse)
        outside = outside[out[outside] >= size[outside]]
    return out.astype(np.int64)


def _feistel(x: Any, a: Any, b: Any, key: Any, inverse: bool) -> Any:
    left, right = x // b, x % b
    rounds = range(_ROUNDS)
    for index in reversed(rounds) if inverse else rounds:
        round_key = key + np.uint64(index * _STEP % 2**64)
        if index % 2 == 0:
            shift = mix64(right ^ round_key) % a
            left = (left + (a - shift if inverse else shift)) % a
        else:
            shift = mix64(left ^ round_key) % b
            right = (right + (b - shift if inverse else shift)) % b
    return left * b + right


def permute_in_blocks(x: Any, size: Any, key: Any, block: int) -> "Int64[np.ndarray, 'n']":
    """A permutation of 0..size-1 in two levels: the blocks of `block` neighbours are permuted, then each inside itself.

    `block` consecutive x touch at most two blocks and the short last one, wherever it lands, is permuted like the rest.
    """
    x, size, key = np.broadcast_arrays(np.atleast_1d(x), size, key)
    if size.size == 0 or int(size.max()) <= block:
        return permute(x, size, hash64(key, 1, 0))  # block 0 is all there is
    x, size, key = x.astype(np.int64), size.astype(np.int64), key.astype(np.uint64)
    num_blocks = -(-size // block)
    short = size - (num_blocks - 1) * block  # length of the last block
    block_key = hash64(key, 0)
    short_place = permute(num_blocks - 1, num_blocks, block_key, inverse=True)
    after_short = x >= short_place * block + short
    shifted = np.where(after_short, x - short + block, x)  # as if the last block were whole
    place, inside = np.divmod(shifted, block)
    chosen = permute(place, num_blocks, block_key)
    length = np.where(chosen == num_blocks - 1, short, block)
    return chosen * block + permute(inside, length, hash64(key, 1, chosen))
