"""PASCAL VOC 2012 as it is shipped: where its parts lie, what is missing, its pictures with one annotation each.

VOCdevkit/VOC2012/                          or any folder above or this one
    JPEGImages/2007_000033.jpg
    SegmentationClassAug/2007_000033.png    VOC and SBD merged, as few-shot code ships it; or SegmentationClass/
    Annotations/2007_000033.xml             boxes
    ImageSets/Main/{train,val}.txt          lists of pictures
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from PIL import Image

from lvm.evaluation.annotated import Remembered
from lvm.evaluation.datasets.layout import derived_channels, refuse
from lvm.pictures import decode
from lvm.pictures.derive import DERIVED
from lvm.pictures.geometry import geometries
from lvm.runtime import UserError
from lvm.sources.base import BrokenItem

if TYPE_CHECKING:
    from lvm.evaluation.cases import Picture

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
ROOTS = ("", "VOC2012", "VOCdevkit/VOC2012")
PARTS = ("JPEGImages", "SegmentationClassAug", "SegmentationClass", "ImageSets")  # by which it is known


def find_root(data: str | None) -> Path | None:
    """The folder that holds JPEGImages/ and the rest; None where `data` is no VOC at all."""
    if data is None or not Path(data).expanduser().is_dir():
        return None
    roots = (Path(data).expanduser() / below for below in ROOTS)
    return next((root for root in roots if any((root / part).is_dir() for part in PARTS)), None)


def need(path: Path, expected: str) -> Path:
    """Raises `UserError`, with the tree that is expected, where there is no such file or folder."""
    if not path.exists():
        raise refuse(f"{path} is missing", expected)
    return path


def need_files(folder: Path, names: Iterable[str], what: str, expected: str) -> None:
    """One look at the folder. Raises `UserError` that counts what it lacks, with the tree that is expected."""
    held = {path.name for path in folder.iterdir()}
    wanted = list(dict.fromkeys(names))
    lacking = [name for name in wanted if name not in held]
    if lacking:
        raise refuse(f"{folder} lacks {len(lacking)} of {len(wanted)} {what}, the first {lacking[0]}", expected)


def read_lines(file: Path) -> list[str]:
    """Of a list of pictures, blank lines left out."""
    try:
        return [line.strip() for line in file.read_text().splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise UserError(f"{file} is no text; it must hold a name of a picture a line") from None


A = TypeVar("A")


@dataclass(frozen=True)
class Entry(Generic[A]):
    id: str
    name: str  # of the picture
    label: str
    annotation: A
    asked: bool = True


Draw = Callable[[Entry[A], Image.Image, int], "Picture"]


class VocItems(Generic[A]):
    """Listed pictures with one annotation each, squashed to squares; `draw` makes the annotation's picture. What is
    derived of the photo is there for the control of another task."""

    def __init__(self, root: Path, entries: Sequence[Entry[A]], channel: str, draw: Draw[A], size: int):
        self.name = root.name
        self.channels = ("image", *DERIVED, channel)
        self.entries, self._root, self._draw, self._size = entries, root, draw, size
        self.ids = [entry.id for entry in entries]
        self.groups = [entry.name for entry in entries]
        self.labels = [entry.label for entry in entries]
        self._kept = Remembered()

    def __len__(self) -> int:
        return len(self.entries)

    def has(self, i: int, channel: str) -> bool:
        return channel in self.channels

    def may_ask(self, i: int) -> bool:
        return self.entries[i].asked

    def views(self, i: int) -> Sequence[int]:
        return (0,)

    def read(self, i: int, view: int, channels: Collection[str] | None = None) -> "Mapping[str, Picture]":
        drawn: Mapping[str, Picture] = self._kept(i, lambda: self._read(self.entries[i]))
        return drawn

    def _read(self, entry: Entry[A]) -> "Mapping[str, Picture]":
        file = self._root / "JPEGImages" / f"{entry.name}.jpg"
        try:
            image = decode.load(file)
            photo = decode.shrink(image, self._size, geometries(*image.size)[0], str(file))
            drawn = self._draw(entry, image, self._size)
            return {"image": photo, **derived_channels(entry.name, photo), self.channels[-1]: drawn}
        except decode.PictureError as error:
            raise BrokenItem(error.file, error.reason) from None

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.channels} {self._size}".encode())
        for entry in self.entries:
            digest.update(f"{entry}\n".encode())
        return digest.hexdigest()
