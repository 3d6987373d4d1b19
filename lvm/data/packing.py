"""Where each sentence of a stage lies in its windows, from lengths alone.

concat   window i = stream[i T : i T + T + 1]; neighbours share one token (LVM and its loader).
aligned  the sentences of one period are packed once into bins of T + 1 tokens; window i is bin i mod W of period
         i div W. A bin starts with BOS, its rest is PAD; a sentence of T + 2 tokens is written without its EOS.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

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


class ConcatPacking:
    def __init__(self, lengths: "Int64[np.ndarray, 'period']", seq_len: int):
        self.seq_len = seq_len
        self.starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self.period, self.period_tokens = len(lengths), int(self.starts[-1])

    def written(self, length: int) -> int:
        """Tokens written of a sentence of `length` tokens."""
        return length

    def place(self, window: int, n: int) -> Placed:
        first, end = window * self.seq_len, (window + n) * self.seq_len + 1
        sentence = np.arange(self._sentence_at(first), self._sentence_at(end - 1) + 1, dtype=np.int64)
        period, slot = np.divmod(sentence, self.period)
        return Placed(sentence, period * self.period_tokens + self.starts[slot] - first)

    def _sentence_at(self, token: int) -> int:
        period, inside = divmod(token, self.period_tokens)
        return period * self.period + int(np.searchsorted(self.starts, inside, side="right")) - 1

    def started(self, windows: int) -> tuple[int, "Int64[np.ndarray, 's']"]:
        """Whole periods in the first `windows` windows, and the slots begun in the period after them."""
        last = self._sentence_at(windows * self.seq_len) if windows else -1
        periods, slots = divmod(last + 1, self.period)
        return periods, np.arange(slots)

    def waste(self) -> float:
        """Share of a window's tokens that is PAD."""
        return 0.0


class AlignedPacking:
    def __init__(self, lengths: "Int64[np.ndarray, 'period']", seq_len: int):
        """All `lengths` are at most T + 2."""
        self.seq_len, self.period = seq_len, len(lengths)
        lengths = np.minimum(lengths, seq_len + 1)
        self.bin = pack_bins(lengths, seq_len + 1)
        self.num_bins = int(self.bin.max()) + 1
        self.slots = np.argsort(self.bin, kind="stable")  # by bin, in schedule order inside
        ordered = lengths[self.slots]
        before = np.cumsum(ordered) - ordered
        self.first = np.searchsorted(self.bin[self.slots], np.arange(self.num_bins + 1))
        self.offset = before - before[self.first[self.bin[self.slots]]]
        self.filled = int(lengths.sum())

    def written(self, length: int) -> int:
        return min(length, self.seq_len + 1)

    def place(self, window: int, n: int) -> Placed:
        period, bin = np.divmod(window + np.arange(n, dtype=np.int64), self.num_bins)
        count = self.first[bin + 1] - self.first[bin]
        row = np.repeat(np.arange(n), count)  # window of each sentence
        place = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count) + self.first[bin][row]
        return Placed(period[row] * self.period + self.slots[place], row * (self.seq_len + 1) + self.offset[place])

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
    for index, length in enumerate(lengths.tolist()):
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
