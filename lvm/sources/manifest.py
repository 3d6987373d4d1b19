"""Anything that a manifest.jsonl lists: one JSON object a line, its keys named in the source's options.

    {"file": "images/im05802.jpg", "keypoints": [[150.5, 210.9], ...], "licence": "CC BY 4.0"}

A list of files is a clip. Annotations are files (`channels`), boxes or keypoints in the picture's pixels. A line that
cannot be read or used is a broken unit, so that nothing is lost silently.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lvm.pictures import decode
from lvm.runtime import UserError
from lvm.sources.base import BrokenItem, Item, writable
from lvm.sources.drawing import (
    Annotation,
    Boxes,
    FilesConfig,
    Frame,
    Record,
    draw_record,
    pose_channels,
    read_annotation,
    read_classes,
)
from lvm.sources.pictures import CHANNELS

# Part of every fingerprint: raise it when the same manifest and options give other pictures.
MANIFEST_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class ManifestConfig(FilesConfig):
    """Options that name a key take it from each line; dots go into objects, through lists: objects.bbox."""

    path: str  # the manifest; ~ is the home folder
    name: str = ""  # of the source; the name of the manifest's folder if empty
    root: str = ""  # folder that the files' paths start from; the manifest's own if empty
    image: str = "image"  # key of the picture's file, or of a clip's list of files
    channels: dict[str, str] = field(default_factory=dict)  # channel: key of its file, or list of files
    boxes: str = ""  # key of a list of boxes, drawn as channel box; "": none
    box_format: Literal["xywh", "xyxy"] = "xywh"
    keypoints: str = ""  # key of one person's [[x, y], ...] or of several people's, drawn as channel pose; "": none
    limbs: tuple[tuple[int, int], ...] = ()  # pairs of joints, from 0
    mirror: tuple[tuple[int, int], ...] = ()  # left and right joints, which change places where `flip` mirrors
    pose_on_photo: bool = False  # skeletons over the photo too, as channel pose_photo
    id: str = "id"  # where a line lacks it: the file's path without suffix
    group: str = "group"  # where a line lacks it: the id
    label: str = "label"
    caption: str = "caption"
    licence_key: str = "licence"  # where a line lacks it: `licence`
    origin: str = "origin"  # where a line lacks it: the file's path


def look_up(line: Any, key: str) -> Any:
    """The value of a dotted key, a list of them where it passes a list; None where there is none."""
    for part in key.split(".") if key else ():
        if isinstance(line, list):
            found = [look_up(entry, part) for entry in line]
            line = [value for value in found if value is not None]
        elif isinstance(line, Mapping):
            line = line.get(part)
        else:
            return None
    return line if key else None


class ManifestSource:
    """See the head of this file and `lvm.sources.base.Source`. Raises `UserError` where no line can be used."""

    def __init__(self, config: ManifestConfig) -> None:
        self.config = config
        self.path = Path(config.path).expanduser()
        self.root = Path(config.root).expanduser() if config.root else self.path.parent
        self.name = config.name or self.path.resolve().parent.name
        self.resize = config.resize
        try:
            texts = self.path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.path} cannot be read ({error}); name a file of one JSON object a line") from None
        self.lines: list[dict[str, Any] | str] = []  # a str says why a line is unusable
        for text in texts:
            if text.strip():
                self.lines.append(self._parse(text))
        good = [line for line in self.lines if not isinstance(line, str)]
        if not good:
            first = f", the first {self.lines[0]}" if self.lines else ""
            raise UserError(f"{self.path} has no line to use ({len(self.lines)} lines{first}); see `image`")
        self.ids = [self._id(number, line) for number, line in enumerate(self.lines)]
        if len(set(self.ids)) < len(self.ids):
            twice = next(id for n, id in enumerate(self.ids) if id in self.ids[:n])
            raise UserError(f"{self.path} has the id {twice!r} twice; name another key with `id`")
        found = {"image", *(c for c, key in config.channels.items() if any(look_up(line, key) for line in good))}
        found |= {"box"} if config.boxes else set()
        found |= {"pose", *(["pose_photo"] if config.pose_on_photo else [])} if config.keypoints else set()
        if any(isinstance(look_up(line, config.image), str) for line in good):
            found |= {name for name in config.derived if name == "gray" or config.views}
        self.channels = tuple([c for c in CHANNELS if c in found] + sorted(found - set(CHANNELS)))
        labels = {self._text(line, config.label, "") for line in good if look_up(line, config.label) is not None}
        self.labels = tuple(sorted(labels))
        self._label_numbers = {label: number for number, label in enumerate(self.labels)}
        self._classes = read_classes(config.classes) if config.classes else None

    def _parse(self, text: str) -> dict[str, Any] | str:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            return f"is no JSON ({error})"
        files = look_up(line, self.config.image) if isinstance(line, dict) else None
        if isinstance(files, str) or (
            isinstance(files, list) and 0 < len(files) <= 2048 and all(isinstance(f, str) for f in files)
        ):
            return line
        return f"names no picture under {self.config.image!r}"

    def _id(self, number: int, line: dict[str, Any] | str) -> str:
        if isinstance(line, str):
            return f"line-{number + 1}"
        return self._text(line, self.config.id, self._files(line)[0].rsplit(".", 1)[0])

    def _text(self, line: dict[str, Any], key: str, otherwise: str) -> str:
        value = look_up(line, key)
        return writable(otherwise if value is None else str(value))

    def _files(self, line: dict[str, Any], key: str = "") -> list[str]:
        value = look_up(line, key or self.config.image)
        return [value] if isinstance(value, str) else value

    def __len__(self) -> int:
        return len(self.lines)

    def unit_id(self, i: int) -> str:
        return self.ids[i]

    def fingerprint(self) -> str:
        left_out = ("path", "name", "root", "classes")
        options = {key: value for key, value in asdict(self.config).items() if key not in left_out}
        options["class_list"] = sorted(self._classes.items()) if self._classes else None
        head = json.dumps({"version": MANIFEST_VERSION, **options}, sort_keys=True)
        return hashlib.sha256("\n".join([head, *(json.dumps(line) for line in self.lines)]).encode()).hexdigest()

    def read(self, i: int, size: int) -> list[Item]:
        line, where = self.lines[i], f"{self.path}:{self.ids[i]}"
        if isinstance(line, str):
            raise BrokenItem(where, line)
        config = self.config
        files = self._files(line)
        try:
            record = Record(
                self.ids[i],
                self._text(line, config.group, self.ids[i]),
                [self._frame(line, n, file) for n, file in enumerate(files)],
                isinstance(look_up(line, config.image), list),
                self._label_numbers.get(self._text(line, config.label, ""), -1),
                self._text(line, config.licence_key, config.licence),
                self._text(line, config.caption, ""),
                self._text(line, config.origin, files[0]),
            )
            return draw_record(record, config, size)
        except decode.PictureError as error:
            raise BrokenItem(error.file, error.reason) from None
        except (ValueError, TypeError, LookupError, OverflowError) as error:  # of boxes and keypoints of another form
            raise BrokenItem(where, f"has annotations of another form than asked for ({error})") from None

    def first_frame(self, i: int) -> Frame:
        """What `read` draws, before it is drawn. Raises `BrokenItem`."""
        line = self.lines[i]
        if isinstance(line, str):
            raise BrokenItem(f"{self.path}:{self.ids[i]}", line)
        try:
            return self._frame(line, 0, self._files(line)[0])
        except decode.PictureError as error:
            raise BrokenItem(error.file, error.reason) from None

    def _frame(self, line: dict[str, Any], n: int, file: str) -> Frame:
        config = self.config
        picture = decode.load(self._inside(file), config.max_pixels)
        annotations: dict[str, Annotation] = {}
        for channel, key in config.channels.items():
            files = self._files(line, key)
            if files:
                if len(files) <= n:
                    raise decode.PictureError(self._inside(file).as_posix(), f"has no {channel}; {key} is too short")
                annotations[channel] = read_annotation(channel, self._inside(files[n]), config, self._classes)
        boxes, joints = (self._of_frame(line, key, n) for key in (config.boxes, config.keypoints))
        if boxes is not None:
            annotations["box"] = Boxes(as_boxes(boxes, config.box_format))
        if joints is not None and (people := as_people(joints, (*config.limbs, *config.mirror))):
            annotations |= pose_channels(people, config.limbs, config.mirror, config.pose_on_photo)
        return Frame(picture, str(self.root / file), annotations)

    def _of_frame(self, line: dict[str, Any], key: str, n: int) -> Any:
        """What a key says of frame n: a clip has a list, one entry a frame."""
        found = look_up(line, key)
        images = look_up(line, self.config.image)
        if found is None or isinstance(images, str):
            return found
        if not isinstance(found, list) or len(found) != len(images):
            raise ValueError(f"{key} of a clip has no entry for each of its {len(images)} frames")
        return found[n]

    def _inside(self, file: str) -> Path:
        path = self.root / file
        if ".." in Path(file).parts or Path(file).is_absolute():
            raise decode.PictureError(str(path), "lies outside the manifest's folder; use `root`")
        return path


def as_boxes(found: Any, form: str) -> list[tuple[float, float, float, float]]:
    array = np.asarray(found, np.float64)
    if array.size and (array.ndim not in (1, 2) or array.shape[-1] != 4):
        raise ValueError(f"boxes of shape {list(array.shape)}, not [boxes, 4]")
    array = array.reshape(-1, 4)
    if not np.isfinite(array).all():
        raise ValueError("a box that is not four finite numbers")
    if form == "xywh":
        array = np.concatenate([array[:, :2], array[:, :2] + array[:, 2:]], 1)
    return [(a, b, c, d) for a, b, c, d in array.tolist()]


def as_people(found: Any, limbs: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """[k, 2] or [people, k, 2] numbers, null where a joint is unknown."""
    array = np.array(found, np.float64)
    if not array.size:
        return []
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] != 2:
        raise ValueError(f"keypoints of shape {list(array.shape)}, not [joints, 2]")
    if limbs and max(max(pair) for pair in limbs) >= array.shape[1]:
        raise ValueError(f"{array.shape[1]} joints, limbs name joint {max(max(pair) for pair in limbs)}")
    return list(array)
