"""The numeric columns of a store: what blocks there are, and what is in a run of neighbouring items.

A block is small beside its items (2,048 pictures), so the table of all blocks is kept in memory; which block an item
is in, and where its pictures start there, follows from the item's number. Columns of items are read when asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Int32, Int64, UInt16, UInt64

    from lvm.store.store import TokenStore


@dataclass(frozen=True)
class Blocks:
    """All blocks of a store, in order."""

    channels: tuple[str, ...]
    channel_mask: "Int64[np.ndarray, 'blocks']"  # bit c: channel c is there
    num_pictures: "Int64[np.ndarray, 'blocks']"  # of each item of the block
    first_item: "Int64[np.ndarray, 'blocks+1']"
    shard: "Int64[np.ndarray, 'blocks']"
    offset: "Int64[np.ndarray, 'blocks channels']"  # byte in the tar where the codes of the member start; -1 absent

    @classmethod
    def of(
        cls,
        channels: tuple[str, ...],
        blocks_of_shards: Sequence[int],
        mask: "Int64[np.ndarray, 'blocks']",
        num_pictures: "UInt16[np.ndarray, 'blocks']",
        rows: "UInt16[np.ndarray, 'blocks']",
        offset: "Int64[np.ndarray, 'blocks channels']",
    ) -> "Blocks":
        count = num_pictures.astype(np.int64)
        first = np.concatenate([[0], np.cumsum(rows.astype(np.int64) // count)])
        shard = np.repeat(np.arange(len(blocks_of_shards)), blocks_of_shards)
        return cls(channels, mask, count, first, shard, offset.reshape(len(mask), len(channels)))

    def of_items(self, items: "Int64[np.ndarray, '*shape']") -> "Int64[np.ndarray, '*shape']":
        """The block of each item."""
        return np.searchsorted(self.first_item, items, side="right") - 1

    def repeated(self, values: "Int64[np.ndarray, 'blocks']", start: int, stop: int) -> "Int64[np.ndarray, 'items']":
        """The values of the blocks of items start .. stop-1."""
        return np.repeat(values, np.diff(np.clip(self.first_item, start, stop)))


class ItemColumns:
    """The columns of items start .. stop-1 of a store; see `lvm.sentences.Columns`."""

    def __init__(self, store: "TokenStore", start: int, stop: int) -> None:
        self._store, self._start, self._stop = store, start, stop
        self.channels = store.channels

    @cached_property
    def channel_mask(self) -> "Int64[np.ndarray, 'items']":
        blocks = self._store.blocks
        return blocks.repeated(blocks.channel_mask, self._start, self._stop)

    @cached_property
    def num_pictures(self) -> "Int64[np.ndarray, 'items']":
        blocks = self._store.blocks
        return blocks.repeated(blocks.num_pictures, self._start, self._stop)

    @cached_property
    def view(self) -> "UInt16[np.ndarray, 'items']":
        return self._store.column("view", self._start, self._stop)

    @cached_property
    def label(self) -> "Int32[np.ndarray, 'items']":
        return self._store.column("label", self._start, self._stop)

    @cached_property
    def group(self) -> "UInt64[np.ndarray, 'items']":
        return self._store.column("group", self._start, self._stop)

    def has(self, channel: str) -> "Bool[np.ndarray, 'items']":
        """Whether the channel is in the item itself or, with as many pictures, in its view 0."""
        bit = self._store.bit(channel)
        here = (self.channel_mask >> bit) & 1 == 1
        lacking = np.flatnonzero(~here)
        if lacking.size:
            base = self._store.base_of(self._start + lacking)
            blocks = self._store.blocks
            holder = blocks.of_items(np.maximum(base, 0))
            held = (blocks.channel_mask[holder] >> bit) & 1 == 1
            alike = blocks.num_pictures[holder] == self.num_pictures[lacking]  # else frames would not fit together
            here[lacking] = held & alike & (base >= 0)
        return here


def base_within(
    item: "Int[np.ndarray, 'items']", view: "Int[np.ndarray, 'items']", ids: int
) -> "Int64[np.ndarray, 'items']":
    """The place of the view 0 of each item of a shard, whose columns these are; -1 where it has none."""
    first = np.full(ids, -1, dtype=np.int64)
    (zero,) = np.nonzero(view == 0)
    first[item[zero]] = zero
    return first[item]
