"""`TokenStore`: pictures as codes, read by memory map. What is on disk is described in `layout.py`.

store = TokenStore("runs/store")
store.pictures(items, "depth", frames)      # uint16 [m, t]
"""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.runtime import UserError, read_json
from lvm.store import layout

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Int32, Int64, UInt16, UInt32, UInt64


class TokenStore:
    """A complete store, read only. Cheap to open and to pickle: columns and tars are mapped when first used.

    Raises `UserError` for a folder that is no store, an incomplete one, or one of another version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "store.json").is_file():
            if (self.path / "plan.json").is_file():
                raise UserError(f"{self.path} is an incomplete token store; run the same `lvm tokenize` again")
            raise UserError(f"{self.path} is not a token store (no store.json); make one with `lvm tokenize`")
        self.info: dict[str, Any] = read_json(self.path / "store.json")
        if self.info.get("version") != layout.VERSION:
            raise UserError(
                f"{self.path} has store version {self.info.get('version')}, this code reads {layout.VERSION}; "
                "tokenize again"
            )
        self.name: str = self.info["source"]
        self.tokenizer_fingerprint: str = self.info["tokenizer_fingerprint"]
        self.grid: tuple[int, int] = (int(self.info["grid"][0]), int(self.info["grid"][1]))
        self.tokens_per_picture = self.grid[0] * self.grid[1]
        self.num_codes: int = self.info["num_codes"]
        self.channels: tuple[str, ...] = tuple(self.info["channels"])
        self.labels: tuple[str, ...] = tuple(self.info.get("labels", ()))
        self.shards: list[tuple[str, str]] = [(shard["name"], shard["sha256"]) for shard in self.info["shards"]]
        counts = self.info["shards"]
        self._first_item = np.cumsum([0] + [shard["items"] for shard in counts])
        self._first_block = np.cumsum([0] + [shard["blocks"] for shard in counts])
        self._first_id = np.cumsum([0] + [shard["ids"] for shard in counts])
        self._rows: dict[int, np.ndarray] = {}
        self._strings: dict[int, list[dict[str, Any]]] = {}

    def __len__(self) -> int:
        return int(self._first_item[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore, (str(self.path),)

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 over the tokenizer's fingerprint and the shards' hashes, in order."""
        parts = [self.tokenizer_fingerprint, *(sha256 for _, sha256 in self.shards)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    # Columns over items.

    @cached_property
    def item(self) -> "UInt32[np.ndarray, 'items']":
        """Number of the item's id: views of one id share it."""
        return self._column("item", self._first_id)

    @cached_property
    def view(self) -> "UInt16[np.ndarray, 'items']":
        return self._column("view")

    @cached_property
    def label(self) -> "Int32[np.ndarray, 'items']":
        """-1: none."""
        return self._column("label")

    @cached_property
    def group(self) -> "UInt64[np.ndarray, 'items']":
        return self._column("group")

    @cached_property
    def block(self) -> "UInt32[np.ndarray, 'items']":
        return self._column("block", self._first_block)

    @cached_property
    def row(self) -> "UInt16[np.ndarray, 'items']":
        return self._column("row")

    @cached_property
    def channel_mask(self) -> "Int64[np.ndarray, 'items']":
        """Bit c: channel c is in the item itself."""
        return self._column("block_mask")[self.block]

    @cached_property
    def num_pictures(self) -> "UInt16[np.ndarray, 'items']":
        return self._column("block_num_pictures")[self.block]

    @cached_property
    def base(self) -> "Int64[np.ndarray, 'items']":
        """Index of the (id, view 0) item of each item, or -1."""
        first = np.full(int(self._first_id[-1]), -1, dtype=np.int64)
        (zero,) = np.nonzero(self.view == 0)
        first[self.item[zero]] = zero
        return first[self.item]

    def _column(self, column: str, first: np.ndarray | None = None) -> np.ndarray:
        parts = [layout.load_column(self.path, name, column) for name, _ in self.shards]
        if first is not None and len(parts) > 1:
            parts = [part + part.dtype.type(start) for part, start in zip(parts, first)]
        dtype = {**layout.ITEM_COLUMNS, **layout.BLOCK_COLUMNS}[column]
        return np.zeros(0, dtype) if not parts else parts[0] if len(parts) == 1 else np.concatenate(parts)

    # Pictures.

    def bit(self, channel: str) -> int:
        if channel not in self.channels:
            raise UserError(f"{self.path} has no channel {channel!r}; it has {', '.join(self.channels)}")
        return self.channels.index(channel)

    def has(self, channel: str) -> "Bool[np.ndarray, 'items']":
        """Whether the channel is in the item itself or in its view 0."""
        here = (self.channel_mask >> self.bit(channel)) & 1 == 1
        return here | (here[self.base] & (self.base >= 0))

    def pictures(
        self,
        items: "Int64[np.ndarray, 'm']",
        channels: "Int[np.ndarray, 'm'] | int | str",
        frames: "Int[np.ndarray, 'm'] | int" = 0,
    ) -> "UInt16[np.ndarray, 'm t']":
        """Codes of one picture for each (item, channel, frame); channels are bit numbers or one name.

        A channel that an item lacks is read from its view 0. Raises `UserError` where that lacks it too,
        `IndexError` for a frame or item that does not exist.
        """
        items = np.asarray(items, dtype=np.int64)
        bits = np.broadcast_to(self.bit(channels) if isinstance(channels, str) else channels, items.shape)
        frames = np.broadcast_to(frames, items.shape).astype(np.int64)
        items, rows, shards, starts = self._find(items, bits.astype(np.int64), frames)
        positions = starts // 2 + rows * self.tokens_per_picture
        if len(self.shards) == 1 or (len(shards) and (shards == shards[0]).all()):
            return self._flat(int(shards[0]) if len(shards) else 0)[positions]
        codes = np.empty((len(items), self.tokens_per_picture), dtype=np.uint16)
        for shard in np.unique(shards):
            (here,) = np.nonzero(shards == shard)
            codes[here] = self._flat(int(shard))[positions[here]]
        return codes

    def _find(self, items: np.ndarray, bits: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, ...]:
        """(item that holds the picture, row in its block, shard, byte where the member's codes start)."""
        if len(items) and (items.min() < 0 or items.max() >= len(self)):
            raise IndexError(f"item {items.min()}..{items.max()} of a store of {len(self)} items")
        holders = np.where((self.channel_mask[items] >> bits) & 1 == 1, items, self.base[items])
        blocks = self.block[holders]
        starts = self._block_offset[blocks, bits]
        missing = (starts < 0) | (holders < 0)
        if missing.any():
            i = int(np.argmax(missing))
            raise UserError(f"{self.id(int(items[i]))} in {self.path} has no channel {self.channels[int(bits[i])]!r}")
        outside = (frames < 0) | (frames >= self.num_pictures[holders])
        if outside.any():
            i = int(np.argmax(outside))
            count = self.num_pictures[holders[i]]
            raise IndexError(f"frame {frames[i]} of {self.id(int(items[i]))}, which has {count}")
        shards = np.searchsorted(self._first_block, blocks, side="right") - 1
        return holders, self.row[holders] + frames, shards, starts

    @cached_property
    def _block_offset(self) -> "Int64[np.ndarray, 'blocks channels']":
        parts = [layout.load_column(self.path, name, "block_offset") for name, _ in self.shards]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.channels)), np.int64)

    def _flat(self, shard: int) -> "UInt16[np.ndarray, 'positions t']":
        """The tar as overlapping runs of t codes: run p starts at uint16 number p of the file.

        Members start at even bytes (tar pads to 512, npy headers to 64), so one fancy index gathers any pictures.
        """
        if shard not in self._rows:
            path = layout.tar_path(self.path, self.shards[shard][0])
            try:
                codes = np.memmap(path, dtype="<u2", mode="r").view(np.ndarray)
            except (OSError, ValueError) as error:
                raise UserError(f"{path} cannot be read ({error}); run `lvm store verify {self.path}`") from None
            if codes.nbytes != self.info["shards"][shard]["bytes"]:
                raise UserError(f"{path} is damaged (its size has changed); run `lvm store verify {self.path}`")
            self._rows[shard] = np.lib.stride_tricks.sliding_window_view(codes, self.tokens_per_picture)
        return self._rows[shard]

    # Names.

    def id(self, i: int) -> str:
        return self.strings(i)["id"]

    def strings(self, i: int) -> dict[str, Any]:
        """`id`, and where the source gave them `caption` and `licence`."""
        shard = int(np.searchsorted(self._first_item, i, side="right")) - 1
        if shard not in self._strings:
            path = layout.strings_path(self.path, self.shards[shard][0])
            self._strings[shard] = [json.loads(line) for line in path.read_text().splitlines()]
        return self._strings[shard][int(self.item[i]) - int(self._first_id[shard])]

    def meta(self, i: int) -> dict[str, Any]:
        """The source's metadata of item i; empty where it gave none. Reads the shard's file: not for loops."""
        shard = int(np.searchsorted(self._first_item, i, side="right")) - 1
        path = layout.meta_path(self.path, self.shards[shard][0])
        if not path.is_file():
            return {}
        return json.loads(path.read_text().splitlines()[i - int(self._first_item[shard])])

    def locate(self, i: int, channel: str, frame: int = 0) -> tuple[str, str, int]:
        """(shard, tar member, row): where the codes of one picture lie."""
        one = np.array([i], dtype=np.int64)
        holders, rows, shards, _ = self._find(one, np.array([self.bit(channel)]), np.array([frame]))
        shard = int(shards[0])
        block = int(self.block[holders[0]]) - int(self._first_block[shard])
        return self.shards[shard][0], layout.member_name(block, channel), int(rows[0])
