"""COCO's JSON (instances, person_keypoints, panoptic, captions) and whatever is written like it, as a source.

    kind: coco
    annotations: coco/annotations/instances_train2017.json
    images: coco/train2017

A unit is an image. It has a channel where there is something to show and every annotation says what it takes:
segmentation (a colour for each class, from polygons and masks, small objects above large ones, or from the panoptic
pictures), instance (a colour for each object), box (outlined on the photo), pose (skeletons on black). Damage of one
image or annotation breaks this unit; annotations of images that are not listed are one broken unit together.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lvm.pictures import decode, masks
from lvm.runtime import UserError
from lvm.sources.base import BrokenItem, Item, writable
from lvm.sources.coco_table import ROLES, is_id, open_table
from lvm.sources.drawing import Annotation, Boxes, DrawingConfig, Frame, Labels, Record, draw_record, pose_channels
from lvm.sources.pictures import CHANNELS

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

# Part of every fingerprint: raise it when the same files and options give other pictures.
COCO_VERSION = 1

DRAWN = ("image", "segmentation", "instance", "box", "pose")
COLOURS = 255  # for classes and for instances, besides black; later ones take the first colours again
FAR = 10  # sides of a picture that a coordinate may lie outside of it


@dataclass(frozen=True, kw_only=True)
class CocoConfig(DrawingConfig):
    images: str  # folder of the images; ~ is the home folder
    annotations: str = ""  # JSON of instances or of person_keypoints
    poses: str = ""  # person_keypoints where `annotations` are the instances
    panoptic: str = ""  # JSON of panoptic segments
    panoptic_folder: str = ""  # its pictures; a folder beside the JSON, of the same name without suffix, if empty
    captions: str = ""  # JSON of captions; an image's first one is kept
    name: str = ""  # of the source; the name of the folder of images if empty
    channels: tuple[str, ...] = ()  # of image, segmentation, instance, box, pose; empty: all that the files have
    pose_on_photo: bool = False  # skeletons over the photo too, as channel pose_photo
    crowd: bool = False  # also boxes and instances of crowds (iscrowd); classes show them always


class CocoSource:
    """See the head of this file and `lvm.sources.base.Source`. Raises `UserError` for JSON that makes no sense."""

    def __init__(self, config: CocoConfig) -> None:
        self.config = config
        self.root = Path(config.images).expanduser()
        self.name = config.name or self.root.resolve().name
        self.resize = config.resize
        if not self.root.is_dir():
            raise UserError(f"{self.root} is not a folder; name the one of COCO's images")
        self.files = {role: Path(getattr(config, role)).expanduser() for role in ROLES if getattr(config, role)}
        if not self.files:
            raise UserError(f"a source of kind coco needs one of {', '.join(ROLES)}")
        if "panoptic" in self.files:
            beside = self.files["panoptic"].with_suffix("")
            self.panoptic_root = Path(config.panoptic_folder).expanduser() if config.panoptic_folder else beside
            if not self.panoptic_root.is_dir():
                raise UserError(f"{self.panoptic_root} is not a folder; name the panoptic pictures: panoptic_folder")
        self.table = open_table(self.files)
        offered = ["image", *self.table.offers]
        for channel in config.channels:
            if channel not in offered:
                raise UserError(f"channels: {channel!r} is not in these files; they have {', '.join(offered)}")
        self.drawn = {"image", *(config.channels or offered)}
        derived = {name for name in config.derived if name == "gray" or config.views}
        if "pose" in self.drawn and config.pose_on_photo:
            derived.add("pose_photo")
        self.channels = tuple(channel for channel in CHANNELS if channel in self.drawn | derived)
        # Several JSON files may list more categories than one of them: classes count all, by id.
        self._classes = {category["id"]: n for n, category in enumerate(self.table.categories, 1)}
        self._categories = {category["id"]: category for category in self.table.categories}
        self.limbs, self.pairs = self._find_limbs() if "pose" in self.drawn else ((), ())

    def _find_limbs(self) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
        """Of the jointed categories: the limbs, and the pairs of a left and a right joint."""
        jointed = [category for category in self.table.categories if category["joints"]]
        for other in jointed[1:]:
            if (other["joints"], other["limbs"]) != (jointed[0]["joints"], jointed[0]["limbs"]):
                raise UserError(
                    f"categories {jointed[0]['name']!r} and {other['name']!r} have different skeletons, which one "
                    "channel cannot show; leave pose out of `channels`"
                )
        if not jointed:
            return (), ()
        return tuple((a, b) for a, b in jointed[0]["limbs"]), tuple((a, b) for a, b in jointed[0]["pairs"])

    def __len__(self) -> int:
        return len(self.table.ids)

    def unit_id(self, i: int) -> str:
        return self.table.ids[i]

    def fingerprint(self) -> str:
        places = ("images", "name", "panoptic_folder", *ROLES)
        options = {key: value for key, value in asdict(self.config).items() if key not in places}
        head = json.dumps({"version": COCO_VERSION, "files": self.table.digest, **options}, sort_keys=True)
        return hashlib.sha256(head.encode()).hexdigest()

    def read(self, i: int, size: int) -> list[Item]:
        line = self.table.line(i)
        where = str(self.files[line["role"]])
        if line["wrong"]:
            raise BrokenItem(where, line["wrong"])
        try:
            return draw_record(self._record(line), self.config, size)
        except decode.PictureError as error:
            raise BrokenItem(error.file, error.reason) from None
        except CocoError as error:
            raise BrokenItem(where, f"image {json.dumps(line['image']['id'])}: {error}") from None

    def _record(self, line: dict[str, Any]) -> Record:
        image = line["image"]
        file = self.root / image["file_name"]
        picture = decode.load(file, self.config.max_pixels)
        width, height = picture.size
        said = (image.get("width", width), image.get("height", height))
        if said != picture.size:
            raise decode.PictureError(str(file), f"is {width} x {height}, in the JSON {said[0]} x {said[1]}")
        addresses = (image.get("coco_url"), image.get("flickr_url"), image["file_name"])
        origin = next(writable(address) for address in addresses if address and isinstance(address, str))
        return Record(
            line["id"],
            line["id"],
            [Frame(picture, str(file), self._annotations(line, width, height))],
            licence=self._licence(image),
            caption=line["caption"],
            origin=origin,
        )

    def _licence(self, image: dict[str, Any]) -> str:
        number = json.dumps(image.get("license"))
        unlisted = f"licence {number}" if "license" in image else ""
        return self.table.licences.get(number) or self.config.licence or unlisted

    # Annotations.

    def _annotations(self, line: dict[str, Any], width: int, height: int) -> dict[str, Annotation]:
        objects, drawn = line["objects"], self.drawn
        for entry in objects:
            self._check(entry, f"annotation {json.dumps(entry['id'])}")
        found: dict[str, Annotation] = {}
        segments = self._segments(line["segments"]) if line["segments"] is not None else []
        if drawn & {"segmentation", "instance"}:
            if segments:
                file = self.panoptic_root / line["segments"]["file_name"]
                shown = read_panoptic(file, [entry["id"] for entry in segments], self.config.max_pixels)
                found |= self._maps(shown, segments, str(file))
            elif "panoptic" not in self.files and objects and all(entry.get("segmentation") for entry in objects):
                shapes = [read_shape(entry, width, height) for entry in objects]
                found |= self._maps(masks.paint(shapes, height, width), objects, f"masks of {line['id']}")
        boxed = [entry for entry in (objects or segments) if self._counts(entry)]
        if "box" in drawn and boxed and all(entry.get("bbox") is not None for entry in boxed):
            found["box"] = Boxes([read_box(entry, width, height) for entry in boxed])
        if "pose" in drawn:
            people = [self._joints(entry, width, height) for entry in objects if entry.get("keypoints")]
            people = [person for person in people if np.isfinite(person).any()]
            if people:
                found |= pose_channels(people, self.limbs, self.pairs, self.config.pose_on_photo)
        return found

    def _check(self, entry: dict[str, Any], what: str) -> None:
        category = entry.get("category_id")
        if not is_id(category) or category not in self._categories:
            raise CocoError(f"{what} has the unknown category {json.dumps(category)}")

    def _counts(self, entry: dict[str, Any]) -> bool:
        """As an object: things that are no crowd, unless crowds are asked for."""
        return self._categories[entry["category_id"]]["isthing"] and (self.config.crowd or not entry.get("iscrowd"))

    def _segments(self, annotation: dict[str, Any]) -> list[dict[str, Any]]:
        name, segments = annotation["file_name"], annotation["segments_info"]
        if not isinstance(name, str) or name.startswith("/") or ".." in Path(name).parts:
            raise CocoError(f"its panoptic picture has the file_name {json.dumps(name)}")
        if not isinstance(segments, list) or not all(isinstance(entry, dict) for entry in segments):
            raise CocoError("its segments_info is not a list of objects")
        for entry in segments:
            if type(entry.get("id")) is not int or not 0 < entry["id"] < 2**24:
                raise CocoError(f"its segments_info has the id {json.dumps(entry.get('id'))}")
            self._check(entry, f"segment {entry['id']}")
        if len({entry["id"] for entry in segments}) < len(segments):
            raise CocoError("its segments_info has an id twice")
        return segments

    def _maps(self, shown: "Int64[np.ndarray, 'y x']", entries: list[dict[str, Any]], name: str) -> dict[str, Labels]:
        """From the number of the entry that shows at each pixel to its class, and to numbers from the largest down."""
        classes = [0, *(self._classes[entry["category_id"]] for entry in entries)]
        sizes = np.bincount(shown.reshape(-1), minlength=len(classes))[1:]
        places = np.zeros(len(classes), np.int64)
        ranked = [n for n in np.argsort(-sizes, kind="stable").tolist() if self._counts(entries[n])]
        places[np.array(ranked, int) + 1] = np.arange(1, len(ranked) + 1)
        found = {}
        for channel, values in (("segmentation", np.array(classes)), ("instance", places)):
            if channel in self.drawn and values.any():
                found[channel] = as_labels(values[shown], name)
        return found

    def _joints(self, entry: dict[str, Any], width: int, height: int) -> "Float[np.ndarray, 'k 2']":
        """Joints of one person, NaN where they are not labelled (v = 0)."""
        count = self._categories[entry["category_id"]]["joints"]
        values = numbers(entry, "keypoints")
        if len(values) != 3 * count:
            raise CocoError(f"annotation {entry['id']} has {len(values)} numbers for {count} keypoints")
        joints = values.reshape(-1, 3)
        points = np.where(joints[:, 2:] > 0, joints[:, :2], np.nan)
        return _near(points, entry, width, height)


class CocoError(ValueError):
    """What is wrong with an annotation."""


def numbers(entry: dict[str, Any], key: str, values: Any = None) -> "Float[np.ndarray, 'n']":
    """entry[key], or `values` of it, if it is a list of finite numbers. Raises `CocoError`."""
    values = entry[key] if values is None else values
    if isinstance(values, list) and all(type(value) in (int, float) for value in values):
        try:
            array = np.array(values, np.float64)
        except OverflowError:
            array = np.array([np.inf])
        if np.isfinite(array).all():
            return array
    raise CocoError(f"annotation {json.dumps(entry.get('id'))} has a {key} that is not a list of finite numbers")


def _near(points: Any, entry: dict[str, Any], width: int, height: int) -> Any:
    if np.nanmax(np.abs(points), initial=0) > FAR * max(width, height):
        raise CocoError(f"annotation {json.dumps(entry.get('id'))} lies far outside the picture")
    return points


def read_box(entry: dict[str, Any], width: int, height: int) -> tuple[float, float, float, float]:
    values = _near(numbers(entry, "bbox"), entry, width, height)
    if len(values) != 4 or values[2] < 0 or values[3] < 0:
        raise CocoError(f"annotation {json.dumps(entry.get('id'))} has the bbox {json.dumps(entry['bbox'])[:60]}")
    x, y, wide, high = values.tolist()
    return x, y, x + wide, y + high


def read_shape(entry: dict[str, Any], width: int, height: int) -> masks.Shape:
    """A list of polygons, or run lengths. Raises `CocoError`."""
    given, what = entry["segmentation"], f"annotation {json.dumps(entry['id'])}"
    if isinstance(given, dict):
        if given.get("size") != [height, width]:
            raise CocoError(
                f"{what} has a mask of the size {json.dumps(given.get('size'))[:60]}, not {[height, width]}"
            )
        counts = given.get("counts")
        try:
            if isinstance(counts, str):
                return masks.decode(masks.decompress(counts), height, width)
            if isinstance(counts, list) and all(type(count) is int for count in counts):
                return masks.decode(counts, height, width)
        except ValueError as error:
            raise CocoError(f"{what}: {error}") from None
        raise CocoError(f"{what} has a mask without run lengths")
    if not isinstance(given, list):
        raise CocoError(f"{what} has a segmentation that is neither polygons nor a mask")
    polygons = [_near(numbers(entry, "segmentation", polygon), entry, width, height) for polygon in given]
    if any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        raise CocoError(f"{what} has a polygon that is not three or more pairs of numbers")
    return [polygon.reshape(-1, 2) for polygon in polygons]


def read_panoptic(file: Path, ids: list[int], max_pixels: int) -> "Int64[np.ndarray, 'y x']":
    """Number 1, 2, ... in `ids` of the segment at each pixel, 0 for none; a colour is R + 256 G + 65536 B."""
    image = decode.load(file, max_pixels)
    if image.mode != "RGB":
        raise decode.PictureError(str(file), f"has mode {image.mode}; a panoptic picture has RGB")
    colours = np.asarray(image).astype(np.int64) @ np.array([1, 256, 65536])
    known = np.array([0, *ids])
    order = np.argsort(known)
    places = order[np.searchsorted(known, colours, sorter=order).clip(max=len(ids))]
    if (known[places] != colours).any():
        raise decode.PictureError(str(file), f"has a segment {colours[known[places] != colours][0]} that is not listed")
    return places


def as_labels(values: "Int64[np.ndarray, 'y x']", name: str) -> Labels:
    """A label map of numbers that takes colours by turns. Shifted, since a map of 0 and 255 alone would be a mask."""
    turns = np.where(values > 0, (values - 1) % COLOURS + 1, 0)
    image = Image.fromarray(np.where(turns > 0, turns + 256, 0).astype(np.int32))
    return Labels(image, name, {k + 256: k for k in range(1, COLOURS + 1)})
