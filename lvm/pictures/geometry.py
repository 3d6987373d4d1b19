"""Which part of a picture is drawn: squashed whole, its central square, six squares that cover it; mirrored or not.

All channels of an item go through the same geometry, pixels and coordinates alike.
"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

Resize = Literal["squash", "crop", "six"]


@dataclass(frozen=True)
class Geometry:
    """A rectangle of a picture in its own pixels, right and bottom exclusive; it becomes a square of any size."""

    left: int
    top: int
    right: int
    bottom: int
    mirrored: bool = False

    def cut(self, image: Image.Image) -> Image.Image:
        """The rectangle of an image, not mirrored yet."""
        box = (self.left, self.top, self.right, self.bottom)
        return image if box == (0, 0, *image.size) else image.crop(box)

    def turn(self, drawn: "UInt8[np.ndarray, 'y x *c']") -> "UInt8[np.ndarray, 'y x *c']":
        """A drawn picture, mirrored where this geometry is."""
        return np.ascontiguousarray(drawn[:, ::-1]) if self.mirrored else drawn

    def points(self, points: "Float[np.ndarray, '*n 2']", size: int) -> "Float[np.ndarray, '*n 2']":
        """Where points (x, y) of the picture lie in the drawn square, mirrored with it; they may lie outside."""
        corner, extent = np.array([self.left, self.top]), np.array([self.right - self.left, self.bottom - self.top])
        placed = (np.asarray(points, np.float64) - corner) / extent * size
        if self.mirrored:
            placed[..., 0] = size - placed[..., 0]
        return placed

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def geometries(width: int, height: int, resize: Resize = "squash", flip: bool = False) -> list[Geometry]:
    """The views of a picture, the one that stands for it first. `flip` adds each of them mirrored."""
    if resize == "squash":
        views = [Geometry(0, 0, width, height)]
    elif resize == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        views = [Geometry(left, top, left + side, top + side)]
    else:
        views = six_squares(width, height)
    return views + [Geometry(v.left, v.top, v.right, v.bottom, True) for v in views] if flip else views


def six_squares(width: int, height: int) -> list[Geometry]:
    """Three along the longer side, two along the shorter, evenly spaced, just large enough to cover the picture (or as
    large as fits): of 2250 x 1500 pixels 750 each. DeLVM cuts SA-1B alike, into six of 800."""
    across, along = (3, 2) if width >= height else (2, 3)
    side = min(width, height, max(-(-width // across), -(-height // along)))
    lefts = [round(k * (width - side) / (across - 1)) for k in range(across)]
    tops = [round(k * (height - side) / (along - 1)) for k in range(along)]
    return [Geometry(left, top, left + side, top + side) for top in tops for left in lefts]
