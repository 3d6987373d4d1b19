"""Bounding boxes outlined on the photo, as detectors draw them, or filled with the colour of their class; and back.

A box is (left, top, right, bottom) in pixels, right and bottom exclusive. The ground is the photo, or black.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.pictures import pieces, segmentation
from lvm.pictures.pieces import Box

if TYPE_CHECKING:
    from jaxtyping import Bool, Int64, UInt8

OWN_SHARE = 0.25  # of a box's line that no box found before it explains, for it to be found
MOST_SIDES = 24  # places tried for each side of crossing boxes
NEAR_LINE = 128  # L2 distance in RGB within which a pixel has the colour of a line


def draw(
    photo: "UInt8[np.ndarray, 'y x 3']", boxes: Iterable[Box], line: Any, width: int
) -> "UInt8[np.ndarray, 'y x 3']":
    """Boxes outlined in the colour `line`; the line, `width` pixels wide, lies inside the box."""
    picture = photo.copy()
    for left, top, right, bottom in boxes:
        picture[top : min(top + width, bottom), left:right] = line
        picture[max(bottom - width, top) : bottom, left:right] = line
        picture[top:bottom, left : min(left + width, right)] = line
        picture[top:bottom, max(right - width, left) : right] = line
    return picture


def read(
    picture: "UInt8[np.ndarray, 'y x 3']",
    line: Any,
    photo: "UInt8[np.ndarray, 'y x 3'] | None" = None,
    width: int | None = None,
    least: int = 1,
) -> list[Box]:
    """The boxes outlined in `line` on `photo` (None: on black), sorted. A pixel is of a line that is near its colour,
    and nearer to it than to the photo; connected pieces of fewer than `least` pixels are left out.

    Exact where the lines of two boxes do not touch, not even by corners (one box may lie in another), and the photo
    lacks the line's colour where lines are drawn. Boxes whose lines touch or cross are read as one, unless the `width`
    they were drawn with is given: see `untangle`.
    """
    to_line = squared_distance(picture, line)
    to_ground = squared_distance(picture, 0 if photo is None else photo)
    labels = pieces.label((to_line < NEAR_LINE**2) & (to_line < to_ground))
    found = []
    for k, (left, top, right, bottom) in pieces.bounds(labels).items():
        piece = labels[top:bottom, left:right] == k
        if piece.sum() >= least:
            parts = untangle(piece, width) if width else [(0, 0, right - left, bottom - top)]
            found += [(left + a, top + b, left + c, top + d) for a, b, c, d in parts]
    return sorted(found)


def untangle(lines: "Bool[np.ndarray, 'y x']", width: int) -> list[Box]:
    """The boxes that one connected piece of lines, each `width` pixels wide, is made of.

    Candidates are boxes between places where lines begin and end. The one whose line explains most pixels, less those
    it claims where there are none, is taken first, and so on, while a box explains a quarter of its line or more.
    Exact for one box, and nearly always for up to six that cross, no two sides within 2 `width` + 1 pixels; where
    lines run along each other it may miss or invent one.
    """
    (lefts, rights), (tops, bottoms) = _sides(lines.T), _sides(lines)
    boxes = np.stack(np.meshgrid(lefts, tops, rights, bottoms, indexing="ij"), -1).reshape(-1, 4)
    boxes = boxes[(boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])]
    holes = boxes + np.array([width, width, -width, -width])
    holes[(holes[:, 0] >= holes[:, 2]) | (holes[:, 1] >= holes[:, 3])] = 0

    def on_line(mask: "Bool[np.ndarray, 'y x']") -> "Int64[np.ndarray, 'n']":
        sums = np.pad(mask.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        of_box, of_hole = (
            sums[b[:, 3], b[:, 2]] - sums[b[:, 1], b[:, 2]] - sums[b[:, 3], b[:, 0]] + sums[b[:, 1], b[:, 0]]
            for b in (boxes, holes)
        )
        return of_box - of_hole

    areas = on_line(np.ones_like(lines))
    empty = areas - on_line(lines)
    unexplained, found = lines.copy(), list[Box]()
    while len(boxes):
        explained = on_line(unexplained) - empty
        best = int(explained.argmax())
        if explained[best] < max(1, OWN_SHARE * areas[best]):
            break
        line = np.zeros_like(lines)
        for (left, top, right, bottom), inked in ((boxes[best].tolist(), True), (holes[best].tolist(), False)):
            line[top:bottom, left:right] = inked
        unexplained &= ~line
        found.append(tuple(boxes[best].tolist()))
    return found


def _sides(lines: "Bool[np.ndarray, 'y x']") -> "tuple[Int64[np.ndarray, 'a'], Int64[np.ndarray, 'b']]":
    """Rows in which lines begin, and rows before which they end: those that most pixels agree on."""
    steps = np.diff(np.pad(lines, ((1, 1), (0, 0))).astype(np.int8), axis=0)
    begin, end = (
        np.argsort(-count, kind="stable")[: min(MOST_SIDES, int((count > 0).sum()))]
        for count in ((steps > 0).sum(1), (steps < 0).sum(1))
    )
    return begin, end


def draw_filled(
    ground: "UInt8[np.ndarray, 'y x 3']",
    boxes: Iterable[Box],
    classes: Iterable[int],
    palette: "UInt8[np.ndarray, 'k 3']" = segmentation.PALETTE,
) -> "UInt8[np.ndarray, 'y x 3']":
    """Boxes filled with `palette[class]`, later ones on top. Classes count from 1: 0 is the ground."""
    picture = ground.copy()
    for (left, top, right, bottom), k in zip(boxes, classes):
        if not 1 <= k < len(palette):
            raise ValueError(f"class {k} of a box is not from 1 to {len(palette) - 1}, the colours of the palette")
        picture[top:bottom, left:right] = palette[k]
    return picture


def read_filled(
    picture: "UInt8[np.ndarray, 'y x 3']",
    palette: "UInt8[np.ndarray, 'k 3']" = segmentation.PALETTE,
    photo: "UInt8[np.ndarray, 'y x 3'] | None" = None,
    least: int = 1,
) -> tuple[list[Box], list[int]]:
    """Boxes and their classes, sorted by box: what bounds each connected piece of one colour, `least` pixels or more.

    A pixel has the nearest of the palette's colours, or none where the photo (None: black) is as near. Exact for boxes
    that do not overlap, of which two of one class share no side, on a photo without the colours of the palette.
    """
    classes = segmentation.read(picture, palette[1:]) + 1
    classes[squared_distance(picture, palette[classes]) >= squared_distance(picture, 0 if photo is None else photo)] = 0
    found = sorted((p.box, p.value) for p in pieces.find(classes, corners=False) if p.size >= least)
    return [box for box, _ in found], [k for _, k in found]


def squared_distance(picture: "UInt8[np.ndarray, 'y x 3']", colours: Any) -> Any:
    """Squared distance in RGB to a colour [3] or a picture [y, x, 3]."""
    return np.square(picture.astype(np.int64) - np.asarray(colours, np.int64)).sum(-1)
