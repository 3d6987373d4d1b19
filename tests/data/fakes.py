"""A token store in memory with the read API of `lvm.store.TokenStore`, small enough to look through."""

import hashlib

import numpy as np

from lvm.runtime.hashing import group_hash, hash64

STEADY = ("image", "depth", "normal", "gray")
BY_VIEW = ("segmentation", "edge", "box", "masked", "noisy", "dark", "relit")


class FakeStore:
    """Scenes with the steady channels in view 0 and the others in `views_each` of `num_views` views, and clips.

    The code of (item, channel, frame, position) is a hash, so any picture can be told from any other.
    """

    def __init__(
        self, scenes=40, clips=6, num_views=3, views_each=2, frames=(16,), tokens=4, codes=1 << 14, name="world"
    ):
        self.channels = STEADY + BY_VIEW
        self.tokens_per_picture, self.grid, self.num_codes = tokens, (1, tokens), codes
        self.tokenizer_fingerprint = hashlib.sha256(b"tokenizer").hexdigest()
        self.name = name
        rows = []  # id, view, label, number of pictures, channels
        for i in range(scenes):
            rows.append((f"{name}-scene-{i}", 0, i % 3, 1, STEADY))
            for v in range(views_each):
                rows.append((f"{name}-scene-{i}", 1 + (i + v) % num_views, i % 3, 1, BY_VIEW))
        for i in range(clips):
            rows.append((f"{name}-clip-{i}", 0, -1, frames[i % len(frames)], ("image",)))
        self.ids = [row[0] for row in rows]
        number = {id: n for n, id in enumerate(dict.fromkeys(self.ids))}
        self.item = np.array([number[id] for id in self.ids], np.uint32)
        self.view = np.array([row[1] for row in rows], np.uint16)
        self.label = np.array([row[2] for row in rows], np.int32)
        self.group = np.array([group_hash(id) for id in self.ids], np.uint64)
        self.num_pictures = np.array([row[3] for row in rows], np.uint16)
        self.channel_mask = np.array([sum(1 << self.channels.index(c) for c in row[4]) for row in rows], np.int64)
        self.block = np.zeros(len(rows), np.uint32)
        zero = {id: i for i, id in enumerate(self.ids) if self.view[i] == 0}
        self.base = np.array([zero[id] for id in self.ids], np.int64)
        self.excluded, self.exclusion, self.where = np.zeros(0, np.int64), "", f"fake {name}"
        self.shards = [("00000", hashlib.sha256(repr(rows).encode()).hexdigest())]
        self.fingerprint = hashlib.sha256(
            f"{self.tokenizer_fingerprint}{self.shards}{codes}{tokens}".encode()
        ).hexdigest()

    def __len__(self):
        return len(self.ids)

    @property
    def blocks(self):
        return self.columns()

    def columns(self, start=0, stop=None):
        return FakeColumns(self, start, len(self) if stop is None else stop)

    def num_pictures_of(self, items):
        return self.num_pictures[items].astype(np.int64)

    def view_of(self, i):
        return int(self.view[i])

    def shards_of(self, items, bits):
        return np.zeros(len(items), np.int64)

    def pictures(self, items, channels, frames=0):
        items = np.asarray(items, np.int64)
        bits = self.channels.index(channels) if isinstance(channels, str) else channels
        bits = np.broadcast_to(bits, items.shape)
        frames = np.broadcast_to(frames, items.shape)
        own = (self.channel_mask[items] >> bits) & 1 == 1
        holder = np.where(own, items, self.base[items])
        assert (((self.channel_mask[holder] >> bits) & 1) == 1).all()
        assert ((frames >= 0) & (frames < self.num_pictures[holder])).all()
        position = np.arange(self.tokens_per_picture)
        hashed = hash64(holder[:, None], bits[:, None], frames[:, None], position[None])
        return (hashed % np.uint64(self.num_codes)).astype(np.uint16)

    def id(self, i):
        return self.ids[i]

    def locate(self, i, channel, frame=0):
        own = (self.channel_mask[i] >> self.channels.index(channel)) & 1 == 1
        return "00000", f"b0000.{channel}.npy", int(i if own else self.base[i]) * 100 + frame


class FakeColumns:
    """Items start .. stop-1 of a fake store."""

    def __init__(self, store, start, stop):
        self.store, self.run, self.channels = store, slice(start, stop), store.channels
        for name in ("channel_mask", "num_pictures", "view", "label", "group"):
            setattr(self, name, getattr(store, name)[self.run])

    def has(self, channel):
        here = (self.store.channel_mask >> self.channels.index(channel)) & 1 == 1
        return (here | here[self.store.base])[self.run]
