"""Bounding boxes outlined on the photo, as detectors draw them, or filled with the colour of their class; and back.

A box is (left, top, right, bottom) in pixels, right and bottom exclusive. The ground is the photo, or black.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.pictures import pieces, segmentation
from lvm.pictures.pieces import Box

if TYPE_CHECKING:
    from jaxtyping import UInt8

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
    least: int = 1,
) -> list[Box]:
    """The boxes outlined in `line` on `photo` (None: on black), sorted: what bounds each connected piece of at least
    `least` pixels that are near the line's colour, and nearer to it than to the photo.

    Exact where the lines of two boxes do not touch, not even by corners (one box may lie in another), and the photo
    lacks the line's colour where lines are drawn. Boxes whose lines touch or cross are read as one.
    """
    to_line = squared_distance(picture, line)
    to_ground = squared_distance(picture, 0 if photo is None else photo)
    lines = (to_line < NEAR_LINE**2) & (to_line < to_ground)
    return sorted(piece.box for piece in pieces.find(lines) if piece.size >= least)


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
