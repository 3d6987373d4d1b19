"""Annotated pictures by number: what pair suites choose queries and pairs from.

    WorldItems     scenes, objects, turntables or puzzles of the embedded world's test split: nothing was trained on
    SourceItems    any source of files: folders, manifests, COCO, tars; queries are of held-out groups alone
    (suites/...)   layouts of public datasets

`read(i, view)` gives the channels of one item as squares of one size. Items that share a view share what it stands
for (a palette, a line colour).
"""

import hashlib
import sys
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lvm.evaluation.prompts import pick
from lvm.pictures.geometry import Geometry
from lvm.runtime import UserError
from lvm.runtime.hashing import group_hash, hash64, held_out
from lvm.sources.base import BrokenItem, Source
from lvm.sources.reading import read_units
from lvm.world import turntables
from lvm.world.objects import OBJECT_CLASSES, PERSON

if TYPE_CHECKING:
    from lvm.evaluation.cases import Picture
    from lvm.sources.world import WorldSource

WORLD = "world_evaluated"  # configs/data/source: the embedded default
MOST_KEPT = 96  # units read last, whose pictures are kept
MAX_UNITS = 4000  # of a source of files that are looked at, in keyed order
MOST_TOLD = 3  # pictures without an annotation, in one line


class Annotated(Protocol):
    name: str

    @property
    def channels(self) -> tuple[str, ...]:
        """That some item has."""

    @property
    def ids(self) -> Sequence[str]: ...
    @property
    def groups(self) -> Sequence[str]:
        """The original photo or object: never both query and pair."""

    @property
    def labels(self) -> Sequence[str]:
        """Classes; "" for none."""

    def __len__(self) -> int: ...

    def has(self, i: int, channel: str) -> bool: ...

    def may_ask(self, i: int) -> bool:
        """Whether item i may be a query: nothing of its group was trained on."""

    def views(self, i: int) -> Sequence[int]:
        """Under which it can be drawn."""

    def read(self, i: int, view: int, channels: Collection[str] | None = None) -> "Mapping[str, Picture]":
        """Those of `channels`, and whatever came with them; None: all. Raises `BrokenItem`."""

    def fingerprint(self) -> str:
        """Of the list of items and how they are drawn."""


class Remembered:
    """The pictures of the units read last."""

    def __init__(self, most: int = MOST_KEPT):
        self._most, self._kept = most, OrderedDict[Any, Any]()

    def __call__(self, key: Any, read: Any) -> Any:
        if key not in self._kept:
            self._kept[key] = read()
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


class WorldItems:
    """Units of one kind of a world of the test split."""

    def __init__(self, world: "WorldSource", kind: str, size: int, latents: Sequence[int] | None = None):
        if world.config.split != "test":
            raise UserError(f"evaluation needs a world of split test, not {world.config.split}")
        self.world, self.kind, self._size = world, kind, size
        self.name = f"world/{kind}"
        self._units = world.units(kind)
        self.ids = self.groups = [world.unit_id(i) for i in self._units]
        number = [world.label(i) for i in self._units]
        self.labels = [world.labels[n] if n >= 0 else "" for n in number]
        self._latents = list(range(world.num_trained_latents) if latents is None else latents)
        self._kept = Remembered()
        self.channels = tuple(self.read(0, self.views(0)[0])) if len(self._units) else ()
        # Of objects only people have a pose, unless people stand in every picture.
        self._posed = set(range(len(self._units)))
        if kind == "object" and "pose" in world.channels and "pose" not in self.channels:
            self._posed = {i for i, label in enumerate(self.labels) if label == OBJECT_CLASSES[PERSON]}
            self.channels += ("pose",) if self._posed else ()

    def __len__(self) -> int:
        return len(self._units)

    def has(self, i: int, channel: str) -> bool:
        return channel in self.channels and (channel != "pose" or i in self._posed)

    def may_ask(self, i: int) -> bool:
        return True

    def views(self, i: int) -> Sequence[int]:
        return [1 + latent for latent in self._latents] if self.kind in ("scene", "object") else [0]

    def read(self, i: int, view: int, channels: Collection[str] | None = None) -> "Mapping[str, Picture]":
        wanted = None if channels is None else frozenset(channels)
        return self._kept((i, view, wanted), lambda: self._drawn(i, view, wanted))

    def _drawn(self, i: int, view: int, wanted: Collection[str] | None) -> "Mapping[str, Picture]":
        unit = self._units[i]
        if self.kind in ("scene", "object"):
            steady, drawn = self.world.draw(unit, [view - 1], self._size, wanted)
            return {**steady, **drawn}
        if self.kind == "turntable":  # one of its views
            shown = int(hash64(group_hash(self.ids[i]), 7) % np.uint64(turntables.NUM_VIEWS))
            turntable, drawn_of = self.world.turntable(unit - self._units.start), set(self.world.config.channels)
            return turntables.view_channels(
                turntable, shown, self._size, drawn_of if wanted is None else drawn_of & {*wanted}
            )
        item = self.world.read(unit, self._size)[0]
        return {name: pictures[0] for name, pictures in item.channels.items()}

    def fingerprint(self) -> str:
        return f"{self.world.fingerprint()} {self.kind} {self._latents} {self._size}"


@dataclass(frozen=True)
class HeldOut:
    """Which groups were never trained on: what the plan of the training says (`held_out_per_mille`, `exclude_groups`).
    1000 per mille: all of them."""

    per_mille: int = 1000
    groups: tuple[str, ...] = ()

    def __contains__(self, group: str) -> bool:
        return group in self.groups or bool(held_out(np.asarray(group_hash(group), np.uint64), self.per_mille))


@dataclass(frozen=True)
class _Found:
    unit: int
    id: str
    group: str
    label: int
    views: Mapping[int, tuple[str, ...]] = field(default_factory=dict)  # view -> channels of its own


class SourceItems:
    """Still pictures of a source. All units (at most `MAX_UNITS`) are read once to learn what there is; broken ones are
    named in `broken`. `unmatched`: a line for each that lacks an annotation that others beside it have, of which one
    line on stderr tells. Raises `UserError` where there is nothing to ask."""

    def __init__(self, source: Source, size: int, kept_out: HeldOut, seed: int = 0, workers: int = 0):
        self.source, self.name, self._size, self._kept_out = source, source.name, size, kept_out
        self.broken: list[str] = []
        self._found: list[_Found] = []
        units = pick(min(MAX_UNITS, len(source)), np.arange(len(source)), (seed, 5)).tolist()
        for unit, items in read_units(source, sorted(units), 16, workers=workers):
            if isinstance(items, BrokenItem):
                self.broken.append(str(items))
            elif items[0].num_pictures == 1:
                views = {item.view: tuple(item.channels) for item in items}
                self._found.append(_Found(unit, items[0].id, items[0].group, items[0].label, views))
        names = getattr(source, "labels", ())
        self.ids = [found.id for found in self._found]
        self.groups = [found.group for found in self._found]
        self.labels = [names[f.label] if 0 <= f.label < len(names) else "" for f in self._found]
        every = {channel for found in self._found for own in found.views.values() for channel in own}
        self.channels = tuple(name for name in source.channels if name in every)
        self.unmatched: list[str] = list(getattr(source, "unmatched", ()))
        if self.unmatched:
            first = "; ".join(self.unmatched[:MOST_TOLD])
            number = f"{len(self.unmatched):,} pictures lack an annotation that others beside them have"
            print(f"{self.name}: {number}, the first {first}", file=sys.stderr)
        self._kept = Remembered()

    def __len__(self) -> int:
        return len(self._found)

    def has(self, i: int, channel: str) -> bool:
        return any(channel in own for own in self._found[i].views.values())

    def may_ask(self, i: int) -> bool:
        return self.groups[i] in self._kept_out

    def views(self, i: int) -> Sequence[int]:
        return sorted(self._found[i].views)

    def read(self, i: int, view: int, channels: Collection[str] | None = None) -> "Mapping[str, Picture]":
        found = self._found[i]
        items = self._kept(i, lambda: self.source.read(found.unit, self._size))
        pictures = {item.view: {name: frames[0] for name, frames in item.channels.items()} for item in items}
        return {**pictures[min(pictures)], **pictures.get(view, {})}

    def unit(self, i: int) -> int:
        """Of the source."""
        return self._found[i].unit

    def geometry(self, i: int, view: int) -> Geometry | None:
        """The part of the picture that `read` draws; None: all of it."""
        items = self._kept(i, lambda: self.source.read(self._found[i].unit, self._size))
        cut = {item.view: Geometry(**item.meta["geometry"]) for item in items if "geometry" in item.meta}
        return cut.get(view, cut[min(cut)]) if cut else None

    def fingerprint(self) -> str:
        ids = hashlib.sha256("\n".join(self.ids).encode("utf-8", "backslashreplace")).hexdigest()
        return f"{self.source.fingerprint()} {ids} {self._kept_out} {self._size}"
