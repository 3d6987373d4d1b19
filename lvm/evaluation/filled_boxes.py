"""Boxes as filled white rectangles on black, read back as the published code does (amirbar/visual_prompting,
evaluate_detection/box_ops.py): snapped to the nearer colour, the largest white piece, the rectangle about it."""

from typing import TYPE_CHECKING

import numpy as np

from lvm.evaluation.annotations import iou
from lvm.evaluation.two_colours import BLACK_WHITE
from lvm.pictures import pieces
from lvm.pictures.pieces import Box

if TYPE_CHECKING:
    from jaxtyping import UInt8

HIT = 0.5  # IoU from which a box counts as found


def draw(box: Box, size: int) -> "UInt8[np.ndarray, 'size size 3']":
    left, top, right, bottom = box
    mask = np.zeros((size, size), bool)
    mask[top:bottom, left:right] = True
    return BLACK_WHITE.draw(mask)


def read(picture: "UInt8[np.ndarray, 'y x 3']") -> Box | None:
    """None where nothing is white. Of pieces (eight neighbours) of one size the first in reading order."""
    found = pieces.find(BLACK_WHITE.read(picture))
    return max(found, key=lambda piece: piece.size).box if found else None


def scaled(box: tuple[float, float, float, float], width: int, height: int, size: int) -> Box:
    """Where a box of a picture lies once it is squashed to a square: to the nearest pixel, at least one wide."""
    corners = np.array(box) * size / np.array([width, height, width, height])
    left, top = (int(v) for v in np.clip(np.rint(corners[:2]), 0, size - 1))
    right, bottom = (int(v) for v in np.clip(np.rint(corners[2:]), (left + 1, top + 1), size))
    return left, top, right, bottom


def box_scores(answer: "UInt8[np.ndarray, 'y x 3']", truth: "UInt8[np.ndarray, 'y x 3']") -> dict[str, float]:
    """`iou` of the boxes, 0 where none is answered; `hit` whether it is 0.5 or more. NaN where none is true."""
    found, true = read(answer), read(truth)
    if true is None:
        return {"iou": float("nan"), "hit": float("nan")}
    agreement = 0.0 if found is None else iou(found, true)
    return {"iou": agreement, "hit": float(agreement >= HIT)}
