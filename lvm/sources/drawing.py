"""From what a file source found to items: every channel through one geometry, degraded copies, mirrored and cut views.

A source that knows files makes `Record`s: frames, each a picture with the annotations that belong to it. How these
become square pictures, views and items is the same for all of them and decided here.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from lvm.pictures import boxes, decode, depth, instances, segmentation, skeletons
from lvm.pictures.derive import DEGRADATIONS, DERIVED, derive
from lvm.pictures.geometry import Geometry, Resize, geometries
from lvm.runtime import UserError
from lvm.runtime.hashing import seed_from, uniform
from lvm.sources.base import Item

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8


@dataclass(frozen=True, kw_only=True)
class DrawingConfig:
    """Options of every source of files."""

    resize: Resize = "squash"  # crop: the central square; six: six squares that cover the picture, a view each
    flip: bool = False  # each of these mirrored too, as further views
    views: int = 2  # draws of the degraded channels for each picture
    derived: tuple[str, ...] = DERIVED  # channels made from the picture itself (not of clips)
    licence: str = ""  # kept with each item, where the data say none themselves
    max_pixels: int = decode.MAX_PIXELS  # files of more are refused by their header

    def __post_init__(self) -> None:
        for name in self.derived:
            if name not in DEGRADATIONS:
                raise UserError(f"derived channel {name!r} is unknown; known: {', '.join(DEGRADATIONS)}")
        if not 0 <= self.views < 2**15:
            raise UserError(f"views {self.views} must be from 0 to {2**15 - 1}")


@dataclass(frozen=True, kw_only=True)
class FilesConfig(DrawingConfig):
    """Of sources whose annotations are files."""

    classes: str = ""  # JSON file of the classes of label maps: a list of names, or of objects with id and name
    disparity: bool = False  # 16-bit depth files hold disparities
    depth_near: float | None = None  # distance drawn white, in the files' unit; null: a picture's 2nd percentile
    depth_far: float | None = None  # distance drawn black; null: its 98th

    def __post_init__(self) -> None:
        super().__post_init__()
        near, far = self.depth_near, self.depth_far
        if any(value is not None and value <= 0 for value in (near, far)) or (near and far and near >= far):
            raise UserError(f"depth_near {near} and depth_far {far} must be above 0, the smaller first")


def read_classes(file: str) -> dict[int, int]:
    """Value in a label map -> class: the place of its object in a list of {"id", "name"}, one more for "unlabelled" in
    front; of a list of names, the values are the classes."""
    path = Path(file).expanduser()
    try:
        listed = json.loads(path.read_text())
        if not isinstance(listed, list) or not listed:
            raise ValueError("it holds no list")
        if all(isinstance(entry, str) for entry in listed):
            return {value: value for value in range(len(listed))}
        return {int(entry["id"]): place for place, entry in enumerate(listed, 1)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"classes {path} cannot be used ({error}); it is a list of names, or of id and name") from None


# Annotations before they are drawn.


class Annotation(Protocol):
    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height where it has them; they must be the picture's."""

    def draw(
        self, geometry: Geometry, size: int, photo: "UInt8[np.ndarray, 'size size 3']"
    ) -> "UInt8[np.ndarray, 'size size 3']": ...


@dataclass(frozen=True)
class _OfImage:
    image: Image.Image
    name: str  # of the file, for errors

    @property
    def size(self) -> tuple[int, int] | None:
        return self.image.size


@dataclass(frozen=True)
class Photo(_OfImage):
    """Smooth colours."""

    def draw(self, geometry: Geometry, size: int, photo: Any) -> "UInt8[np.ndarray, 'y x 3']":
        return decode.shrink(self.image, size, geometry, self.name)


@dataclass(frozen=True)
class Normals(_OfImage):
    """x, y, z of the surface as red, green, blue: mirrored, x points the other way. Black is unknown."""

    def draw(self, geometry: Geometry, size: int, photo: Any) -> "UInt8[np.ndarray, 'y x 3']":
        drawn = decode.shrink(self.image, size, geometry, self.name)
        if geometry.mirrored:
            drawn = drawn.copy()
            drawn[..., 0] = np.where(drawn.any(-1), 255 - drawn[..., 0], 0)
        return drawn


@dataclass(frozen=True)
class Colours(_OfImage):
    """Colours that mean something and must not be mixed."""

    def draw(self, geometry: Geometry, size: int, photo: Any) -> "UInt8[np.ndarray, 'y x 3']":
        return decode.shrink_colours(self.image, size, geometry, self.name)


@dataclass(frozen=True)
class Lines(_OfImage):
    """Bright lines on black."""

    def draw(self, geometry: Geometry, size: int, photo: Any) -> "UInt8[np.ndarray, 'y x 3']":
        return decode.shrink_lines(self.image, size, geometry, self.name)


@dataclass(frozen=True)
class Labels(_OfImage):
    """A label map; `classes` gives each value its class (others are class 0), None takes values as classes."""

    classes: Mapping[int, int] | None = None

    def draw(self, geometry: Geometry, size: int, photo: Any) -> "UInt8[np.ndarray, 'y x 3']":
        labels = decode.shrink_labels(self.image, size, geometry, self.name)
        if self.classes is not None:
            values, places = np.unique(labels, return_inverse=True)
            labels = np.array([self.classes.get(int(value), 0) for value in values])[places].reshape(labels.shape)
        return segmentation.draw(labels)


@dataclass(frozen=True)
class Instances(_OfImage):
    """A map of numbered objects; of more than the palette has colours for, the smallest are left out."""

    def draw(self, geometry: Geometry, size: int, photo: Any) -> "UInt8[np.ndarray, 'y x 3']":
        numbers = instances.by_size(decode.shrink_labels(self.image, size, geometry, self.name))
        return instances.draw(np.where(numbers < len(segmentation.PALETTE), numbers, 0))


@dataclass(frozen=True)
class Depth(_OfImage):
    """16-bit values, 0 unknown: distances, or with `disparity` their inverses. Drawn between `near` and `far` (in the
    values' unit), by default the drawn part's 2nd and 98th percentile; unknown is black."""

    disparity: bool = False
    near: float | None = None
    far: float | None = None

    def distances(self, geometry: Geometry, size: int) -> "Float[np.ndarray, 'y x']":
        """In the values' unit, of disparities their inverse; unknown is not above 0, or NaN."""
        part = geometry.cut(self.image).resize((size, size), Image.Resampling.NEAREST)
        values = geometry.turn(np.asarray(part)).astype(np.float32)
        return depth.from_disparity(values) if self.disparity else values

    def range(self, distances: "Float[np.ndarray, 'y x']") -> tuple[float, float]:
        """What is drawn white and what black."""
        near, far = depth.percentiles(distances)
        near, far = near if self.near is None else self.near, far if self.far is None else self.far
        return near, max(far, near * 1.001)

    def draw(self, geometry: Geometry, size: int, photo: Any) -> "UInt8[np.ndarray, 'y x 3']":
        distances = self.distances(geometry, size)
        return depth.draw(distances, *self.range(distances))


@dataclass(frozen=True)
class Skeletons:
    """Joints of people in the picture's pixels, NaN where unknown; on black, or over the photo. In a mirrored picture
    the joints of each of `pairs` (a left and a right one) change places: left stays the person's left."""

    people: "Sequence[Float[np.ndarray, 'k 2']]"
    limbs: Sequence[tuple[int, int]]
    pairs: Sequence[tuple[int, int]] = ()
    on_photo: bool = False
    size: tuple[int, int] | None = None

    def draw(self, geometry: Geometry, size: int, photo: "UInt8[np.ndarray, 'y x 3']") -> "UInt8[np.ndarray, 'y x 3']":
        placed = [geometry.points(person, size) for person in self.people]
        for person in placed if geometry.mirrored else ():
            for a, b in self.pairs:
                person[[a, b]] = person[[b, a]]
        return skeletons.draw(placed, self.limbs, photo if self.on_photo else np.zeros_like(photo))


def pose_channels(
    people: "Sequence[Float[np.ndarray, 'k 2']]",
    limbs: Sequence[tuple[int, int]],
    pairs: Sequence[tuple[int, int]],
    on_photo: bool,
) -> dict[str, Annotation]:
    """Skeletons on black and, if asked, over the photo, as the paper has them; see `Skeletons`."""
    found: dict[str, Annotation] = {"pose": Skeletons(people, limbs, pairs)}
    return found | ({"pose_photo": Skeletons(people, limbs, pairs, True)} if on_photo else {})


@dataclass(frozen=True)
class Boxes:
    """(left, top, right, bottom) in the picture's pixels; outlined on the photo."""

    boxes: "Sequence[tuple[float, float, float, float]]"
    colour: tuple[int, int, int] = (255, 0, 0)
    size: tuple[int, int] | None = None

    def draw(self, geometry: Geometry, size: int, photo: "UInt8[np.ndarray, 'y x 3']") -> "UInt8[np.ndarray, 'y x 3']":
        placed = []
        for left, top, right, bottom in self.boxes:
            corners = np.sort(geometry.points(np.array([[left, top], [right, bottom]]), size), axis=0)
            (x0, y0), (x1, y1) = np.clip(np.rint(corners), 0, size).astype(int).tolist()
            if x1 > x0 and y1 > y0:
                placed.append((x0, y0, x1, y1))
        return boxes.draw(photo, placed, self.colour, max(2, round(size / 32)))  # thinner ones do not last


def read_annotation(channel: str, file: Path, config: FilesConfig, classes: Mapping[int, int] | None) -> Annotation:
    """An annotation's file, as `make_annotation` takes it."""
    return make_annotation(channel, decode.load(file, config.max_pixels), str(file), config, classes)


def make_annotation(
    channel: str, image: Image.Image, name: str, config: FilesConfig, classes: Mapping[int, int] | None
) -> Annotation:
    """A picture as what it is: a label map, deep depth, lines, colours that mean something, smooth ones."""
    if channel in ("segmentation", "instance") and image.mode not in ("RGB", "RGBA"):
        return Labels(image, name, classes) if channel == "segmentation" else Instances(image, name)
    if channel == "depth" and image.mode in decode.DEEP_MODES:
        return Depth(image, name, config.disparity, config.depth_near, config.depth_far)
    if channel == "edge":
        return Lines(image, name)
    if channel == "normal":
        return Normals(image, name)
    return (Colours if channel in ("segmentation", "instance", "box", "pose") else Photo)(image, name)


# Records.


@dataclass(frozen=True)
class Frame:
    picture: Image.Image
    name: str  # of the picture's file, for errors
    annotations: Mapping[str, Annotation] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        return self.picture.size

    def draw(self, geometry: Geometry, size: int) -> "UInt8[np.ndarray, 'y x 3']":
        return decode.shrink(self.picture, size, geometry, self.name)


@dataclass(frozen=True)
class Record:
    """A picture or a clip as a source found it; see `Item` for the fields."""

    id: str
    group: str
    frames: Iterable[Frame]  # drawn in one pass
    is_clip: bool = False
    label: int = -1
    licence: str = ""
    caption: str = ""
    origin: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


def draw_record(record: Record, config: DrawingConfig, size: int) -> list[Item]:
    """Its items. View 0: picture, annotations and gray; views 1..`views`: degraded, with a strength and place that
    depend on (id, view) alone. A further view for each further geometry holds all of these, one degraded draw each.

    Raises `PictureError` for frames of different sizes, or an annotation of another size than its picture.
    """
    drawn = draw_frames(record, config, size)
    degraded = [name for name in config.derived if name != "gray"]
    if record.is_clip:
        degraded = []
    later = config.views if degraded else 0
    items = []
    for number, (geometry, channels) in enumerate(drawn):
        picture = channels["image"][0]
        if "gray" in config.derived and not record.is_clip and "gray" not in channels:
            channels["gray"] = derive("gray", picture)[None]
        cut = {"geometry": geometry.as_json()} if len(drawn) > 1 or config.resize != "squash" else {}
        view = 0 if number == 0 else later + number
        if number > 0 and later:
            channels |= degrade(record.id, view, degraded, picture)
        items.append(_item(record, view, channels, {**record.meta, **cut}))
        if number == 0:
            items += [_item(record, v, degrade(record.id, v, degraded, picture), {}) for v in range(1, later + 1)]
    return items


def draw_frames(
    record: Record, config: DrawingConfig, size: int
) -> "list[tuple[Geometry, dict[str, UInt8[np.ndarray, 'n size size 3']]]]":
    """For each geometry every channel that all frames have. One frame is held at a time, if they come one at a time."""
    views: list[tuple[Geometry, dict[str, list[np.ndarray]]]] = []
    first, count = (0, 0), 0
    for frame in record.frames:
        count += 1
        if not views:
            first = frame.size
            views = [(geometry, {}) for geometry in geometries(*first, config.resize, config.flip)]
        _check_sizes(record, frame, first)
        for geometry, drawn in views:
            photo = frame.draw(geometry, size)
            drawn.setdefault("image", []).append(photo)
            for channel, annotation in frame.annotations.items():
                drawn.setdefault(channel, []).append(annotation.draw(geometry, size, photo))
    if not views:
        raise decode.PictureError(record.id, "has no frames")
    return [(g, {c: np.stack(pictures) for c, pictures in d.items() if len(pictures) == count}) for g, d in views]


def _check_sizes(record: Record, frame: Frame, first: tuple[int, int]) -> None:
    if frame.size != first:
        raise decode.PictureError(record.id, f"has frames of different sizes ({first}, {frame.size})")
    for channel, annotation in frame.annotations.items():
        if annotation.size is not None and annotation.size != frame.size:
            (width, height), (wide, high) = annotation.size, frame.size
            name = getattr(annotation, "name", f"{channel} of {frame.name}")
            raise decode.PictureError(name, f"is {width} x {height}, its picture {frame.name} {wide} x {high}")


def degrade(
    id: str, view: int, names: Sequence[str], picture: "UInt8[np.ndarray, 'y x 3']"
) -> "dict[str, UInt8[np.ndarray, '1 y x 3']]":
    drawn = {}
    for name in names:
        seed = seed_from("derive", id, view, name)
        drawn[name] = derive(name, picture, float(uniform(seed)), seed)[None]
    return drawn


def _item(record: Record, view: int, channels: "dict[str, UInt8[np.ndarray, 'n y x 3']]", meta: dict[str, Any]) -> Item:
    r = record
    return Item(r.id, r.group, view, r.label, channels, r.licence, r.caption, meta, r.origin)
