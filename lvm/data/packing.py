"""Where each sentence of a stage lies in its windows, from lengths alone.

concat   window i = stream[i T : i T + T + 1]; neighbours share one token (LVM and its loader).
aligned  the sentences of one period are packed once into bins of T + 1 tokens; window i is bin i mod W of period
         i div W. A bin starts with BOS, its rest is PAD; a sentence of T + 2 tokens is written without its EOS.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Int64

OPEN_BINS = 32


@dataclass(frozen=True)
class Placed:
    """Sentences of some windows: number in the stage (period x P + slot) and first token, counted in the buffer.

    The buffer is the n windows' tokens in a row: n T + 1 of them (concat) or n (T + 1) (aligned).
    A sentence may start before the buffer (concat) and end behind it.
    """

    sentence: "Int64[np.ndarray, 's']"
    start: "Int64[np.ndarray, 's']"


class Packing(Protocol):
    def written(self, length: int) -> int:
        """Tokens written of a sentence of `length` tokens."""

    def place(self, window: int, n: int) -> Placed:
        """The sentences of windows window .. window+n-1, in window order."""

    def started(self, windows: int) -> tuple[int, "Int64[np.ndarray, 's']"]:
        """Whole periods in the first `windows` windows, and the slots begun in the period after them."""

    def waste(self) -> float:
        """Share of a window's tokens that is PAD."""

    def tables(self) -> dict[str, np.ndarray]:
        """What was computed of the lengths, to be kept."""


def make_packing(kind: str, lengths: "Int64[np.ndarray, 'period']", seq_len: int) -> Packing:
    """`kind` is aligned or concat; aligned, no length may be over T + 2."""
    if kind == "concat":
        return ConcatPacking(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), seq_len)
    return AlignedPacking(bin_slots(np.minimum(lengths, seq_len + 1), seq_len + 1), seq_len)


def kept_packing(kind: str, tables: "Mapping[str, np.ndarray]", seq_len: int) -> Packing:
    """From the tables of one that was made before."""
    return ConcatPacking(tables["starts"], seq_len) if kind == "concat" else AlignedPacking(tables, seq_len)


class ConcatPacking:
    def __init__(self, starts: "Int64[np.ndarray, 'period+1']", seq_len: int):
        """`starts`: token of the period where each sentence starts; the last, where the period ends."""
        self.seq_len, self.starts = seq_len, starts
        self.period, self.period_tokens = len(starts) - 1, int(starts[-1])

    def tables(self) -> dict[str, np.ndarray]:
        return {"starts": self.starts}

    def written(self, length: int) -> int:
        return length

    def place(self, window: int, n: int) -> Placed:
        first, end = window * self.seq_len, (window + n) * self.seq_len + 1
        sentence = np.arange(self._sentence_at(first), self._sentence_at(end - 1) + 1, dtype=np.int64)
        period, slot = np.divmod(sentence, self.period)
        return Placed(sentence, period * self.period_tokens + self.starts[slot] - first)

    def _sentence_at(self, token: int) -> int:
        period, inside = divmod(token, self.period_tokens)
        return period * self.period + int(self.starts.searchsorted(inside, side="right")) - 1

    def started(self, windows: int) -> tuple[int, "Int64[np.ndarray, 's']"]:
        last = self._sentence_at(windows * self.seq_len) if windows else -1
        periods, slots = divmod(last + 1, self.period)
        return periods, np.arange(slots)

    def waste(self) -> float:
        return 0.0


def bin_slots(lengths: "Int64[np.ndarray, 'period']", size: int) -> dict[str, np.ndarray]:
    """Which slots each bin of `size` tokens holds, and where: the tables of `AlignedPacking`."""
    bins = pack_bins(lengths, size)
    slots = np.argsort(bins, kind="stable")  # by bin, in schedule order inside
    ordered, bins = lengths[slots], bins[slots]
    before = np.cumsum(ordered) - ordered
    first = np.searchsorted(bins, np.arange(int(bins[-1]) + 2))
    offset = before - before[first[bins]]
    return {"packed": slots, "offset": offset.astype(np.int32), "first": first, "filled": np.array(ordered.sum())}


class AlignedPacking:
    def __init__(self, tables: "Mapping[str, np.ndarray]", seq_len: int):
        self.seq_len, self._tables = seq_len, dict(tables)
        self.slots, self.offset, self.first = tables["packed"], tables["offset"], tables["first"]
        self.period, self.num_bins, self.filled = len(self.slots), len(self.first) - 1, int(tables["filled"])

    def tables(self) -> dict[str, np.ndarray]:
        return self._tables

    def written(self, length: int) -> int:
        return min(length, self.seq_len + 1)

    def place(self, window: int, n: int) -> Placed:
        period, bin = np.divmod(window + np.arange(n, dtype=np.int64), self.num_bins)
        count = self.first[bin + 1] - self.first[bin]
        row = np.repeat(np.arange(n), count)  # window of each sentence
        place = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count) + self.first[bin][row]
        start = row * (self.seq_len + 1) + self.offset[place]
        return Placed(period[row] * self.period + self.slots[place], start)

    def started(self, windows: int) -> tuple[int, "Int64[np.ndarray, 's']"]:
        periods, bins = divmod(windows, self.num_bins)
        return periods, self.slots[: self.first[bins]]

    def waste(self) -> float:
        return 1 - self.filled / (self.num_bins * (self.seq_len + 1))


def pack_bins(lengths: "Int64[np.ndarray, 'period']", size: int) -> "Int64[np.ndarray, 'period']":
    """The bin of each sentence: in order, the oldest open bin with room, else a new one; bins count from 0 by their
    first sentence. At most OPEN_BINS are open: a new one then closes the fullest."""
    bins = np.empty(len(lengths), np.int64)
    smallest = int(lengths.min(initial=size))
    numbers: list[int] = []
    rooms: list[int] = []
    num_bins = 0
    for index, length in enumerate(_numbers(lengths)):
        place = next((place for place, room in enumerate(rooms) if room >= length), -1)
        if place < 0:
            if len(rooms) == OPEN_BINS:
                fullest = rooms.index(min(rooms))
                del rooms[fullest], numbers[fullest]
            place = len(rooms)
            numbers.append(num_bins)
            rooms.append(size)
            num_bins += 1
        bins[index] = numbers[place]
        rooms[place] -= length
        if rooms[place] < smallest:
            del rooms[place], numbers[place]
    return bins


def _numbers(values: "Int64[np.ndarray, 'n']") -> Iterator[int]:
    """As Python's, a few at a time: of millions, all at once would take much more than the array does."""
    for start in range(0, len(values), 1 << 16):
        yield from values[start : start + (1 << 16)].tolist()
