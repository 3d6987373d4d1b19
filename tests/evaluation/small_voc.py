"""PASCAL VOC 2012 in miniature: noise with an ellipse of one class a picture, its mask and its box."""

from pathlib import Path

import numpy as np
from PIL import Image

from lvm.evaluation.datasets.voc import CLASSES

VOID = 255
PER_CLASS = 5


def write_voc(root: Path, per_class: int = PER_CLASS, classes: range = range(20)) -> Path:
    """VOCdevkit/VOC2012 with masks, boxes, lists of both; returns that folder."""
    voc = root / "VOCdevkit" / "VOC2012"
    for part in ("JPEGImages", "SegmentationClassAug", "Annotations", "ImageSets/Main"):
        (voc / part).mkdir(parents=True)
    lists = voc / "splits" / "pascal" / "val"
    lists.mkdir(parents=True)
    names: dict[str, list[str]] = {"train": [], "val": []}
    lines: dict[int, list[str]] = {}
    rng = np.random.default_rng(0)
    for n in range(per_class):
        for k in classes:
            name = f"2007_{n:03d}{k:03d}"
            write_picture(voc, name, k, rng)
            names["val" if n % 2 else "train"].append(name)
            lines.setdefault(k // 5, []).append(f"{name}__{k + 1:02d}")
    for part, found in names.items():
        (voc / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{name}\n" for name in found))
    for fold, found in lines.items():
        (lists / f"fold{fold}.txt").write_text("".join(f"{line}\n" for line in found))
    return voc


def write_picture(voc: Path, name: str, k: int, rng: np.random.Generator) -> None:
    width, height = (60, 40) if k % 2 else (48, 64)
    left, top = int(rng.integers(0, width - 20)), int(rng.integers(0, height - 20))
    wide, high = (int(v) for v in rng.integers(10, 20, 2))
    pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    pixels[top : top + high, left : left + wide] = 10 * k + 40
    Image.fromarray(pixels).save(voc / "JPEGImages" / f"{name}.jpg", quality=95)
    y, x = np.mgrid[:height, :width]
    mask = np.zeros((height, width), np.uint8)
    mask[0] = (k + 1) % 20 + 1  # of another class
    inside = ((x - left - wide / 2) / wide) ** 2 + ((y - top - high / 2) / high) ** 2
    mask[inside < 0.3] = VOID
    mask[inside < 0.25] = k + 1
    Image.fromarray(mask).save(voc / "SegmentationClassAug" / f"{name}.png")
    write_boxes(voc, name, (width, height), [(CLASSES[k], left + 1, top + 1, left + wide, top + high)])


def write_boxes(voc: Path, name: str, size: tuple[int, int], boxes: list[tuple[str, int, int, int, int]]) -> None:
    """Boxes as VOC writes them: from 1, both ends inclusive."""
    objects = "".join(
        f"<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax>"
        f"<ymax>{d}</ymax></bndbox><part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax>"
        f"<ymax>2</ymax></bndbox></part></object>"
        for label, a, b, c, d in boxes
    )
    (voc / "Annotations" / f"{name}.xml").write_text(
        f"<annotation><filename>{name}.jpg</filename><size><width>{size[0]}</width><height>{size[1]}</height>"
        f"<depth>3</depth></size>{objects}</annotation>"
    )
