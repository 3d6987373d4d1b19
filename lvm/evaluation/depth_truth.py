"""The distances behind a depth picture: what its grays mean, and what is known.

    WorldDepth     read back from the picture, in world units, at most half a gray level off; black is unknown
    FilesDepth     of a source of files: the 16-bit values themselves, however their picture was drawn
    NYUv2          (datasets/nyuv2.py) metres

Truth beyond what is drawn black is left out: an answer could not tell it from what is unknown.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lvm.evaluation.annotated import Annotated, SourceItems, WorldItems
from lvm.pictures import depth
from lvm.pictures.geometry import geometries
from lvm.runtime import UserError
from lvm.sources.base import BrokenItem, Source
from lvm.sources.collection import CollectionSource
from lvm.sources.drawing import Depth, FilesConfig
from lvm.sources.manifest import ManifestSource
from lvm.sources.pictures import PicturesSource
from lvm.world.render import FAR, NEAR

if TYPE_CHECKING:
    from jaxtyping import Float

    from lvm.evaluation.cases import Picture

PROBED = 4  # pictures of a source, which tell the kind of its depth


@dataclass(frozen=True)
class DepthTruth:
    values: "Float[np.ndarray, 'y x']"  # NaN where nothing is known, and beyond `cap`
    near: float  # drawn white
    far: float  # drawn black
    cap: float  # the farthest distance that is scored


class OtherDepth(BrokenItem):
    """Depth of a kind that says no distances, or says them otherwise than was asked."""


class DepthOf(Protocol):
    unit: str
    remedy: str  # of depth that is all of another kind
    one_range: bool  # every picture is drawn between the same near and far, so that a gray is a distance
    about: str

    def __call__(self, item: int, view: int) -> DepthTruth:
        """Raises `BrokenItem`, of depth of another kind `OtherDepth`."""


def known(values: "Float[np.ndarray, 'y x']", far: float) -> "Float[np.ndarray, 'y x']":
    """NaN where a distance is not above 0, or beyond `far`."""
    values = np.asarray(values, np.float64)
    with np.errstate(invalid="ignore"):
        return np.where((values > 0) & (values <= far), values, np.nan)


class WorldDepth:
    unit, one_range, remedy = "world units", True, ""
    about = f"read back from its picture, drawn from {NEAR} to {FAR}: at most half a gray level off; black is unknown"

    def __init__(self, data: WorldItems) -> None:
        self._data = data

    def __call__(self, item: int, view: int) -> DepthTruth:
        return from_picture(self._data.read(item, view)["depth"], NEAR, FAR)


def from_picture(picture: "Picture", near: float, far: float) -> DepthTruth:
    return DepthTruth(np.where(picture.any(-1), depth.read(picture, near, far), np.nan), near, far, far)


class FilesDepth:
    """Of pictures and manifests, alone or in a collection: 16 bits. `drawn`: the near and far that depth pictures of 8
    bits were drawn between, in inverse depth; then of any source."""

    unit = "the files' unit"

    def __init__(self, data: SourceItems, size: int, drawn: tuple[float, float] | None = None) -> None:
        self._data, self._size, self._drawn = data, size, drawn
        if drawn:
            self.remedy = "say depth_near and depth_far in the source's YAML, not near and far"
            self.one_range = True
            self.about = f"read back from its picture, drawn from {drawn[0]} to {drawn[1]}; black is unknown"
            return
        self.remedy = "give near= and far= that it was drawn between"
        self.one_range = all(has_range(source) for source in parts_with_depth(data.source))
        between = "its source's depth_near and depth_far" if self.one_range else "its own 2nd and 98th percentile"
        self.about = f"16-bit values, sampled at the nearest pixel; drawn between {between}; 0 and beyond is unknown"

    def by_source(self, items: Iterable[int]) -> list[list[int]]:
        """Items of each part of a collection, which may differ in kind."""
        found: dict[int, list[int]] = {}
        for item in items:
            source, _ = part_of(self._data.source, self._data.unit(item))
            found.setdefault(id(source), []).append(item)
        return list(found.values())

    def __call__(self, item: int, view: int) -> DepthTruth:
        source, unit = part_of(self._data.source, self._data.unit(item))
        if not isinstance(source, PicturesSource | ManifestSource):
            if self._drawn:
                return from_picture(self._data.read(item, view)["depth"], *self._drawn)
            raise OtherDepth(source.name, "does not say distances")
        frame = source.first_frame(unit)
        found = frame.annotations["depth"]
        name = getattr(found, "name", frame.name)
        if isinstance(found, Depth) and self._drawn:
            raise OtherDepth(name, "has 16 bits, which near and far do not scale")
        if self._drawn:
            return from_picture(self._data.read(item, view)["depth"], *self._drawn)
        if not isinstance(found, Depth):
            raise OtherDepth(name, "has 8 bits, which say no distances")
        geometry = self._data.geometry(item, view) or geometries(*frame.size)[0]
        values = found.distances(geometry, self._size)
        near, far = found.range(values)
        return DepthTruth(known(values, far), near, far, far)


def refuse_other_depth(data: Annotated, truth: DepthOf, runs: Iterable[Sequence[int]]) -> None:
    """Raises `UserError` where the first depth of a run of items is all `OtherDepth`: no case could be scored. A single
    file of another kind is left to its case."""
    for run in runs:
        others = []
        for item in run[:PROBED]:
            try:
                truth(item, data.views(item)[0])
            except OtherDepth as error:
                others.append(error)
            except BrokenItem:
                continue
            else:
                break
        else:
            if others:
                raise UserError(f"{others[0].file} {others[0].reason}; {truth.remedy}")


def part_of(source: Source, unit: int) -> tuple[Source, int]:
    while isinstance(source, CollectionSource):
        source, unit = source.part(unit)
    return source, unit


def parts_with_depth(source: Source) -> list[Source]:
    if isinstance(source, CollectionSource):
        return [part for own in source.sources.values() for part in parts_with_depth(own)]
    return [source] if "depth" in source.channels else []


def has_range(source: Source) -> bool:
    config = getattr(source, "config", None)
    return isinstance(config, FilesConfig) and config.depth_near is not None and config.depth_far is not None
