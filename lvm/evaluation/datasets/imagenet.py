"""ImageNet's validation pictures (ILSVRC 2012, 50,000; image-net.org), by class or flat.

    DIR/n01440764/ILSVRC2012_val_00000293.JPEG     or DIR/val/n01440764/..., a folder a class
    DIR/ILSVRC2012_val_00000001.JPEG               or DIR/val/..., as the archive has them: no classes

In the order of torchvision's ImageFolder: classes by name, pictures by name. No picture is opened to list them.
"""

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from lvm.evaluation.annotated import Remembered
from lvm.evaluation.datasets.layout import derived_channels, pictures_in, refuse
from lvm.pictures import decode
from lvm.pictures.derive import DERIVED
from lvm.pictures.geometry import Geometry, geometries
from lvm.runtime import UserError
from lvm.sources.base import BrokenItem, writable

if TYPE_CHECKING:
    from lvm.evaluation.cases import Picture

Part = Literal["crop", "squash", "centre_111"]
TREE = "n01440764/ILSVRC2012_val_00000293.JPEG (a folder a class) or ILSVRC2012_val_00000001.JPEG, in it or in its val/"
CLASS, PICTURE = re.compile(r"n\d{8}"), re.compile(r"ILSVRC2012_val_\d{8}")
CENTRE = 111  # pixels a side of the published cut
PUBLISHED_SEED, PUBLISHED_QUERIES = 5, 1000


def is_imagenet(folder: Path) -> bool:
    """By its first names."""
    home = folder / "val" if (folder / "val").is_dir() else folder
    names = [path.name for path in home.iterdir() if path.name[0] != "."]
    return bool(names) and all(CLASS.fullmatch(name) or PICTURE.match(name) for name in sorted(names)[:20])


class ImageNetVal:
    """`Annotated` with what is made of the photo alone. `part`: what is drawn of a picture; `published_queries`: only
    the 1,000 that the published code asks about are queries. Raises `UserError`."""

    channels: tuple[str, ...] = ("image", *DERIVED)
    name = "imagenet"

    def __init__(self, folder: Path, size: int, part: Part = "crop", published_queries: bool = False) -> None:
        if not folder.is_dir():
            raise refuse(f"{folder} is not a folder", TREE)
        self._size, self._part = size, part
        home = folder / "val" if (folder / "val").is_dir() else folder
        classes = sorted(path for path in home.iterdir() if path.is_dir() and path.name[0] != ".")
        self._files = [file for path in classes or [home] for file in pictures_in(path).values()]
        if not self._files:
            raise refuse(f"{home} holds no pictures", TREE)
        self.ids = [writable(file.relative_to(home).as_posix()) for file in self._files]
        self.groups = self.ids
        self.labels = [writable(file.parent.name) if classes else "" for file in self._files]
        self.asked = published_indices(len(self), home) if published_queries else None
        self._kept = Remembered()

    def __len__(self) -> int:
        return len(self._files)

    def has(self, i: int, channel: str) -> bool:
        return channel in self.channels

    def may_ask(self, i: int) -> bool:
        return self.asked is None or i in self.asked

    def views(self, i: int) -> Sequence[int]:
        return [0]

    def read(self, i: int, view: int, channels: Collection[str] | None = None) -> "Mapping[str, Picture]":
        return self._kept(i, lambda: self._draw(i))

    def _draw(self, i: int) -> "Mapping[str, Picture]":
        try:
            image = decode.load(self._files[i])
            picture = decode.shrink(image, self._size, drawn_part(*image.size, self._part), str(self._files[i]))
        except decode.PictureError as error:
            raise BrokenItem(error.file, error.reason) from None
        return {"image": picture, **derived_channels(self.ids[i], picture)}

    def fingerprint(self) -> str:
        head = f"{self._size} {self._part} {sorted(self.asked or ())}"
        return hashlib.sha256("\n".join([head, *self.ids]).encode()).hexdigest()


def drawn_part(width: int, height: int, part: Part) -> Geometry:
    """centre_111: the central 111 x 111 pixels, black where the picture is smaller, as torchvision's CenterCrop."""
    if part != "centre_111":
        return geometries(width, height, part)[0]
    left, top = (centred(length) for length in (width, height))
    return Geometry(left, top, left + CENTRE, top + CENTRE)


def centred(length: int) -> int:
    return round((length - CENTRE) / 2) if length >= CENTRE else -((CENTRE - length) // 2)


def published_indices(number: int, home: Path) -> frozenset[int]:
    """The pictures that the published code asks about: numpy's seed 5, 1,000 of all but the last."""
    if number - 1 < PUBLISHED_QUERIES:
        raise UserError(f"queries=published draws {PUBLISHED_QUERIES} pictures and {home} holds {number}; use any")
    draws = np.random.RandomState(PUBLISHED_SEED)
    return frozenset(draws.choice(np.arange(number - 1), size=PUBLISHED_QUERIES, replace=False).tolist())
