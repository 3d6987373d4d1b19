"""Several sources as one, side by side: their ids, groups and labels carry the name of their part."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lvm.runtime import UserError
from lvm.sources.base import MAX_CHANNELS, Item, Source
from lvm.sources.pictures import CHANNELS

# Options of any kind that name a file or a folder.
PLACES = ("path", "root", "images", "annotations", "poses", "panoptic", "panoptic_folder", "captions", "classes")


@dataclass(frozen=True)
class CollectionConfig:
    sources: dict[str, Any]  # name: the options of a source, its kind among them
    root: str = ""  # folder that the sources' relative paths start from; the current one if empty
    name: str = "collection"
    views: int | None = None  # of every source of files; null: each its own
    parts: tuple[str, ...] = ()  # names of the sources that are used; empty: all


class CollectionSource:
    """Units of the sources in the order given. Raises `UserError` for a source that cannot be opened."""

    def __init__(self, config: CollectionConfig) -> None:
        from lvm.sources.opening import open_source

        self.name = config.name
        root = Path(config.root).expanduser()
        self.sources: dict[str, Source] = {}
        for name in config.parts:
            if name not in config.sources:
                raise UserError(f"parts names {name!r}, which `sources` lacks; known: {', '.join(config.sources)}")
        for name, given in config.sources.items():
            if config.parts and name not in config.parts:
                continue
            if not isinstance(given, Mapping):
                raise UserError(f"sources.{name} is {given!r}; it must be a mapping of a source's options")
            options = dict(given)
            below_root = ""
            for key in PLACES:
                if options.get(key) and "://" not in str(options[key]):
                    place = Path(str(options[key])).expanduser()
                    options[key] = str(root / place)
                    below_root = below_root if place.is_absolute() else f" (its root is {str(root)!r})"
            if config.views is not None and options.get("kind") != "world":
                options["views"] = config.views
            if options.get("kind") == "collection":
                options.setdefault("root", str(root))
            named = options if options.get("kind") == "world" else {**options, "name": name}
            try:
                self.sources[name] = open_source(named)
            except UserError as error:
                raise UserError(f"part {name} of {config.name}{below_root}: {error}") from None
        if not self.sources:
            raise UserError("a collection needs `sources`: name: {kind: ..., path: ...}")
        found = {channel for source in self.sources.values() for channel in source.channels}
        self.channels = tuple([c for c in CHANNELS if c in found] + sorted(found - set(CHANNELS)))
        if len(self.channels) > MAX_CHANNELS:
            raise UserError(f"the sources have {len(self.channels)} channels together; a store holds {MAX_CHANNELS}")
        resizes = {getattr(source, "resize", "none") for source in self.sources.values()} - {"none"}
        self.resize = "+".join(sorted(resizes)) or "none"
        self.labels = tuple(
            f"{name}/{label}" for name, source in self.sources.items() for label in getattr(source, "labels", ())
        )
        # A part that numbers its classes without naming them (tars) keeps none: its numbers would be another part's.
        self._num_labels = [len(getattr(source, "labels", ())) for source in self.sources.values()]
        self._first_label = np.cumsum([0, *self._num_labels]).tolist()
        self._first_unit = np.cumsum([0, *(len(source) for source in self.sources.values())]).tolist()
        self._names = list(self.sources)

    def _find(self, i: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._first_unit, i, side="right")) - 1
        return part, i - self._first_unit[part]

    def __len__(self) -> int:
        return self._first_unit[-1]

    def unit_id(self, i: int) -> str:
        part, unit = self._find(i)
        return f"{self._names[part]}/{self.sources[self._names[part]].unit_id(unit)}"

    @property
    def unmatched(self) -> list[str]:
        parts = ((name, getattr(source, "unmatched", [])) for name, source in self.sources.items())
        return [f"{name}/{line}" for name, lines in parts for line in lines]

    def part(self, i: int) -> tuple[Source, int]:
        """The source of unit i, and its number there."""
        part, unit = self._find(i)
        return self.sources[self._names[part]], unit

    def fingerprint(self) -> str:
        parts = [f"{name} {source.fingerprint()}" for name, source in self.sources.items()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def read(self, i: int, size: int) -> list[Item]:
        """Raises `BrokenItem`."""
        part, unit = self._find(i)
        name = self._names[part]
        return [
            dataclasses.replace(
                item,
                id=f"{name}/{item.id}",
                group=f"{name}/{item.group}",
                label=item.label + self._first_label[part] if 0 <= item.label < self._num_labels[part] else -1,
            )
            for item in self.sources[name].read(unit, size)
        ]
