"""A store that is not there: any number of items whose columns and codes are hashes of their numbers.

For mixtures of data nobody here has (configs/data/uvd_v1.yaml): their plan, its shares, its cost at full size.
"""

import hashlib
import json
import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.runtime import UserError
from lvm.runtime.hashing import hash64, seed_from
from lvm.sources.base import MAX_CHANNELS
from lvm.store.layout import BLOCK_PICTURES

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Int64, UInt16, UInt64

ITEMS_A_SHARD = 1 << 20


@dataclass(frozen=True)
class SimulatedConfig:
    items: int  # pictures, or clips
    channels: tuple[str, ...] = ("image",)  # of each item
    pictures: int = 1  # of each channel of an item; more for clips
    classes: int = 0  # labels 0 .. classes-1, equally many items each; 0: none has a label
    tokens_per_picture: int = 256
    num_codes: int = 8192

    def __post_init__(self) -> None:
        for name in ("items", "pictures", "tokens_per_picture", "num_codes"):
            if getattr(self, name) < 1:
                raise UserError(f"simulated.{name} is {getattr(self, name)}; use 1 or more")
        for name, most in (("pictures", BLOCK_PICTURES), ("num_codes", 1 << 16)):  # as of a store
            if getattr(self, name) > most:
                raise UserError(f"simulated.{name} is {getattr(self, name)}; use {most} or less")
        if self.classes < 0:
            raise UserError(f"simulated.classes is {self.classes}; use 0 (none) or more")
        if not 1 <= len(set(self.channels)) == len(self.channels) <= MAX_CHANNELS:
            raise UserError(f"simulated.channels is {list(self.channels)}; name 1 to {MAX_CHANNELS}, each once")


class SimulatedStore:
    """What a plan uses of `lvm.store.TokenStore`."""

    def __init__(self, name: str, config: SimulatedConfig) -> None:
        self.name, self.config = name, config
        self.where = f"simulated {name}"
        self.channels = config.channels
        self.tokens_per_picture, self.num_codes = config.tokens_per_picture, config.num_codes
        side = int(config.tokens_per_picture**0.5)
        self.grid = (side, side) if side * side == config.tokens_per_picture else (1, config.tokens_per_picture)
        self.tokenizer_fingerprint = hashlib.sha256(b"simulated").hexdigest()
        text = json.dumps({"name": name, **asdict(config)}, sort_keys=True)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self.exclusion, self.excluded, self.unknown_ids = "", np.zeros(0, np.int64), list[str]()
        self._key = seed_from("simulated", name)

    def __len__(self) -> int:
        return self.config.items

    @property
    def blocks(self) -> "SimulatedColumns":
        """What kinds of items there are: one."""
        return SimulatedColumns(self, 0, 1)

    def columns(self, start: int = 0, stop: int | None = None) -> "SimulatedColumns":
        return SimulatedColumns(self, start, len(self) if stop is None else stop)

    def num_pictures_of(self, items: "Int64[np.ndarray, '*shape']") -> "Int64[np.ndarray, '*shape']":
        return np.full(items.shape, self.config.pictures, np.int64)

    def pictures(self, items: Any, channels: Any, frames: Any = 0) -> "UInt16[np.ndarray, 'm t']":
        picture = hash64(self._key, items, channels, frames)
        codes = hash64(picture[:, None], np.arange(self.tokens_per_picture)) % np.uint64(self.num_codes)
        return codes.astype(np.uint16)

    def shards_of(self, items: Any, bits: Any) -> "Int64[np.ndarray, 'm']":
        return np.asarray(items) // ITEMS_A_SHARD

    def locate(self, i: int, channel: str, frame: int = 0) -> tuple[str, str, int]:
        shard, row = divmod(i, ITEMS_A_SHARD)
        return f"{shard:05d}", f"{channel}.npy", row * self.config.pictures + frame

    def id(self, i: int) -> str:
        return f"{self.name}/{i:010d}"

    def view_of(self, i: int) -> int:
        return 0

    def check_files(self) -> None:
        """There is none, which whoever starts a training should know."""
        warnings.warn(f"source {self.name!r} is simulated: its pictures are noise", stacklevel=2)


class SimulatedColumns:
    """Columns of items start .. stop-1; see `lvm.sentences.Columns`."""

    def __init__(self, store: SimulatedStore, start: int, stop: int) -> None:
        self._store, self._config, self._start, self._stop = store, store.config, start, stop
        self.channels = store.channels

    def _full(self, value: int, dtype: Any = np.int64) -> Any:
        return np.broadcast_to(np.asarray(value, dtype), (self._stop - self._start,))

    @property
    def channel_mask(self) -> "Int64[np.ndarray, 'items']":
        return self._full((1 << len(self.channels)) - 1)

    @property
    def num_pictures(self) -> "Int64[np.ndarray, 'items']":
        return self._full(self._config.pictures)

    @property
    def view(self) -> "UInt16[np.ndarray, 'items']":
        return self._full(0, np.uint16)

    @property
    def label(self) -> "Int[np.ndarray, 'items']":
        if not self._config.classes:
            return self._full(-1, np.int32)
        return (np.arange(self._start, self._stop) % self._config.classes).astype(np.int32)

    @property
    def group(self) -> "UInt64[np.ndarray, 'items']":
        return hash64(self._store._key, np.arange(self._start, self._stop, dtype=np.uint64))

    def has(self, channel: str) -> "Bool[np.ndarray, 'items']":
        return self._full(channel in self.channels, bool)
