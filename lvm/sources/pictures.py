"""Folders of pictures as a source: single pictures, classes, annotations in sibling folders, folders of frames.

    photos/**/*.jpg                             folders below are classes
    camvid/images/*.jpg  camvid/masks/*.png     an annotation belongs to the picture of the same path without suffix
    davis/frames/<clip>/*.jpg  davis/masks/<clip>/*.png
    collection/{camvid,davis,...}/              datasets side by side

A folder of pictures is read as clips if it is called frames, clips or videos, or with `clips: true`; any other as
pictures. A picture may lack annotations; an annotation without its picture is a broken unit.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lvm.pictures import decode
from lvm.pictures.derive import DEGRADATIONS
from lvm.runtime import UserError
from lvm.sources.base import BrokenItem, Item, writable
from lvm.sources.drawing import FilesConfig, Frame, Record, draw_record, read_annotation, read_classes
from lvm.sources.listing import list_files

# Part of every fingerprint: raise it when the same files and options give other pictures.
PICTURES_VERSION = 3

PICTURE_FOLDERS = ("image", "images", "picture", "pictures", "photo", "photos", "rgb")
CLIP_FOLDERS = ("frame", "frames", "clip", "clips", "video", "videos")
ANNOTATION_FOLDERS = {
    **dict.fromkeys(("segmentation", "segmentations", "mask", "masks", "semantic"), "segmentation"),
    **dict.fromkeys(("instance", "instances", "segment", "segments"), "instance"),
    **dict.fromkeys(("depth", "depths", "depth_mm"), "depth"),
    **dict.fromkeys(("normal", "normals"), "normal"),
    **dict.fromkeys(("edge", "edges"), "edge"),
    **dict.fromkeys(("box", "boxes"), "box"),
    **dict.fromkeys(("pose", "poses"), "pose"),
}
# The order of channels in a store; others, named in `channels`, follow.
CHANNELS = ("image", "depth", "normal", "segmentation", "instance", "edge", "box", "pose", "pose_photo", *DEGRADATIONS)


@dataclass(frozen=True, kw_only=True)
class PicturesConfig(FilesConfig):
    path: str  # the folder; ~ is the home folder
    name: str = ""  # of the source; the folder's name if empty
    clips: bool = False  # folders of pictures are clips whatever they are called
    frames: int = 16  # pictures of a clip's item; a longer clip is cut into windows, the last one ends with the clip
    channels: dict[str, str] = field(default_factory=dict)  # annotation folder -> channel, beyond the known names
    include: tuple[str, ...] = ()  # patterns of paths below `path`, as "camvid/*"; empty: everything
    exclude: tuple[str, ...] = ()
    group_pattern: str = ""  # regular expression; what it matches of a picture's id is its group ("": the id itself)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.frames <= 2048:
            raise UserError(f"frames {self.frames} must be from 1 to 2048")
        try:
            re.compile(self.group_pattern)
        except re.error as error:
            raise UserError(f"group_pattern {self.group_pattern!r} is no regular expression ({error})") from None


@dataclass(frozen=True)
class Unit:
    """A picture, or up to `frames` frames of a clip. Paths are relative to the source's folder."""

    id: str
    group: str
    label: str  # "" if none
    is_clip: bool
    channels: Mapping[str, tuple[str, ...]]  # channel -> a file for each frame; "image" is there if it can be read
    problem: str = ""  # why it cannot
    lacks: tuple[str, ...] = ()  # annotations that others beside it have


# Finding what is there.


def find_units(root: Path, paths: list[str], config: PicturesConfig) -> list[Unit]:
    """Units of all datasets in `paths`. Raises `UserError` for files that belong nowhere."""
    return [unit for prefix, files in _datasets(paths) for unit in _find_dataset(root, prefix, files, config)]


def _datasets(paths: list[str]) -> list[tuple[str, list[str]]]:
    """(folder, its files) of every dataset: a folder that has a picture or clip folder, else the first below the root.

    A root without any such folder is one dataset of plain pictures.
    """
    names = PICTURE_FOLDERS + CLIP_FOLDERS
    roots: set[str] = set()
    for path in paths:
        parts = path.split("/")[:-1]
        for depth_, part in enumerate(parts):
            if part.lower() in names:
                roots.add("/".join(parts[:depth_]))
                break
    if not roots or "" in roots:
        return [("", paths)]
    datasets: dict[str, list[str]] = {}
    for path in paths:
        parts = path.split("/")[:-1]
        above = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
        home = next((folder for folder in above if folder in roots), parts[0] if parts else "")
        datasets.setdefault(home, []).append(path)
    return sorted(datasets.items())


def _find_dataset(root: Path, prefix: str, paths: list[str], config: PicturesConfig) -> list[Unit]:
    """Units of one dataset: plain, or with annotations beside its picture and clip folders."""
    start = len(prefix) + 1 if prefix else 0
    pictures: dict[str, dict[str, str]] = {}  # picture folder ("" for a plain dataset) -> stem -> path
    annotations: dict[str, dict[str, str]] = {}  # channel -> stem -> path
    folders = {path[start:].split("/")[0] for path in paths if "/" in path[start:]}
    paired = any(folder.lower() in PICTURE_FOLDERS + CLIP_FOLDERS for folder in folders)
    for path in paths:
        inside = path[start:]
        top, _, rest = inside.partition("/")
        if not paired:
            target, stem = pictures.setdefault("", {}), inside
        elif not rest:
            raise UserError(
                f"{root / path}: lies beside {sorted(folders)[0]}/; move it into the folder of pictures, or exclude it"
            )
        elif top.lower() in PICTURE_FOLDERS + CLIP_FOLDERS:
            target, stem = pictures.setdefault(top, {}), rest
        else:
            channel = config.channels.get(top) or ANNOTATION_FOLDERS.get(top.lower())
            if channel is None:
                known = ", ".join(sorted(ANNOTATION_FOLDERS))
                raise UserError(
                    f"{root / prefix / top}: not a known annotation (known: {known}); "
                    f"say `channels: {{{top}: CHANNEL}}` or exclude it"
                )
            target, stem = annotations.setdefault(channel, {}), rest
        stem = stem.rsplit(".", 1)[0]
        if stem in target:
            raise UserError(f"{root / path} and {root / target[stem]} have the same stem; remove or rename one")
        target[stem] = path
    known_stems = {stem for files in pictures.values() for stem in files}
    where = ", ".join(f"{folder}/" for folder in sorted(pictures))
    units = []
    for channel, files in annotations.items():
        alone = [path for stem, path in files.items() if stem not in known_stems]
        if len(alone) == len(files):
            raise UserError(
                f"{root / alone[0]}: no picture of that name in {where}, nor of any other {channel} beside it; "
                "add the pictures, or remove or exclude the annotations"
            )
        for path in alone:  # each is named in the quarantine, and counts towards the limit
            id = writable(path)
            units.append(Unit(id, id, "", False, {channel: (path,)}, f"has no picture of that name in {where}"))
    for folder, files in sorted(pictures.items()):
        home = f"{prefix}/" if prefix else ""
        if len(pictures) > 1:
            home += f"{folder}/"
        if config.clips or folder.lower() in CLIP_FOLDERS:
            units += _clip_units(home, files, annotations, config)
        else:
            units += _picture_units(home, files, annotations, config)
    return units


def _picture_units(
    home: str, files: dict[str, str], annotations: dict[str, dict[str, str]], config: PicturesConfig
) -> list[Unit]:
    units = []
    for stem, path in files.items():
        channels = {"image": (path,)}
        channels |= {name: (of[stem],) for name, of in annotations.items() if stem in of}
        id, folder = writable(home + stem), stem.rpartition("/")[0]
        lacks = tuple(name for name in annotations if name not in channels)
        units.append(Unit(id, _group(id, config), folder and writable(home + folder), False, channels, lacks=lacks))
    return units


def _clip_units(
    home: str, files: dict[str, str], annotations: dict[str, dict[str, str]], config: PicturesConfig
) -> list[Unit]:
    clips: dict[str, list[str]] = {}
    for stem in files:
        clips.setdefault(stem.rpartition("/")[0], []).append(stem)
    units = []
    for clip, stems in clips.items():
        stems.sort(key=_natural)
        id = writable((home + clip).rstrip("/") or config.name or "clip")
        folder = clip.rpartition("/")[0]
        starts = list(range(0, max(1, len(stems) - config.frames + 1), config.frames))
        if starts[-1] + config.frames < len(stems):
            starts.append(len(stems) - config.frames)
        for start in starts:
            window = stems[start : start + config.frames]
            channels = {"image": tuple(files[stem] for stem in window)}
            for name, of in annotations.items():
                if all(stem in of for stem in window):
                    channels[name] = tuple(of[stem] for stem in window)
            unit_id = id if len(starts) == 1 else f"{id}:{start}"
            label, lacks = (
                folder and writable(home + folder),
                tuple(name for name in annotations if name not in channels),
            )
            units.append(Unit(unit_id, _group(id, config), label, True, channels, lacks=lacks))
    return units


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Frame 2 before frame 10."""
    return [(0, int(part), part) if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def _group(id: str, config: PicturesConfig) -> str:
    match = re.search(config.group_pattern, id) if config.group_pattern else None
    return match[0] if match else id


# Reading a unit.


class PicturesSource:
    """A folder of pictures; see the head of this file and `lvm.sources.base.Source`.

    Raises `UserError` for a folder without pictures.
    """

    def __init__(self, config: PicturesConfig) -> None:
        self.config = config
        self.root = Path(config.path).expanduser()
        self.name = config.name or self.root.resolve().name
        self.resize = config.resize
        if not self.root.is_dir():
            raise UserError(f"{self.root} is not a folder; name one that holds pictures")
        paths = list_files(self.root, decode.SUFFIXES, config.include, config.exclude)
        if not paths:
            which = " that `include` and `exclude` admit" if config.include or config.exclude else ""
            raise UserError(f"{self.root} holds no pictures{which} ({' '.join(decode.SUFFIXES)})")
        self.units = find_units(self.root, paths, config)
        found = {channel for unit in self.units for channel in unit.channels}
        if any(not unit.is_clip and not unit.problem for unit in self.units):
            found |= {name for name in config.derived if name == "gray" or config.views}
        known = [channel for channel in CHANNELS if channel in found]
        self.channels = tuple(known + sorted(found - set(known)))
        self.labels = tuple(sorted({unit.label for unit in self.units if unit.label}))
        self._classes = read_classes(config.classes) if config.classes else None
        self._label_numbers = {label: number for number, label in enumerate(self.labels)}

    def __len__(self) -> int:
        return len(self.units)

    def unit_id(self, i: int) -> str:
        return self.units[i].id

    @property
    def unmatched(self) -> list[str]:
        """Pictures and clips without an annotation that others beside them have, a line each."""
        return [f"{unit.id}: no {', '.join(unit.lacks)}" for unit in self.units if unit.lacks]

    def fingerprint(self) -> str:
        options = {key: value for key, value in asdict(self.config).items() if key not in ("path", "name", "classes")}
        options["class_list"] = sorted(self._classes.items()) if self._classes else None
        head = json.dumps({"version": PICTURES_VERSION, **options}, sort_keys=True)
        digest = hashlib.sha256(head.encode())
        for unit in self.units:
            digest.update(json.dumps([unit.id, unit.group, unit.label, dict(unit.channels)]).encode())
        return digest.hexdigest()

    def read(self, i: int, size: int) -> list[Item]:
        unit = self.units[i]
        if unit.problem:
            (files,) = unit.channels.values()
            raise BrokenItem(str(self.root / files[0]), unit.problem)
        try:
            record = Record(
                unit.id,
                unit.group,
                (self._frame(unit, n) for n in range(len(unit.channels["image"]))),
                unit.is_clip,
                self._label_numbers.get(unit.label, -1),
                self.config.licence,
                origin=writable(unit.channels["image"][0]),
            )
            return draw_record(record, self.config, size)
        except decode.PictureError as error:
            raise BrokenItem(error.file, error.reason) from None

    def first_frame(self, i: int) -> Frame:
        """What `read` draws, before it is drawn. Raises `BrokenItem`."""
        try:
            return self._frame(self.units[i], 0)
        except decode.PictureError as error:
            raise BrokenItem(error.file, error.reason) from None

    def _frame(self, unit: Unit, n: int) -> Frame:
        file = self.root / unit.channels["image"][n]
        annotations = {
            channel: read_annotation(channel, self.root / files[n], self.config, self._classes)
            for channel, files in unit.channels.items()
            if channel != "image"
        }
        return Frame(decode.load(file, self.config.max_pixels), str(file), annotations)
