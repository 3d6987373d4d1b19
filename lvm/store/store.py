"""`TokenStore`: pictures as codes, read by memory map. What is on disk is described in `layout.py`.

store = TokenStore("runs/store")                # or s3://bucket/store: see `remote.py`
store.pictures(items, "depth", frames)      # uint16 [m, t]
"""

import hashlib
import json
import resource
import threading
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.runtime import UserError, read_json
from lvm.store import layout
from lvm.store.remote import RemoteFolder, is_url

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Int32, Int64, UInt16, UInt32, UInt64

KEPT_STRINGS = 16  # shards whose strings stay in memory
KEPT_REMOTE_TARS = 64  # shards that stay mapped, and so in the cache; of a store on this machine see `kept_tars`


class TokenStore:
    """A complete store, read only. Cheap to open and to pickle: columns and tars are mapped when first used.

    `path` is a folder, or the address of one that fsspec opens: its files are fetched into a cache when first used, of
    whose tars at most `cache_bytes` stay. `where` is what was given, `path` the folder on this machine.
    Items whose ids stand in the store's own exclude.txt, or in the file `exclude`, keep their numbers but can no
    longer be read; `admitted` tells them from the others.
    Raises `UserError` for a folder that is no store, an incomplete one, or one of another version.
    """

    def __init__(self, path: str | Path, exclude: str | Path | None = None, cache_bytes: int | None = None) -> None:
        self.where = str(path)
        self._arguments = (self.where, exclude, cache_bytes)
        self._remote = RemoteFolder(self.where, cache_bytes) if is_url(path) else None
        self.path = self._remote.path if self._remote else Path(path)
        if not (self.path / "store.json").is_file():
            if (self.path / "plan.json").is_file():
                raise UserError(f"{self.where} is an incomplete token store; run the same `lvm tokenize` again")
            raise UserError(f"{self.where} is not a token store (no store.json); make one with `lvm tokenize`")
        self.info: dict[str, Any] = read_json(self.path / "store.json")
        if self.info.get("version") != layout.VERSION:
            raise UserError(
                f"{self.where} has store version {self.info.get('version')}, this code reads {layout.VERSION}; "
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
        own = layout.exclude_path(self.path)
        if self._remote:
            self._excluded_ids = ids_of((self._remote.read(own.name) or b"").decode())
        else:
            self._excluded_ids = read_ids(own) if own.is_file() else []
        self._excluded_ids += read_ids(Path(exclude)) if exclude is not None else []
        self._mapping = threading.Lock()
        self._fetched: set[str] = set()
        self._rows: dict[int, np.ndarray] = {}
        self._strings: dict[int, list[dict[str, Any]]] = {}

    def __len__(self) -> int:
        return int(self._first_item[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        # Who reads in another process need not look up the excluded ids again, and reads what this one would.
        return TokenStore, self._arguments, {"excluded": self.excluded}

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
        parts = self._parts(column)
        if first is not None and len(parts) > 1:
            parts = [part + part.dtype.type(start) for part, start in zip(parts, first)]
        dtype = {**layout.ITEM_COLUMNS, **layout.BLOCK_COLUMNS}[column]
        return np.zeros(0, dtype) if not parts else parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _parts(self, column: str) -> list[np.ndarray]:
        self._fetch("index")
        return [layout.load_column(self.path, name, column) for name, _ in self.shards]

    # Taken down.

    @cached_property
    def excluded(self) -> "Int64[np.ndarray, 'excluded']":
        """Numbers of the items whose id is on an exclude list, ascending."""
        return np.sort(np.concatenate([np.zeros(0, np.int64), *self.find(self._excluded_ids).values()]))

    @property
    def admitted(self) -> "Bool[np.ndarray, 'items']":
        """Whether an item may be read."""
        admitted = np.ones(len(self), bool)
        admitted[self.excluded] = False
        return admitted

    @cached_property
    def unknown_ids(self) -> list[str]:
        """Ids of the exclude list that are not here: of other stores, or misspelt."""
        found = self.find(self._excluded_ids)
        return [id for id in dict.fromkeys(self._excluded_ids) if id not in found]

    @property
    def exclusion(self) -> str:
        """Hex sha256 of the items excluded; empty where none is."""
        return hashlib.sha256(self.excluded.astype("<i8").tobytes()).hexdigest() if len(self.excluded) else ""

    # Pictures.

    def bit(self, channel: str) -> int:
        if channel not in self.channels:
            raise UserError(f"{self.where} has no channel {channel!r}; it has {', '.join(self.channels)}")
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
        if len(self.excluded) and (gone := np.isin(items, self.excluded)).any():
            i = int(items[np.argmax(gone)])
            raise UserError(f"{self.id(i)} is on the exclude list of {self.where}; no reader may show it")
        holders = np.where((self.channel_mask[items] >> bits) & 1 == 1, items, self.base[items])
        blocks = self.block[holders]
        starts = self._block_offset[blocks, bits]
        missing = (starts < 0) | (holders < 0)
        if missing.any():
            i = int(np.argmax(missing))
            raise UserError(f"{self.id(int(items[i]))} in {self.where} has no channel {self.channels[int(bits[i])]!r}")
        outside = (frames < 0) | (frames >= self.num_pictures[holders])
        if outside.any():
            i = int(np.argmax(outside))
            count = self.num_pictures[holders[i]]
            raise IndexError(f"frame {frames[i]} of {self.id(int(items[i]))}, which has {count}")
        shards = np.searchsorted(self._first_block, blocks, side="right") - 1
        return holders, self.row[holders] + frames, shards, starts

    @cached_property
    def _block_offset(self) -> "Int64[np.ndarray, 'blocks channels']":
        parts = self._parts("block_offset")
        return np.concatenate(parts) if parts else np.zeros((0, len(self.channels)), np.int64)

    def _flat(self, shard: int) -> "UInt16[np.ndarray, 'positions t']":
        """The tar as overlapping runs of t codes: run p starts at uint16 number p of the file.

        Members start at even bytes (tar pads to 512, npy headers to 64), so one fancy index gathers any pictures.
        """
        with self._mapping:
            rows = self._rows.pop(shard, None)
            if rows is None:
                rows = self._map(shard)
            self._rows[shard] = rows  # in the order of their last use
            return rows

    def _map(self, shard: int) -> "UInt16[np.ndarray, 'positions t']":
        """Map a tar; what was longest not used is let go before: a map holds a file open, and its tar in the cache."""
        name, sha256 = self.shards[shard]
        path, size = layout.tar_path(self.path, name), self.info["shards"][shard]["bytes"]
        while len(self._rows) >= (KEPT_REMOTE_TARS if self._remote else kept_tars()):
            self._let_go()
        try:
            if self._remote:
                with self._remote.open_tar(f"shards/{name}.tar", size, sha256, self._let_go) as file:
                    codes = np.memmap(file, dtype="<u2", mode="r").view(np.ndarray)
            else:
                codes = np.memmap(path, dtype="<u2", mode="r").view(np.ndarray)
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}); run `lvm store verify {self.where}`") from None
        if codes.nbytes != size:
            raise UserError(f"{path} is damaged (its size has changed); run `lvm store verify {self.where}`")
        return np.lib.stride_tricks.sliding_window_view(codes, self.tokens_per_picture)

    def _let_go(self) -> bool:
        """Unmap the tar that was longest not used; whether there was one."""
        if not self._rows:
            return False
        del self._rows[next(iter(self._rows))]
        return True

    def _fetch(self, folder: str, shard: int | None = None) -> None:
        """Bring what a shard, or all of them, have in index/ or strings/, where the store lies elsewhere."""
        if self._remote is not None and folder not in self._fetched:
            self._remote.fetch_parts(folder, self.shards if shard is None else [self.shards[shard]])
            if shard is None:
                self._fetched.add(folder)

    # Names.

    def id(self, i: int) -> str:
        return self.strings(i)["id"]

    def strings(self, i: int) -> dict[str, Any]:
        """`id`, and where the source gave them `caption`, `licence` and `origin`."""
        shard = self.shard_of(i)
        if shard not in self._strings:
            if len(self._strings) == KEPT_STRINGS:
                del self._strings[next(iter(self._strings))]
            self._strings[shard] = self.strings_of_shard(shard)
        return self._strings[shard][int(self.item[i]) - int(self._first_id[shard])]

    def meta(self, i: int) -> dict[str, Any]:
        """The source's metadata of item i; empty where it gave none. Reads the shard's file: not for loops."""
        shard = self.shard_of(i)
        metas = self.metas_of_shard(shard)
        return metas[i - int(self._first_item[shard])] if metas else {}

    def shard_of(self, i: int) -> int:
        return int(np.searchsorted(self._first_item, i, side="right")) - 1

    def items_of_shard(self, shard: int) -> range:
        return range(int(self._first_item[shard]), int(self._first_item[shard + 1]))

    def strings_of_shard(self, shard: int) -> list[dict[str, Any]]:
        """One for each id of the shard; the k-th id there is number `first_id(shard) + k` of column `item`."""
        self._fetch("strings", shard)
        return _lines(layout.strings_path(self.path, self.shards[shard][0]))

    def sidecar(self, shard: int) -> dict[str, Any]:
        """What was written of a shard: counts, hashes of its files, what could not be read."""
        self._fetch("shards", shard)
        return read_json(layout.sidecar_path(self.path, self.shards[shard][0]))

    def metas_of_shard(self, shard: int) -> list[dict[str, Any]]:
        """One for each item of the shard, or none where no item has any."""
        self._fetch("strings", shard)
        path = layout.meta_path(self.path, self.shards[shard][0])
        return _lines(path) if path.is_file() else []

    def find(self, ids: Collection[str]) -> "dict[str, Int64[np.ndarray, 'items']]":
        """The items, all views, of each of the ids that is here. Reads all strings: not for loops."""
        wanted, numbers = set(ids), {}
        if not wanted:
            return {}
        self._fetch("strings")
        for shard in range(len(self.shards)):
            for place, strings in enumerate(self.strings_of_shard(shard)):
                if strings["id"] in wanted:
                    numbers[strings["id"]] = int(self._first_id[shard]) + place
        items = np.flatnonzero(np.isin(self.item, list(numbers.values())))
        return {id: items[self.item[items] == number] for id, number in numbers.items()}

    def locate(self, i: int, channel: str, frame: int = 0) -> tuple[str, str, int]:
        """(shard, tar member, row): where the codes of one picture lie."""
        one = np.array([i], dtype=np.int64)
        holders, rows, shards, _ = self._find(one, np.array([self.bit(channel)]), np.array([frame]))
        shard = int(shards[0])
        block = int(self.block[holders[0]]) - int(self._first_block[shard])
        return self.shards[shard][0], layout.member_name(block, channel), int(rows[0])


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); run `lvm store verify {path.parents[1]}`") from None


def read_ids(path: Path) -> list[str]:
    """A text file of ids, one a line."""
    try:
        return ids_of(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a list of ids, one a line ({error})") from None


def ids_of(text: str) -> list[str]:
    """The lines of a text that are not empty, without blanks around them."""
    return [line.strip() for line in text.split("\n") if line.strip()]


def kept_tars() -> int:
    """How many tars of a store stay mapped: each holds a file open, of which a process may have so many."""
    return max(64, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 8)
