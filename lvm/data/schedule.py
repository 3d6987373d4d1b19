"""From weights to the slots of one period: which entry each sentence belongs to.

A period of P sentences is drawn up once and repeated for ever; each entry is within one sentence of its weight in it
and has at least one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.runtime import UserError
from lvm.runtime.hashing import uniform

if TYPE_CHECKING:
    from jaxtyping import Float64, Int16, Int64


@dataclass(frozen=True)
class Schedule:
    """Slot -> entry and the how-manieth sentence of that entry in the period it is."""

    slots: "Int16[np.ndarray, 'period']"
    rank: "Int64[np.ndarray, 'period']"
    counts: "Int64[np.ndarray, 'entries']"


def sentence_shares(weights: Any, pictures: Sequence[int], weights_by: str) -> "Float64[np.ndarray, 'entries']":
    """Shares of sentences that give `weights` as shares of picture tokens ("tokens") or of sentences ("sentences")."""
    shares = np.asarray(weights, np.float64)
    if weights_by == "tokens":
        shares = shares / np.asarray(pictures, np.float64)
    return shares / shares.sum()


def slot_counts(
    shares: "Float64[np.ndarray, 'entries']", period: int, names: Sequence[str]
) -> "Int64[np.ndarray, 'entries']":
    """Sentences of each entry in a period: largest remainder, at least one for each share above zero."""
    quota = shares * period
    counts = np.where(shares > 0, np.maximum(np.floor(quota + 1e-9), 1), 0).astype(np.int64)
    missing = period - int(counts.sum())
    if missing < 0:
        smallest = int(np.argmin(np.where(shares > 0, shares, np.inf)))
        raise UserError(
            f"period {period} is too short for the weights: it has {quota[smallest]:.3g} sentences of entry "
            f"{names[smallest]!r}; use data.period={int(np.ceil(1 / shares[smallest]))}"
        )
    order = np.argsort(-(quota - counts), kind="stable")
    counts[order[:missing]] += 1
    return counts


def make_schedule(counts: "Int64[np.ndarray, 'entries']", seed: int) -> Schedule:
    """Each entry's sentences spread evenly: the r-th of c is drawn inside the r-th of c equal parts of the period."""
    entry = np.repeat(np.arange(len(counts)), counts)
    rank = np.arange(len(entry)) - np.repeat(np.cumsum(counts) - counts, counts)
    place = (rank + uniform(seed, entry, rank)) / counts[entry]
    order = np.argsort(place, kind="stable")
    return Schedule(entry[order].astype(np.int16), rank[order].astype(np.int64), np.asarray(counts, np.int64))
