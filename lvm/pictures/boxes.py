"""Bounding boxes outlined on the photo, as detectors draw them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import UInt8


def draw(
    photo: "UInt8[np.ndarray, 'y x 3']", boxes: Iterable[tuple[int, int, int, int]], line: Any, width: int
) -> "UInt8[np.ndarray, 'y x 3']":
    """`boxes` are (left, top, right, bottom) in pixels, right and bottom exclusive; the line lies inside the box."""
    picture = photo.copy()
    for left, top, right, bottom in boxes:
        picture[top : min(top + width, bottom), left:right] = line
        picture[max(bottom - width, top) : bottom, left:right] = line
        picture[top:bottom, left : min(left + width, right)] = line
        picture[top:bottom, max(right - width, left) : right] = line
    return picture
