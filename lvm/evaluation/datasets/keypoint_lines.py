"""Objects with keypoints, one JSON object a line: Pascal3D+ and any other set of keypoints after a conversion.

    {"image": "Images/car_pascal/2008_000251.jpg", "box": [50, 71, 402, 262], "label": "car",
     "keypoints": [[88.2, 190.0], null, [301.5, 201.7]]}

Coordinates are pixels of the picture, box is left, top, right, bottom; paths start from the file's folder. Optional:
"id" (the path and the line's number) and "group" (the path). null is a keypoint that cannot be seen.

Each object is cut out as the square about its box, a tenth of the larger side added all round, and its keypoints are
drawn on it as red dots: channels image, keypoints and those derived of the cut. Pascal3D+ keeps its annotations in
MATLAB files, which are not read here: docs/evaluation.md has the conversion.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.evaluation.annotated import HeldOut, Remembered
from lvm.evaluation.datasets.layout import derived_channels
from lvm.pictures import decode, keypoints
from lvm.pictures.derive import DERIVED
from lvm.pictures.geometry import Geometry
from lvm.runtime import UserError
from lvm.sources.base import BrokenItem

if TYPE_CHECKING:
    from jaxtyping import Float

    from lvm.evaluation.cases import Picture
    from lvm.pictures.pieces import Box

MARGIN = 0.1  # of the box's larger side, on each side
FORM = '{"image": FILE, "box": [left, top, right, bottom], "keypoints": [[x, y], null, ...], "label": CLASS}'


@dataclass(frozen=True)
class Line:
    id: str
    group: str
    label: str
    image: str
    box: tuple[float, float, float, float]
    points: "Float[np.ndarray, 'k 2']"  # NaN where unknown

    @property
    def geometry(self) -> Geometry:
        """The square that is cut out; it may reach beyond the picture, which is black there."""
        left, top, right, bottom = self.box
        half = (0.5 + MARGIN) * max(right - left, bottom - top)
        x, y = (left + right) / 2, (top + bottom) / 2
        side = max(2, round(2 * half))
        corner = round(x - half), round(y - half)
        return Geometry(*corner, corner[0] + side, corner[1] + side)


class KeypointLines:
    """See the head of this file, and `lvm.evaluation.annotated.Annotated`. Raises `UserError`."""

    channels: tuple[str, ...] = ("image", "keypoints", *DERIVED)

    def __init__(self, path: Path, size: int, kept_out: HeldOut):
        self.path, self._size, self._kept_out = path, size, kept_out
        self.name = path.stem
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read ({error}); give a file of lines {FORM}") from None
        self.lines = [read_line(path, n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        if not self.lines:
            raise UserError(f"{path} holds no line; write one for each object: {FORM}")
        self.ids = [line.id for line in self.lines]
        self.groups = [line.group for line in self.lines]
        self.labels = [line.label for line in self.lines]
        self._digest = hashlib.sha256(text.encode()).hexdigest()
        self._kept = Remembered()

    def __len__(self) -> int:
        return len(self.lines)

    def has(self, i: int, channel: str) -> bool:
        return channel in self.channels

    def may_ask(self, i: int) -> bool:
        return self.groups[i] in self._kept_out

    def views(self, i: int) -> tuple[int, ...]:
        return (0,)

    def read(self, i: int, view: int, channels: Collection[str] | None = None) -> "Mapping[str, Picture]":
        found: Mapping[str, Picture] = self._kept(i, lambda: self._drawn(self.lines[i]))
        return found

    def _drawn(self, line: Line) -> "Mapping[str, Picture]":
        file = self.path.parent / line.image
        try:
            photo = decode.shrink(decode.load(file), self._size, line.geometry, str(file))
        except decode.PictureError as error:
            raise BrokenItem(error.file, error.reason) from None
        dots = keypoints.draw(photo, line.geometry.points(line.points, self._size))
        return {"image": photo, "keypoints": dots, **derived_channels(line.id, photo)}

    def points(self, i: int) -> "Float[np.ndarray, 'k 2']":
        """Those that are known, in pixels of the picture that is shown, off which none lies."""
        placed = self.lines[i].geometry.points(self.lines[i].points, self._size)
        inside = ((placed >= 0) & (placed < self._size)).all(-1)  # never of NaN
        return placed[inside]

    def box(self, i: int) -> "Box":
        left, top, right, bottom = self.lines[i].box
        placed = self.lines[i].geometry.points(np.array([[left, top], [right, bottom]]), self._size)
        (a, b), (c, d) = np.rint(placed).astype(int).tolist()
        return a, b, max(c, a + 1), max(d, b + 1)

    def fingerprint(self) -> str:
        return f"{self._digest} {self._kept_out} {self._size} {MARGIN} {self.channels}"


def read_line(path: Path, number: int, text: str) -> Line:
    """Raises `UserError` that names the line and its form."""
    try:
        given: Any = json.loads(text)
        image = given["image"]
        box = np.array(given["box"], np.float64)
        points = np.array([(np.nan, np.nan) if p is None else p for p in given["keypoints"]], np.float64)
        if not isinstance(image, str) or Path(image).is_absolute() or ".." in Path(image).parts:
            raise ValueError(f"image {image!r} is no path below the file's folder")
        if box.shape != (4,) or not np.isfinite(box).all() or not (box[:2] < box[2:]).all():
            raise ValueError(f"box {given['box']} is not left, top, right, bottom")
        points = points.reshape(-1, 2) if points.size == 0 else points
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError("keypoints are not pairs of numbers or null")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path} line {number}: {what}; a line is {FORM}") from None
    group = str(given.get("group", image))
    name = str(given.get("id", f"{image}#{number}"))
    left, top, right, bottom = box.tolist()
    return Line(name, group, str(given.get("label", "")), image, (left, top, right, bottom), points)


def refuse_matlab(folder: Path) -> None:
    """Raises `UserError` for Pascal3D+ as it is distributed."""
    if next(iter(sorted(folder.glob("Annotations/**/*.mat"))), None) is not None:
        raise UserError(
            f"{folder} has MATLAB annotations (Annotations/*.mat), which are not read: convert them to a file of lines "
            f"{FORM} (docs/evaluation.md says how) and give --data FILE.jsonl"
        )
