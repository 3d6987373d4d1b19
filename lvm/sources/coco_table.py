"""COCO's JSON files as one table: a line for each image with all that is known of it, kept under $LVM_CACHE.

The instances of COCO's training images are 450 MB of JSON, a few GB once parsed: too much to parse again in every
process that reads, and to send to it. They are parsed once; a reader gets the table's path and where its lines start
(a few MB for 118,287 images) and parses one line a unit. That costs a file as large as the JSON, and the time of a
hash of them at each start. A damaged image stays a line, which says what is wrong with it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

from lvm.runtime import UserError, atomic_path, sha256_file
from lvm.runtime.files import cache_folder
from lvm.sources.base import writable

# Part of the name of every table: raise it when the same JSON becomes another table.
TABLE_VERSION = 2

ROLES = ("annotations", "poses", "panoptic", "captions")
_OF_IMAGE = ("file_name", "width", "height", "license", "coco_url", "flickr_url")
_OF_OBJECT = ("id", "category_id", "bbox", "segmentation", "keypoints", "iscrowd")


@dataclass(frozen=True)
class Table:
    path: Path
    digest: str  # of the JSON files
    ids: list[str]  # of the units
    starts: list[int]  # byte of each line, and where the last one ends
    categories: list[dict[str, Any]]  # by id: id, name, isthing, joints, limbs, pairs
    licences: dict[str, str]  # JSON of the id -> name and address
    offers: list[str]  # channels that some image has

    def line(self, unit: int) -> dict[str, Any]:
        """A `_Unit` as JSON, its objects a list."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.starts[unit])
                return json.loads(file.read(self.starts[unit + 1] - self.starts[unit]))
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path} cannot be read any more ({error}); remove it and start again") from None


def open_table(files: Mapping[str, Path]) -> Table:
    """The table of JSON files, by role; made if it is not there. Raises `UserError` for files that make no sense."""
    try:
        hashes = {role: sha256_file(path) for role, path in files.items()}
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); name COCO's JSON file") from None
    digest = hashlib.sha256(json.dumps([TABLE_VERSION, hashes], sort_keys=True).encode()).hexdigest()
    path = cache_folder() / "coco" / f"{digest[:16]}.jsonl"
    try:
        if not path.is_file():
            try:
                head, lines = make_lines({role: _load(file) for role, file in files.items()}, files)
            except RecursionError:
                raise UserError(
                    f"{' or '.join(map(str, files.values()))} is nested too deeply to be COCO's JSON"
                ) from None
            with atomic_path(path) as aside:
                aside.write_bytes(b"".join([json.dumps(head).encode() + b"\n", *lines]))
        with open(path, "rb") as file:
            first = file.readline()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); point LVM_CACHE at a folder with room") from None
    head = json.loads(first)
    starts = list(accumulate(head.pop("lengths"), initial=len(first)))
    return Table(path, digest, starts=starts, **head)


def _load(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); fetch it again") from None
    if not isinstance(data, dict) or "images" not in data:
        raise UserError(f"{path} is not COCO's JSON: it must be an object that has `images`")
    for key in ("images", "annotations", "categories", "licenses"):
        if not isinstance(data.setdefault(key, []), list):
            raise UserError(f"{path}: {key} is {_short(data[key])}; it must be a list")
    return data


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 40 else text[:37] + "..."


def is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


# From JSON to lines.


@dataclass
class _Unit:
    role: str
    id: str = ""
    image: dict[str, Any] = field(default_factory=dict)
    objects: dict[Any, dict[str, Any]] = field(default_factory=dict)  # by id
    segments: dict[str, Any] | None = None
    caption: str = ""
    wrong: str = ""  # the first thing that is

    def blame(self, wrong: str) -> None:
        self.wrong = self.wrong or wrong


def make_lines(data: Mapping[str, dict[str, Any]], files: Mapping[str, Path]) -> tuple[dict[str, Any], list[bytes]]:
    """Head of the table and its lines: the images of all files, and one line for annotations that belong to none."""
    units, by_id = _images(data)
    lost: list[Any] = []
    offers: set[str] = set()
    for role, content in data.items():
        for entry in content["annotations"]:
            image_id = entry.get("image_id") if isinstance(entry, dict) else None
            if not is_id(image_id) or image_id not in by_id:
                lost.append(image_id)
            elif role == "captions":
                _add_caption(by_id[image_id], entry)
            elif role == "panoptic":
                _add_segments(by_id[image_id], entry)
            else:
                _add_object(by_id[image_id], entry, role)
                offers |= {"segmentation", "instance"} if entry.get("segmentation") else set()
                offers |= {"box"} if "bbox" in entry else set()
                offers |= {"pose"} if entry.get("keypoints") else set()
    if "panoptic" in data:
        offers |= (
            {"segmentation", "instance"}
            if {"annotations", "poses"} & set(data)
            else {"segmentation", "instance", "box"}
        )
    if lost:
        count = len({json.dumps(id) for id in lost})
        wrong = f"{len(lost)} annotations of {count} unknown images, first id {_short(lost[0])}"
        units.append(_Unit(next(role for role in data), "annotations without image", wrong=wrong))
    if not units:
        raise UserError(f"{' and '.join(map(str, files.values()))}: no images are listed")
    values = ({**vars(unit), "objects": list(unit.objects.values())} for unit in units)
    lines = [json.dumps(value, separators=(",", ":")).encode() + b"\n" for value in values]
    head = {
        "ids": [unit.id for unit in units],
        "lengths": [len(line) for line in lines],
        "categories": _categories(data, files),
        "licences": _licences(data, files),
        "offers": sorted(offers),
    }
    return head, lines


def _images(data: Mapping[str, dict[str, Any]]) -> tuple[list[_Unit], dict[Any, _Unit]]:
    units: list[_Unit] = []
    by_id: dict[Any, _Unit] = {}
    for role, content in data.items():
        seen = set()
        for number, entry in enumerate(content["images"]):
            id = entry.get("id") if isinstance(entry, dict) else None
            if not is_id(id) or id in seen:
                why = f"has the id {_short(id)} of another" if is_id(id) else "has no id"
                units.append(_Unit(role, f"{role}:image-{number}", wrong=f"image number {number} {why}"))
                continue
            seen.add(id)
            if id not in by_id:
                by_id[id] = _Unit(role, image={"id": id})
                units.append(by_id[id])
            kept = {key: entry[key] for key in _OF_IMAGE if entry.get(key) is not None}
            by_id[id].image = {**kept, **by_id[id].image}
    taken: dict[str, Any] = {}
    for unit in by_id.values():
        name_unit(unit, taken)
    return units, by_id


def name_unit(unit: _Unit, taken: dict[str, Any]) -> None:
    """Its id is its file's path without suffix; what is wrong with the image's entry is noted."""
    id, name = unit.image["id"], unit.image.get("file_name")
    if not isinstance(name, str) or not PurePosixPath(name).name:
        unit.blame(f"image {_short(id)} has no file_name")
    elif name.startswith("/") or ".." in PurePosixPath(name).parts:
        unit.blame(f"image {_short(id)} lies outside the folder of images ({_short(name)})")
    else:
        unit.id = writable(str(PurePosixPath(name).with_suffix("")))
        if unit.id in taken:
            unit.blame(f"image {_short(id)} has the file_name of image {_short(taken[unit.id])}")
            unit.id = ""
        else:
            taken[unit.id] = id
    unit.id = unit.id or f"{unit.role}:{_short(id)}"
    for key in ("width", "height"):
        side = unit.image.get(key, 1)
        if not isinstance(side, int) or side < 1:
            unit.blame(f"image {_short(id)} has the {key} {_short(side)}")


def _add_caption(unit: _Unit, entry: dict[str, Any]) -> None:
    """The first one is kept."""
    if not isinstance(entry.get("caption"), str):
        unit.blame(f"image {_short(unit.image['id'])}: caption {_short(entry.get('id'))} is no text")
    else:
        unit.caption = unit.caption or writable(entry["caption"].strip())


def _add_segments(unit: _Unit, entry: dict[str, Any]) -> None:
    if unit.segments is not None:
        unit.blame(f"image {_short(unit.image['id'])} has two panoptic annotations")
    unit.segments = {key: entry.get(key) for key in ("file_name", "segments_info")}


def _add_object(unit: _Unit, entry: dict[str, Any], role: str) -> None:
    """The same annotation in two files, as COCO's people are, becomes one."""
    id = entry.get("id")
    where = f"image {_short(unit.image['id'])}"
    if not is_id(id):
        unit.blame(f"{where} has an annotation without id")
        return
    kept = {key: entry[key] for key in _OF_OBJECT if key in entry}
    known = unit.objects.get(id, {})
    if known and (known["role"] == role or known.get("category_id") != kept.get("category_id")):
        unit.blame(f"{where} has two annotations of the id {_short(id)}")
    unit.objects[id] = {**known, **kept, "role": known.get("role", role)}


def _categories(data: Mapping[str, dict[str, Any]], files: Mapping[str, Path]) -> list[dict[str, Any]]:
    """All files' together, by id. COCO counts the joints of limbs from 1; here they count from 0."""
    found: dict[int, dict[str, Any]] = {}
    for role, content in data.items():
        where = files[role]
        for entry in content["categories"]:
            id = entry.get("id") if isinstance(entry, dict) else None
            if not isinstance(id, int) or isinstance(id, bool) or not isinstance(entry.get("name"), str):
                raise UserError(f"{where}: category {_short(entry)} must have a number as id, and a name")
            joints, limbs = entry.get("keypoints", []), entry.get("skeleton", [])
            if not isinstance(joints, list) or not isinstance(limbs, list):
                raise UserError(f"{where}: category {id} must have lists as keypoints and skeleton")
            for limb in limbs:
                if not (
                    isinstance(limb, list)
                    and len(limb) == 2
                    and all(type(j) is int and 0 < j <= len(joints) for j in limb)
                ):
                    raise UserError(f"{where}: category {id} has {len(joints)} keypoints and the limb {_short(limb)}")
            known = found.setdefault(id, {"id": id, "name": entry["name"], "joints": 0, "limbs": [], "pairs": []})
            if known["name"] != entry["name"]:
                raise UserError(f"{where}: category {id} is {entry['name']!r}, and {known['name']!r} elsewhere")
            known["isthing"] = bool(entry.get("isthing", known.get("isthing", True)))
            if joints:
                known["joints"], known["limbs"] = len(joints), [[a - 1, b - 1] for a, b in limbs]
                known["pairs"] = left_and_right(joints)
        if not found and content["annotations"] and role != "captions":
            raise UserError(f"{where}: has annotations and no categories")
    return [found[id] for id in sorted(found)]


def left_and_right(joints: list[Any]) -> list[list[int]]:
    """Pairs of joints that differ in left and right alone, by their names."""
    places = {name: n for n, name in enumerate(joints) if isinstance(name, str)}
    pairs = ((n, places.get(name.replace("left", "right"))) for name, n in places.items() if "left" in name)
    return [[left, right] for left, right in pairs if right is not None]


def _licences(data: Mapping[str, dict[str, Any]], files: Mapping[str, Path]) -> dict[str, str]:
    found = {}
    for role, content in data.items():
        for entry in content["licenses"]:
            if not isinstance(entry, dict) or not is_id(entry.get("id")):
                raise UserError(f"{files[role]}: licence {_short(entry)} must be an object with an id")
            parts = [writable(entry[key]) for key in ("name", "url") if isinstance(entry.get(key), str)]
            found[json.dumps(entry["id"])] = ", ".join(part for part in parts if part)
    return found
