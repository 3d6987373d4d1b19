"""Depth as gray, near bright: linear in inverse depth between a stated near and far, as MiDaS draws it."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8


def draw(depth: "Float[np.ndarray, 'y x']", near: float, far: float) -> "UInt8[np.ndarray, 'y x 3']":
    """Depth in any unit; `near` becomes 255, `far` and beyond (or infinite) 0."""
    with np.errstate(divide="ignore"):
        inverse = (1.0 / np.asarray(depth, dtype=np.float32) - 1.0 / far) / (1.0 / near - 1.0 / far)
    gray = np.rint(255 * np.clip(inverse, 0, 1)).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1)


def read(picture: "UInt8[np.ndarray, '*n y x 3']", near: float, far: float) -> "Float[np.ndarray, '*n y x']":
    """Depth back from the mean of the channels; the error of inverse depth is at most half a gray level."""
    inverse = np.asarray(picture, dtype=np.float32).mean(-1) / 255 * (1.0 / near - 1.0 / far) + 1.0 / far
    return 1.0 / inverse
