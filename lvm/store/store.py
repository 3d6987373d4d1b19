"""`TokenStore`: pictures as codes, read by memory map. What is on disk is described in `layout.py`.

store = TokenStore("runs/store")                # or s3://bucket/store: see `remote.py`
store.pictures(items, "depth", frames)      # uint16 [m, t]
"""

import hashlib
import json
import resource
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lvm.runtime import UserError, atomic_path, read_json
from lvm.runtime.files import cache_folder, locked
from lvm.store import layout
from lvm.store.columns import Blocks, ItemColumns, base_within
from lvm.store.remote import RemoteFolder, is_url

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Int32, Int64, UInt16, UInt32, UInt64

KEPT_STRINGS = 16  # shards whose strings stay in memory
KEPT_BASES = 256  # shards of which it is remembered where each item's view 0 is
KEPT_TABLE = 256  # shards from which on the table of all blocks is kept in $LVM_CACHE
KEPT_READS = 16  # calls of `pictures` that a tar of the cache stays mapped for, and so cannot leave it
FETCHED_AT_ONCE = 4  # tars that one read needs
CHECKED_AT_ONCE = 16  # files looked at together


class Mapped(NamedTuple):
    rows: "UInt16[np.ndarray, 'positions t']"
    read: int  # the call of `pictures` that used it last
    time: float


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
        # As of `BulkEncoder`, several with +; stores that were made of others once did not say it.
        self.precision: str = self.info.get("precision", "?" if "made_from" in self.info else "auto")
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
        self._fetching = threading.Lock()
        self._fetched: set[str] = set()
        self._rows: dict[int, Mapped] = {}
        self._reads = 0
        self._base: dict[int, np.ndarray] = {}
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

    # Columns.

    @cached_property
    def blocks(self) -> Blocks:
        """All blocks; what a recipe asks of a whole store, too (`lvm.sentences.Kinds`)."""
        counts = [shard["blocks"] for shard in self.info["shards"]]
        table = self._block_table()
        return Blocks.of(
            self.channels, counts, np.ascontiguousarray(table[:, 0]), table[:, 1], table[:, 2], table[:, 3:]
        )

    def _block_table(self) -> "Int64[np.ndarray, 'blocks columns']":
        """`layout.BLOCK_COLUMNS` side by side. Those of many shards are as many small files, so a copy is kept."""
        if len(self.shards) < KEPT_TABLE:
            return self._read_block_table()
        key = hashlib.sha256(json.dumps([self.fingerprint, self.channels]).encode()).hexdigest()[:16]
        path = cache_folder() / "blocks" / f"{key}.npy"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(path.with_name(f".lock-{key}")):  # one process of the machine reads them, the others wait
                if not path.is_file():
                    with atomic_path(path) as aside:
                        np.save(aside, self._read_block_table(), allow_pickle=False)
        return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)

    def _read_block_table(self) -> "Int64[np.ndarray, 'blocks columns']":
        self._fetch_columns(*layout.BLOCK_COLUMNS)
        mask, num_pictures, rows, offset = (self._whole(name) for name in layout.BLOCK_COLUMNS)
        columns = [column.astype(np.int64)[:, None] for column in (mask, num_pictures, rows)]
        return np.concatenate([*columns, offset.reshape(len(mask), len(self.channels))], axis=1)

    def columns(self, start: int = 0, stop: int | None = None) -> ItemColumns:
        """The columns of items start .. stop-1."""
        return ItemColumns(self, start, len(self) if stop is None else stop)

    def column(self, name: str, start: int, stop: int) -> np.ndarray:
        """One column of `layout.ITEM_COLUMNS` for items start .. stop-1, as the shards have it."""
        self._fetch_columns(name)
        parts = []
        if start < stop:
            for shard in range(self.shard_of(start), self.shard_of(stop - 1) + 1):
                first = int(self._first_item[shard])
                part = layout.load_column(self.path, self.shards[shard][0], name)
                parts.append(part[max(start - first, 0) : stop - first])
        return _joined(parts, layout.ITEM_COLUMNS[name])

    @cached_property
    def item(self) -> "UInt32[np.ndarray, 'items']":
        """Number of the item's id: views of one id share it."""
        return self._whole("item", self._first_id)

    @cached_property
    def view(self) -> "UInt16[np.ndarray, 'items']":
        return self._whole("view")

    @cached_property
    def label(self) -> "Int32[np.ndarray, 'items']":
        """-1: none."""
        return self._whole("label")

    @cached_property
    def group(self) -> "UInt64[np.ndarray, 'items']":
        return self._whole("group")

    @cached_property
    def channel_mask(self) -> "Int64[np.ndarray, 'items']":
        """Bit c: channel c is in the item itself."""
        return self.columns().channel_mask

    @cached_property
    def num_pictures(self) -> "Int64[np.ndarray, 'items']":
        return self.columns().num_pictures

    def num_pictures_of(self, items: "Int64[np.ndarray, '*shape']") -> "Int64[np.ndarray, '*shape']":
        return self.blocks.num_pictures[self.blocks.of_items(items)]

    @cached_property
    def base(self) -> "Int64[np.ndarray, 'items']":
        """Index of the (id, view 0) item of each item, or -1."""
        return self.base_of(np.arange(len(self)))

    def base_of(self, items: "Int64[np.ndarray, 'm']") -> "Int64[np.ndarray, 'm']":
        """Index of the (id, view 0) item of each of `items`, or -1. Views of an id are in one shard."""
        shards = np.searchsorted(self._first_item, items, side="right") - 1
        base = np.empty(len(items), np.int64)
        for shard in np.unique(shards).tolist():
            (here,) = np.nonzero(shards == shard)
            first = int(self._first_item[shard])
            within = self._bases(shard)[items[here] - first]
            base[here] = np.where(within < 0, -1, within + first)
        return base

    def _bases(self, shard: int) -> "Int64[np.ndarray, 'items']":
        if shard not in self._base:
            if len(self._base) == KEPT_BASES:
                del self._base[next(iter(self._base))]
            self._fetch_columns("item", "view", shard=shard)
            item, view = (layout.load_column(self.path, self.shards[shard][0], name) for name in ("item", "view"))
            self._base[shard] = base_within(item, view, self.info["shards"][shard]["ids"])
        return self._base[shard]

    def _whole(self, name: str, first: np.ndarray | None = None) -> np.ndarray:
        """A column of all shards; numbers that count within a shard are moved by `first`."""
        self._fetch_columns(name)
        parts = [layout.load_column(self.path, shard, name) for shard, _ in self.shards]
        if first is not None and len(parts) > 1:
            parts = [part + part.dtype.type(start) for part, start in zip(parts, first)]
        return _joined(parts, {**layout.ITEM_COLUMNS, **layout.BLOCK_COLUMNS}[name])

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

    def _is_excluded(self, items: "Int64[np.ndarray, 'm']") -> "Bool[np.ndarray, 'm']":
        """np.isin would go through the whole list at each read."""
        place = np.searchsorted(self.excluded, items)
        return self.excluded[np.minimum(place, len(self.excluded) - 1)] == items

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
        return self.columns().has(channel)

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
        if self._remote is not None:
            self._let_old_go()
        items = np.asarray(items, dtype=np.int64)
        bits = np.broadcast_to(self.bit(channels) if isinstance(channels, str) else channels, items.shape)
        frames = np.broadcast_to(frames, items.shape).astype(np.int64)
        _, rows, shards, starts = self._find(items, bits.astype(np.int64), frames)
        positions = starts // 2 + rows * self.tokens_per_picture
        if len(self.shards) == 1 or (len(shards) and (shards == shards[0]).all()):
            return self._flat(int(shards[0]) if len(shards) else 0)[positions]
        codes = np.empty((len(items), self.tokens_per_picture), dtype=np.uint16)
        if self._remote is not None:
            self._bring_together(np.unique(shards).tolist())
        for shard in np.unique(shards):
            (here,) = np.nonzero(shards == shard)
            codes[here] = self._flat(int(shard))[positions[here]]
        return codes

    def shards_of(self, items: "Int64[np.ndarray, 'm']", bits: "Int[np.ndarray, 'm']") -> "Int64[np.ndarray, 'm']":
        """The number of the shard that each picture lies in."""
        items = np.asarray(items, np.int64)
        return self._find(items, np.asarray(bits, np.int64), np.zeros(len(items), np.int64))[2]

    def view_of(self, i: int) -> int:
        return int(self.columns(i, i + 1).view[0])

    def _find(self, items: np.ndarray, bits: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, ...]:
        """(block that holds the picture, row in it, shard, byte where the member's codes start)."""
        if len(items) and (items.min() < 0 or items.max() >= len(self)):
            raise IndexError(f"item {items.min()}..{items.max()} of a store of {len(self)} items")
        if len(self.excluded) and (gone := self._is_excluded(items)).any():
            i = int(items[np.argmax(gone)])
            raise UserError(f"{self.id(i)} is on the exclude list of {self.where}; no reader may show it")
        table, holders = self.blocks, items
        blocks = table.of_items(items)
        starts = table.offset[blocks, bits]
        if (borrowed := np.flatnonzero(starts < 0)).size:
            holders = items.copy()
            holders[borrowed] = self.base_of(items[borrowed])
            blocks[borrowed] = table.of_items(holders[borrowed])
            starts[borrowed] = table.offset[blocks[borrowed], bits[borrowed]]
        missing = (starts < 0) | (holders < 0)
        if missing.any():
            i = int(np.argmax(missing))
            raise UserError(f"{self.id(int(items[i]))} in {self.where} has no channel {self.channels[int(bits[i])]!r}")
        count = table.num_pictures[blocks]
        outside = (frames < 0) | (frames >= count)
        if outside.any():
            i = int(np.argmax(outside))
            raise IndexError(f"frame {frames[i]} of {self.id(int(items[i]))}, which has {count[i]}")
        rows = (holders - table.first_item[blocks]) * count + frames
        return blocks, rows, table.shard[blocks], starts

    def _flat(self, shard: int) -> "UInt16[np.ndarray, 'positions t']":
        """The tar as overlapping runs of t codes: run p starts at uint16 number p of the file.

        Members start at even bytes (tar pads to 512, npy headers to 64), so one fancy index gathers any pictures.
        """
        with self._mapping:
            rows = self._rows.pop(shard).rows if shard in self._rows else self._map(shard)
            self._rows[shard] = Mapped(rows, self._reads, time.time())  # in the order of their last use
            return rows

    def _map(self, shard: int) -> "UInt16[np.ndarray, 'positions t']":
        """Map a tar; what was longest not used is let go before: a map holds a file open, and its tar in the cache."""
        name, sha256 = self.shards[shard]
        path, size = self.tar(shard)
        while len(self._rows) >= kept_tars():
            self._let_go()
        try:
            if self._remote:
                if not path.is_file():
                    self._let_go_before(self._reads)
                with self._remote.open_tar(f"shards/{name}.tar", size, sha256, self._let_go) as file:
                    codes = np.memmap(file, dtype="<u2", mode="r").view(np.ndarray)
            else:
                codes = np.memmap(path, dtype="<u2", mode="r").view(np.ndarray)
        except UserError:
            raise
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}); run `lvm store verify {self.where}`") from None
        if codes.nbytes != size:
            raise UserError(f"{path} is damaged (its size has changed); run `lvm store verify {self.where}`")
        return np.lib.stride_tricks.sliding_window_view(codes, self.tokens_per_picture)

    def _let_go(self) -> bool:
        """Unmap the tar that was longest not used; whether there was one."""
        if not self._rows:
            return False
        shard = next(iter(self._rows))
        mapped = self._rows.pop(shard)
        if self._remote:
            self._remote.tars.used(self.tar(shard)[0], mapped.time)
        return True

    def _let_old_go(self) -> None:
        """Unmap tars of the cache that the last reads did not use, so that others can take their place there."""
        with self._mapping:
            self._reads += 1
            self._let_go_before(self._reads - KEPT_READS)

    def _let_go_before(self, read: int) -> None:
        while self._rows and next(iter(self._rows.values())).read < read:
            self._let_go()

    # Elsewhere.

    @property
    def cache_bytes(self) -> int | None:
        """Bound of the cache that tars are fetched into; None where the store is on this machine."""
        return self._remote.bound if self._remote else None

    def tar(self, shard: int) -> tuple[Path, int]:
        """Where the tar is on this machine, or will be once it was fetched, and how many bytes it has."""
        return layout.tar_path(self.path, self.shards[shard][0]), self.info["shards"][shard]["bytes"]

    def bring(self, shard: int, needed: Collection[Path], stopped: Callable[[], bool]) -> bool:
        """Have a tar in the cache that will be read later; see `RemoteFolder.bring_tar`."""
        assert self._remote is not None
        (name, sha256), (_, size) = self.shards[shard], self.tar(shard)
        return self._remote.bring_tar(f"shards/{name}.tar", size, sha256, needed, stopped)

    def _bring_together(self, shards: list[int]) -> None:
        """Fetch at once what is missing of the tars that are read next, as far as the cache holds them together."""
        missing = [shard for shard in shards if shard not in self._rows and not self.tar(shard)[0].is_file()]
        if len(missing) > 1:
            with self._mapping:
                self._let_go_before(self._reads)  # the cache knows best which of all to drop
            needed = {self.tar(shard)[0] for shard in shards}
            with ThreadPoolExecutor(FETCHED_AT_ONCE) as pool:
                list(pool.map(lambda shard: self.bring(shard, needed, lambda: False), missing))

    def _fetch(self, folder: str, shard: int | None = None) -> None:
        """Bring what a shard, or all of them, have in strings/ or shards/, where the store lies elsewhere."""
        self._fetch_parts(folder, lambda file: file.startswith(f"{folder}/"), shard)

    def _fetch_columns(self, *names: str, shard: int | None = None) -> None:
        """Bring columns of a shard, or of all of them."""
        endings = tuple(f".{name}.npy" for name in names)
        self._fetch_parts(" ".join(names), lambda file: file.endswith(endings), shard)

    def _fetch_parts(self, what: str, wanted: Callable[[str], bool], shard: int | None) -> None:
        if self._remote is None or what in self._fetched:
            return
        with self._fetching:
            if what not in self._fetched:
                self._remote.fetch_parts(self.shards if shard is None else [self.shards[shard]], wanted)
                if shard is None:
                    self._fetched.add(what)

    # Whether all is there.

    def check_files(self) -> None:
        """Raise `UserError` that names the first shard whose tar is missing or of another size, or whose sidecar is
        another shard's.

        A look at each file, no reading of tars: codes that changed and kept their number are found by
        `lvm store verify`, and on arrival where the store lies elsewhere. There one listing is all that is asked for.
        """
        look: Callable[[int], str | None]
        if self._remote is not None:
            look = partial(self._problem_elsewhere, self._remote.sizes("shards"))
        else:
            look = self._problem_here
        with ThreadPoolExecutor(CHECKED_AT_ONCE) as pool:
            for problem in pool.map(look, range(len(self.shards))):
                if problem:
                    pool.shutdown(cancel_futures=True)
                    raise UserError(f"{problem}; copy that shard again or tokenize it again (see lvm store verify)")

    def _problem_here(self, shard: int) -> str | None:
        (path, size), (name, sha256) = self.tar(shard), self.shards[shard]
        try:
            found = path.stat().st_size
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
        if found != size:
            return f"{path} has {found} bytes and store.json says {size}"
        try:
            sidecar = read_json(layout.sidecar_path(self.path, name))
        except UserError as error:
            return str(error)
        if sidecar.get("sha256") != sha256:
            return f"{layout.sidecar_path(self.path, name)} is not the sidecar that store.json was made from"
        return None

    def _problem_elsewhere(self, found: dict[str, int | None], shard: int) -> str | None:
        name, (_, size) = f"{self.shards[shard][0]}.tar", self.tar(shard)
        if not found:  # a server that lists nothing
            return None
        if name not in found:
            return f"{self.where}/shards/{name} is missing"
        if found[name] not in (None, size):
            return f"{self.where}/shards/{name} has {found[name]} bytes and store.json says {size}"
        return None

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
        return self._strings[shard][int(self.column("item", i, i + 1)[0])]

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
        items = items[np.argsort(self.item[items], kind="stable")]  # by id
        first, end = (np.searchsorted(self.item[items], list(numbers.values()), side) for side in ("left", "right"))
        return {id: items[a:b] for id, a, b in zip(numbers, first.tolist(), end.tolist())}

    def locate(self, i: int, channel: str, frame: int = 0) -> tuple[str, str, int]:
        """(shard, tar member, row): where the codes of one picture lie."""
        one = np.array([i], dtype=np.int64)
        blocks, rows, shards, _ = self._find(one, np.array([self.bit(channel)]), np.array([frame]))
        shard = int(shards[0])
        block = int(blocks[0]) - int(self._first_block[shard])
        return self.shards[shard][0], layout.member_name(block, channel), int(rows[0])


def _joined(parts: list[np.ndarray], dtype: Any) -> np.ndarray:
    return np.zeros(0, dtype) if not parts else parts[0] if len(parts) == 1 else np.concatenate(parts)


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
