"""Randomness as a function: counters in, noise out, the same in every process and for any batch.

`mix64` is the finaliser of SplitMix64 (Steele, Lea, Flood 2014). One numpy Generator costs 7 us to build,
a hash of a counter a few ns, and needs no state to be saved.
"""

import hashlib
import operator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float64, UInt64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mix64(x: Any) -> "UInt64[np.ndarray, '*shape']":
    """A bijection of uint64 whose output bits each depend on all input bits."""
    return _mixed(np.asarray(x).astype(np.uint64))


def _mixed(x: "UInt64[np.ndarray, '*shape']") -> "UInt64[np.ndarray, '*shape']":
    """`mix64` in place: windows are composed of many small arrays, whose allocation costs as much as the arithmetic."""
    flat = x.reshape(-1)  # a view with an axis: numpy warns of overflow in scalars, and only in these
    flat ^= flat >> _SHIFTS[0]
    flat *= _FACTORS[0]
    flat ^= flat >> _SHIFTS[1]
    flat *= _FACTORS[1]
    flat ^= flat >> _SHIFTS[2]
    return x


def hash64(*counters: Any) -> "UInt64[np.ndarray, '*shape']":
    """Hash integers (scalars or arrays that broadcast) to uint64; the order of the arguments matters."""
    state: Any = np.zeros((), np.uint64)
    for counter in counters:
        mixed = np.asarray(counter).astype(np.uint64) ^ state
        if mixed.ndim == 0:
            mixed = np.array((int(mixed) + int(_GOLDEN)) & 0xFFFFFFFFFFFFFFFF, np.uint64)
        else:
            mixed += _GOLDEN
        state = _mixed(mixed)
    return state


def uniform(*counters: Any) -> "Float64[np.ndarray, '*shape']":
    """Uniform on [0, 1), one value for each (broadcast) tuple of counters."""
    return (hash64(*counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def seed_from(*parts: int | str) -> int:
    """A 63-bit seed from names and numbers, equal in every process and version; numpy's integers count as int."""
    text = "\x1f".join(f"str:{part}" if isinstance(part, str) else f"int:{operator.index(part)}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def group_hash(group: str) -> int:
    """The number a group (photo, clip, object) is known by: the first 8 bytes of its sha256, big-endian."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big")


def held_out(group: "UInt64[np.ndarray, '*shape']", per_mille: int) -> Any:
    """Whether a group hash belongs to the held-out share: hash mod 1000 < per_mille."""
    return np.asarray(group).astype(np.uint64) % np.uint64(1000) < np.uint64(per_mille)
