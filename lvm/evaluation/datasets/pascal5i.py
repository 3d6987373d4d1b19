"""Pascal-5i (Shaban et al., BMVC 2017): masks of VOC2012 and a list of pictures for each of four folds of classes.

    splits/pascal/val/fold0.txt     lines like 2007_000033__01: a picture and the class of it that is asked for, from 1

A mask is what the picture shows of that class; everything else, other classes and void (255) alike, is ground, as in
the published code. It is resized by bicubic filtering and cut at half, as that code does.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lvm.evaluation.datasets.layout import refuse
from lvm.evaluation.datasets.voc import CLASSES, Entry, VocItems, need, need_files, read_lines
from lvm.evaluation.two_colours import BLACK_WHITE
from lvm.pictures import decode
from lvm.runtime import UserError

if TYPE_CHECKING:
    from lvm.evaluation.cases import Picture

FOLDS, IN_FOLD = 4, 5
CHANNEL = "object_mask"
EXPECTED = (
    "VOC2012/{JPEGImages/NAME.jpg, SegmentationClassAug/NAME.png} "
    "and splits/pascal/val/fold0.txt to fold3.txt (there, or lists=DIR)"
)
LISTS = ("splits/pascal/val", "pascal/val", "val", "")  # below the folder of lists or of the data
SBD = ("cls", "dataset/cls", "benchmark_RELEASE/dataset/cls")


def refuse_sbd(data: str | None) -> None:
    """Raises `UserError` for SBD's own tree, whose masks are MATLAB files."""
    for below in SBD if data else ():
        if next((Path(str(data)).expanduser() / below).glob("*.mat"), None):
            raise UserError(
                f"{data} is SBD's own tree: its masks are .mat files, which are not read; give VOC2012 with the merged "
                f"masks as PNG that few-shot code ships, or make them as docs/evaluation.md says: {EXPECTED}"
            )


def open_fold_masks(root: Path, data: str, lists: str, folds: list[int], size: int) -> "VocItems[tuple[int, int]]":
    """The pictures of these folds, in the order of their lists; an entry's annotation is (fold, class from 1). Raises
    `UserError` that names what is missing."""
    need(root / "JPEGImages", EXPECTED)
    masks = next(
        (root / part for part in ("SegmentationClassAug", "SegmentationClass") if (root / part).is_dir()), None
    )
    if masks is None:
        raise refuse(f"{root / 'SegmentationClassAug'} is missing (as is SegmentationClass)", EXPECTED)
    home = find_lists([Path(lists).expanduser()] if lists else [Path(data).expanduser(), root])
    entries = [entry for fold in folds for entry in read_fold(home / f"fold{fold}.txt", fold)]
    need_files(root / "JPEGImages", (f"{entry.name}.jpg" for entry in entries), "pictures of the lists", EXPECTED)
    need_files(masks, (f"{entry.name}.png" for entry in entries), "masks of the lists", EXPECTED)
    return VocItems(root, entries, CHANNEL, lambda entry, image, size: draw_mask(masks, entry, image, size), size)


def find_lists(folders: list[Path]) -> Path:
    for folder in folders:
        for below in LISTS:
            if any((folder / below / f"fold{fold}.txt").is_file() for fold in range(FOLDS)):
                return folder / below
    raise refuse(f"{folders[0]} holds no lists of folds (fold0.txt to fold3.txt)", EXPECTED)


def read_fold(file: Path, fold: int) -> list[Entry[tuple[int, int]]]:
    """Raises `UserError` for a line that is none of this fold."""
    first, last = fold * IN_FOLD + 1, (fold + 1) * IN_FOLD
    found = []
    for number, line in enumerate(read_lines(need(file, EXPECTED)), 1):
        match = re.fullmatch(r"([\w-]+)__(\d+)", line)
        if not match:
            raise UserError(f"{file} line {number}: {line!r} is not like 2007_000033__01, a picture and a class")
        name, k = match[1], int(match[2])
        if not first <= k <= last:
            raise UserError(
                f"{file} line {number}: class {k} is not of fold {fold}, whose classes are {first} to {last}"
            )
        found.append(Entry(line, name, CLASSES[k - 1], (fold, k)))
    absent = [CLASSES[k - 1] for k in range(first, last + 1) if all(entry.annotation[1] != k for entry in found)]
    if absent:
        raise UserError(f"{file} has no picture of {', '.join(absent)}; use the whole list of the fold")
    return found


def draw_mask(masks: Path, entry: Entry[tuple[int, int]], image: Image.Image, size: int) -> "Picture":
    """White where the picture shows the class. Raises `PictureError`."""
    file, k = masks / f"{entry.name}.png", entry.annotation[1]
    mask = decode.load(file)
    if mask.size != image.size:
        (width, height), (wide, high) = mask.size, image.size
        raise decode.PictureError(str(file), f"is {width} x {height}, its picture {wide} x {high}")
    if mask.mode not in ("L", "P"):
        raise decode.PictureError(str(file), f"has mode {mask.mode}; a mask holds class numbers (a palette, or gray)")
    figure = np.asarray(mask) == k
    if not figure.any():
        raise decode.PictureError(str(file), f"has no pixel of class {k}, {entry.label}, that the list promises")
    resized = Image.fromarray(figure.astype(np.uint8) * 255).resize((size, size), Image.Resampling.BICUBIC)
    return BLACK_WHITE.draw(np.asarray(resized) > 127)
