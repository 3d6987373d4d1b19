"""Tars of samples, as webdataset and img2dataset write them, read in place: nothing is unpacked.

    00000.tar:  000000001.jpg  000000001.json  000000001.txt      files of one stem are a sample
                street/07.jpg  street/07.seg.png  street/07.cls   annotations by the same names as folders of pictures

Captions come from .txt or json["caption"], where a picture is from and its licence from json["url"] and
json["license"], labels from .cls or json["label"]. A unit is a sample; one more stands for each place where a tar is
damaged, so that what was given is what is stored and what is quarantined.
"""

import bisect
import hashlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from glob import glob
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image

from lvm.pictures import decode
from lvm.runtime import UserError
from lvm.sources.base import BrokenItem, Item, writable
from lvm.sources.drawing import FilesConfig, Frame, Record, draw_record, make_annotation, read_classes
from lvm.sources.listing import list_files
from lvm.sources.pictures import ANNOTATION_FOLDERS, CHANNELS, PICTURE_FOLDERS
from lvm.sources.tar_index import (
    Members,
    TarDamage,
    TarSummary,
    file_system,
    is_remote,
    load_samples,
    out_of_reach,
    read_ranges,
    summarise,
)

# Part of every fingerprint: raise it when the same files and options give other pictures.
TARS_VERSION = 2

ANNOTATIONS = {**ANNOTATION_FOLDERS, "seg": "segmentation"}
MAX_TARS = 10**6
MAX_TEXT = 2**20  # bytes of a caption, label or json
MAX_BYTES_PER_PIXEL = 16  # times max_pixels: no picture's file is larger


@dataclass(frozen=True, kw_only=True)
class TarsConfig(FilesConfig):
    path: str  # a tar, a folder of tars, a pattern ("data/{000..099}.tar", "data/*.tar"), or a URL of such (fsspec)
    name: str = ""  # of the source; the name of the tars' folder if empty
    # Suffix, as "sketch" of 1.sketch.png, -> channel, beyond the known names; -> "": left out.
    channels: dict[str, str] = field(default_factory=dict)


# Which tars.


def expand_braces(pattern: str) -> Iterator[str]:
    """{a,b} and {000..127}, as a shell expands them."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        yield pattern
        return
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if bounds:
        width = len(bounds[1]) if bounds[1].startswith("0") else 0
        choices: Any = (f"{n:0{width}d}" for n in range(int(bounds[1]), int(bounds[2]) + 1))
    else:
        choices = found[1].split(",")
    for choice in choices:
        yield from expand_braces(pattern[: found.start()] + choice + pattern[found.end() :])


def find_tars(given: str) -> list[str]:
    """Paths or URLs of all tars that `path` names, in order. Raises `UserError` for none, or an absurd number."""
    paths: dict[str, None] = {}
    for pattern in expand_braces(given):
        if is_remote(pattern):
            paths |= dict.fromkeys(_remote_tars(pattern))
        elif Path(pattern).is_dir():
            paths |= dict.fromkeys(f"{pattern.rstrip('/')}/{path}" for path in list_files(Path(pattern), (".tar",)))
        elif re.search(r"[*?\[]", pattern) and not Path(pattern).exists():
            paths |= dict.fromkeys(sorted(glob(pattern, recursive=True)))
        else:
            paths[pattern] = None
        if len(paths) > MAX_TARS:
            raise UserError(f"{given} names more than {MAX_TARS:,} tars")
    if not paths:
        raise UserError(f"{given}: there are no tars; name a tar, a folder of them, a pattern or a URL")
    return list(paths)


def _remote_tars(pattern: str) -> list[str]:
    if not re.search(r"[*?\[]", pattern.partition("://")[2]):
        return [pattern]
    system, inside = file_system(pattern)
    try:
        found = sorted(system.glob(inside))
    except Exception as error:
        raise out_of_reach(pattern, error) from None
    start, here = fixed_folder(pattern), fixed_folder(inside)  # the same folder by its URL and by its path in there
    return [start + path.removeprefix(here) for path in found]


def fixed_folder(pattern: str) -> str:
    """The part of a pattern before what differs from tar to tar, with its last slash."""
    fixed = re.split(r"[{*?\[]", pattern)[0]
    return fixed[: fixed.rfind("/") + 1]


# What their files are.


def channel_of(suffix: str, channels: dict[str, str]) -> str | None:
    """The channel of a sample's file ("image" of its picture), None if it is no picture. Raises `UserError`."""
    name, _, extension = suffix.rpartition(".")
    for key in (suffix, name):
        if key and key in channels:
            return channels[key] or None
    if f".{extension}" not in decode.SUFFIXES:
        return None
    if not name or name in PICTURE_FOLDERS:
        return "image"
    if name not in ANNOTATIONS:
        raise UserError(
            f".{suffix}: not a known annotation (known: {', '.join(sorted(ANNOTATIONS))}); say "
            f"`channels: {{{name}: CHANNEL}}`, or `channels: {{{name}: ''}}` to leave it out"
        )
    return ANNOTATIONS[name]


class TarsSource:
    """See the head of this file and `lvm.sources.base.Source`. Raises `UserError` where no tar holds a sample."""

    def __init__(self, config: TarsConfig) -> None:
        self.config = config
        given = config.path if is_remote(config.path) else str(Path(config.path).expanduser())
        paths, folder = find_tars(given), fixed_folder(given)
        if not is_remote(given) and Path(given).is_dir():
            folder = given.rstrip("/") + "/"
        name = Path(folder).resolve().name if not is_remote(folder) else folder.rstrip("/").rpartition("/")[2]
        self.name = config.name or (name if len(paths) > 1 else Path(paths[0]).stem)
        self.resize = config.resize
        with ThreadPoolExecutor(8) as pool:
            self.tars = list(pool.map(summarise, paths))
        self.ids = [writable(path.removeprefix(folder).removesuffix(".tar")) for path in paths]
        if not any(tar.num_samples for tar in self.tars):
            first = next((tar for tar in self.tars if tar.damage), self.tars[0])
            raise UserError(f"{given} holds no samples; {first.path} {first.damage or 'has no files'}")
        suffixes = sorted({suffix for tar in self.tars for suffix in tar.suffixes})
        self._channels = {suffix: channel_of(suffix, config.channels) for suffix in suffixes}
        found = {channel for channel in self._channels.values() if channel}
        if "image" not in found:
            raise UserError(
                f"{given} holds no pictures, only {', '.join(suffixes)}; read are {' '.join(decode.SUFFIXES)}"
            )
        found |= {name for name in config.derived if name == "gray" or config.views}
        self.channels = tuple([c for c in CHANNELS if c in found] + sorted(found - set(CHANNELS)))
        self._classes = read_classes(config.classes) if config.classes else None
        self._ends = list(accumulate(tar.num_samples + bool(tar.damage) for tar in self.tars))
        self._samples: tuple[int, list[tuple[str, Members]]] | None = None  # of the tar read last

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_samples": None}

    def __len__(self) -> int:
        return self._ends[-1]

    def unit_id(self, i: int) -> str:
        tar, sample = self._find(i)
        if sample == self.tars[tar].num_samples:
            return f"{self.ids[tar]} (damage)"
        try:
            return f"{self.ids[tar]}/{self._load(tar)[sample][0]}"
        except TarDamage:
            return f"{self.ids[tar]} (sample {sample})"

    def fingerprint(self) -> str:
        options = {key: value for key, value in asdict(self.config).items() if key not in ("path", "name", "classes")}
        options["class_list"] = sorted(self._classes.items()) if self._classes else None
        head = json.dumps({"version": TARS_VERSION, **options}, sort_keys=True)
        lines = (json.dumps([id, tar.digest, bool(tar.damage)]) for id, tar in zip(self.ids, self.tars))
        return hashlib.sha256("\n".join([head, *lines]).encode()).hexdigest()

    def _find(self, i: int) -> tuple[int, int]:
        """Tar and sample of unit i; the sample after its last stands for its damage."""
        tar = bisect.bisect_right(self._ends, i)
        return tar, i - (self._ends[tar - 1] if tar else 0)

    def _load(self, tar: int) -> list[tuple[str, Members]]:
        if self._samples is None or self._samples[0] != tar:
            self._samples = (tar, load_samples(self.tars[tar]))
        return self._samples[1]

    def read(self, i: int, size: int) -> list[Item]:
        number, sample = self._find(i)
        tar = self.tars[number]
        if sample == tar.num_samples:
            raise BrokenItem(tar.path, tar.damage)
        try:
            key, members = self._load(number)[sample]
            files = self._read_members(tar, key, members)
            record = self._record(f"{self.ids[number]}/{key}", f"{tar.path}:{key}", files)
            return draw_record(record, self.config, size)
        except decode.PictureError as error:
            raise BrokenItem(error.file, error.reason) from None
        except TarDamage as damage:
            raise BrokenItem(tar.path, str(damage)) from None
        except OSError as error:
            raise BrokenItem(tar.path, f"cannot be read ({error.strerror or error})") from None

    def _read_members(self, tar: TarSummary, key: str, members: Members) -> dict[str, bytes]:
        """Suffix -> bytes of the files that are used."""
        used = [suffix for suffix in members if self._channels[suffix] or suffix in ("json", "txt", "cls")]
        for suffix in used:
            most = self.config.max_pixels * MAX_BYTES_PER_PIXEL if self._channels[suffix] else MAX_TEXT
            if members[suffix][1] > most:
                reason = f"has {members[suffix][1]:,} bytes; at most {most:,} are read"
                raise decode.PictureError(f"{tar.path}:{key}.{suffix}", reason)
        tar.check()
        parts = read_ranges(tar.path, [members[suffix] for suffix in used])
        if any(len(part) != members[suffix][1] for suffix, part in zip(used, parts)):
            raise TarDamage("has changed while it was read")
        return dict(zip(used, parts))

    def _record(self, id: str, where: str, files: dict[str, bytes]) -> Record:
        pictures: dict[str, str] = {}  # channel -> suffix
        for suffix in files:
            channel = self._channels[suffix]
            if channel and channel in pictures:
                both = f".{pictures[channel]} and .{suffix}"
                raise decode.PictureError(where, f"has two files of channel {channel}, {both}; name one in `channels`")
            if channel:
                pictures[channel] = suffix
        if "image" not in pictures:
            raise decode.PictureError(where, f"holds no picture ({', '.join(sorted(files)) or 'nothing of use'})")
        about = read_json_object(files["json"], f"{where}.json") if "json" in files else {}
        images = {
            channel: load_bytes(files[suffix], f"{where}.{suffix}", self.config.max_pixels)
            for channel, suffix in pictures.items()
        }
        annotations = {
            channel: make_annotation(channel, image, f"{where}.{pictures[channel]}", self.config, self._classes)
            for channel, image in images.items()
            if channel != "image"
        }
        caption = files["txt"].decode("utf-8", "replace") if "txt" in files else text_of(about, "caption")
        return Record(
            id,
            id,
            [Frame(images["image"], f"{where}.{pictures['image']}", annotations)],
            label=read_label(files, about, where),
            licence=text_of(about, "licence", "license") or self.config.licence,
            caption=caption.strip(),
            origin=text_of(about, "url") or f"{id}.{pictures['image']}",
        )


def load_bytes(data: bytes, name: str, max_pixels: int) -> Image.Image:
    try:
        return decode.load(data, max_pixels)
    except decode.PictureError as error:
        raise decode.PictureError(name, error.reason) from None


def read_json_object(data: bytes, name: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise decode.PictureError(name, f"is no JSON ({' '.join(str(error).split())})") from None
    if not isinstance(found, dict):
        raise decode.PictureError(name, "is no JSON object")
    return found


def text_of(about: dict[str, Any], *keys: str) -> str:
    """The first of the keys that holds text."""
    return writable(next((about[key] for key in keys if isinstance(about.get(key), str)), ""))


def read_label(files: dict[str, bytes], about: dict[str, Any], where: str) -> int:
    """A whole number from 0; -1 where there is none. Anything else is passed over in a json, and wrong in a .cls."""
    if "cls" in files:
        try:
            label = int(files["cls"][:20])
        except ValueError:
            label = -1
        if not 0 <= label < 2**31:
            raise decode.PictureError(f"{where}.cls", "is no class number")
        return label
    given = about.get("label", about.get("cls"))
    return given if type(given) is int and 0 <= given < 2**31 else -1
