"""A source of pictures drawn from counters, some of which may be made to fail."""

import time
from dataclasses import dataclass

import numpy as np

from lvm.sources import BrokenItem, Item


@dataclass(frozen=True)
class ToySource:
    pictures: int = 90
    clips: int = 10
    broken: tuple[int, ...] = ()
    seconds_per_unit: float = 0.0
    key: str = "toy"
    name: str = "toy"
    channels: tuple[str, ...] = ("image", "depth", "noisy")

    def __len__(self):
        return self.pictures + self.clips

    def unit_id(self, i):
        return f"unit{i}"

    def fingerprint(self):
        return f"{self.key}-{self.pictures}-{self.clips}"

    def picture(self, i, channel, frame, size):
        rng = np.random.default_rng([i, self.channels.index(channel), frame])
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        return coarse.repeat(size // 4, 0).repeat(size // 4, 1)

    def read(self, i, size):
        time.sleep(self.seconds_per_unit)
        if i in self.broken:
            raise BrokenItem(f"file{i}.jpg", "is made to fail")

        def item(view, label, channels, frames):
            drawn = {c: np.stack([self.picture(i, c, view * 100 + f, size) for f in range(frames)]) for c in channels}
            meta = {"unit": i} if view == 0 else {}
            return Item(self.unit_id(i), f"group{i // 2}", view, label, drawn, licence="CC0", meta=meta)

        if i >= self.pictures:
            return [item(0, -1, ("image",), 6)]
        items = [item(0, i % 3, ("image", "depth"), 1)]
        return items + [item(view, i % 3, ("noisy",), 1) for view in (1, 2)]
