"""From shares to the slots of one period: which entry each sentence belongs to.

A period of P sentences is drawn up once and repeated for ever; each entry is within one sentence of its share in it
and has at least one.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lvm.runtime import UserError
from lvm.runtime.hashing import uniform

if TYPE_CHECKING:
    from jaxtyping import Float64, Int16, Int32, Int64


LONGEST_PERIOD = 1 << 28  # its tables take some 20 bytes a sentence, and more while they are made


@dataclass(frozen=True)
class Schedule:
    """Slot -> entry and the how-manieth sentence of that entry in the period it is."""

    slots: "Int16[np.ndarray, 'period']"
    rank: "Int32[np.ndarray, 'period']"
    counts: "Int64[np.ndarray, 'entries']"
    sha256: str  # of the slots


def slot_counts(
    shares: "Float64[np.ndarray, 'entries']", period: int, names: Sequence[str]
) -> "Int64[np.ndarray, 'entries']":
    """Sentences of each entry in a period: largest remainder, at least one for each share above zero."""
    quota = shares * period
    counts = np.where(shares > 0, np.maximum(np.floor(quota + 1e-9), 1), 0).astype(np.int64)
    missing = period - int(counts.sum())
    if missing < 0:
        smallest = int(np.argmin(np.where(shares > 0, shares, np.inf)))
        needed = int(np.ceil(1 / shares[smallest]))
        raise UserError(
            f"period {period} is too short for the weights: it has {quota[smallest]:.3g} sentences of entry "
            f"{names[smallest]!r}; "
            + (f"use data.period={needed}" if needed <= LONGEST_PERIOD else "give it a larger share, or weight 0")
        )
    order = np.argsort(-(quota - counts), kind="stable")
    counts[order[:missing]] += 1
    return counts


def make_schedule(counts: "Int64[np.ndarray, 'entries']", seed: int) -> Schedule:
    """Each entry's sentences spread evenly: the r-th of c is drawn inside the r-th of c equal parts of the period."""
    entry = np.repeat(np.arange(len(counts), dtype=np.int16), counts)
    rank = np.arange(len(entry)) - np.repeat(np.cumsum(counts) - counts, counts)
    place = (rank + uniform(seed, entry, rank)) / counts[entry]
    order = np.argsort(place, kind="stable")
    slots = entry[order]
    sha256 = hashlib.sha256(slots.astype("<i2").tobytes()).hexdigest()
    return Schedule(slots, rank[order].astype(np.int32), np.asarray(counts, np.int64), sha256)
