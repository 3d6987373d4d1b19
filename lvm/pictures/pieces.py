"""Connected pieces of a label map and the boxes about them: what drawn boxes, dots and instances are read back by."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Int64

Box = tuple[int, int, int, int]  # left, top, right, bottom; the last two exclusive


def label(
    values: "Int[np.ndarray, 'y x'] | Bool[np.ndarray, 'y x']", corners: bool = True
) -> "Int64[np.ndarray, 'y x']":
    """Pieces of equal non-zero value, numbered 1, 2, ... by their first pixel in reading order; 0 elsewhere.

    A pixel touches its four neighbours and, with `corners`, the four beyond its corners.
    """
    values = np.asarray(values)
    height, width = values.shape
    places = np.arange(height * width).reshape(height, width)
    steps = [(0, 1), (1, 0)] + ([(1, 1), (1, -1)] if corners else [])
    links = []
    for down, right in steps:
        here = np.s_[: height - down, max(0, -right) : width - max(0, right)]
        there = np.s_[down:, max(0, right) : width + min(0, right)]
        same = (values[here] == values[there]) & (values[here] != 0)
        links.append(np.stack([places[here][same], places[there][same]]))
    a, b = np.concatenate(links, 1)
    root = places.reshape(-1).copy()
    while (root[a] != root[b]).any():  # each pass hangs trees under their least neighbour, then makes them flat
        of_a, of_b = root[a], root[b]
        np.minimum.at(root, np.maximum(of_a, of_b), np.minimum(of_a, of_b))
        while (root != root[root]).any():
            root = root[root]
    shown = values.reshape(-1) != 0
    pieces = np.zeros(height * width, np.int64)
    pieces[shown] = np.unique(root[shown], return_inverse=True)[1] + 1
    return pieces.reshape(height, width)


def bounds(labels: "Int[np.ndarray, 'y x']") -> dict[int, Box]:
    """The bounding box of each non-zero label, by label."""
    ys, xs = np.nonzero(labels)
    present, number = np.unique(labels[ys, xs], return_inverse=True)
    least, most = np.full((2, len(present)), np.iinfo(np.int64).max), np.zeros((2, len(present)), np.int64)
    for axis, at in enumerate((xs, ys)):
        np.minimum.at(least[axis], number, at)
        np.maximum.at(most[axis], number, at + 1)
    return {int(k): (int(a), int(b), int(c), int(d)) for k, a, b, c, d in zip(present, *least, *most)}


@dataclass(frozen=True)
class Piece:
    box: Box
    value: int  # of its pixels
    size: int  # in pixels


def find(values: "Int[np.ndarray, 'y x'] | Bool[np.ndarray, 'y x']", corners: bool = True) -> list[Piece]:
    """The pieces of `label`, in its order."""
    labels = label(values, corners)
    present, first, sizes = np.unique(labels, return_index=True, return_counts=True)
    boxes, value_of = bounds(labels), np.asarray(values).reshape(-1)[first]
    return [Piece(boxes[k], int(value), int(n)) for k, value, n in zip(present.tolist(), value_of, sizes) if k]
