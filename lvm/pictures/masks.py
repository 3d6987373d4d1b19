"""Masks as COCO writes them: polygons and run lengths, plain or compressed; and many of them as one map.

Run lengths count zeros, ones, zeros, ... down the columns, from the left one on. Compressed, every number (from the
fourth on, its difference to the one two before) is written in groups of five bits, the lowest first, each as the
character 48 + bits + 32 if more follow; the last group's highest bit is the sign.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from jaxtyping import Bool, Int64

MOST_CHARACTERS = 7  # of a compressed number: 35 bits; a longer one is damage

# The polygons that an object consists of, float [k, 2] (x, y) each; or its mask, bool [y, x].
Shape = Sequence[np.ndarray] | np.ndarray


def decompress(text: str) -> list[int]:
    """The run lengths in a compressed string. Raises ValueError."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift == 5 * MOST_CHARACTERS:
            raise ValueError("a mask's compressed run lengths are damaged")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("a mask's compressed run lengths end in the middle of a number")
    return runs


def compress(runs: Sequence[int]) -> str:
    text = ""
    for n, run in enumerate(runs):
        value = run - runs[n - 2] if n > 2 else run
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    return text


def decode(runs: Sequence[int], height: int, width: int) -> "Bool[np.ndarray, 'y x']":
    """Raises ValueError for run lengths that do not fill the mask."""
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise ValueError(f"a mask's run lengths do not fill {width} x {height} pixels")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def encode(mask: "Bool[np.ndarray, 'y x']") -> list[int]:
    pixels = np.asarray(mask, bool).T.reshape(-1)
    changes = np.flatnonzero(np.diff(pixels, prepend=False))
    return np.diff(changes, prepend=0, append=len(pixels)).tolist()


def area(shape: Shape) -> float:
    if isinstance(shape, np.ndarray):
        return float(shape.sum())
    return float(sum(abs(np.sum(p[:, 0] * np.roll(p[:, 1], 1) - p[:, 1] * np.roll(p[:, 0], 1))) / 2 for p in shape))


def paint(shapes: Sequence[Shape], height: int, width: int) -> "Int64[np.ndarray, 'y x']":
    """Number 1, 2, ... of the shape that shows at each pixel, 0 where none does; the largest is painted first. Pixels
    on a polygon's border belong to it, which makes it up to a pixel wider than COCO's own tool does."""
    canvas = Image.new("I", (width, height))
    pen = ImageDraw.Draw(canvas)
    for n in sorted(range(len(shapes)), key=lambda n: -area(shapes[n])):
        shape = shapes[n]
        if isinstance(shape, np.ndarray):
            canvas.paste(n + 1, (0, 0), Image.fromarray(shape.astype(np.uint8) * 255))
        else:
            for polygon in shape:
                pen.polygon(polygon.reshape(-1).tolist(), fill=n + 1)
    return np.asarray(canvas).astype(np.int64)
