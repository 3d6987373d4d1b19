"""Edge maps as lines of one colour on a ground of another, and back."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, UInt8


def draw(
    strength: "Float[np.ndarray, 'y x']", line: Any = (255, 255, 255), ground: Any = (0, 0, 0)
) -> "UInt8[np.ndarray, 'y x 3']":
    """Strength in [0, 1] mixes `ground` (0) with `line` (1)."""
    strength = np.clip(np.asarray(strength, dtype=np.float32), 0, 1)[..., None]
    line, ground = np.asarray(line, dtype=np.float32), np.asarray(ground, dtype=np.float32)
    return np.rint(ground + strength * (line - ground)).astype(np.uint8)


def read(picture: "UInt8[np.ndarray, '*n y x 3']", line: Any, ground: Any) -> "Bool[np.ndarray, '*n y x']":
    """Where a pixel is nearer to `line` than to `ground`."""
    pixels = np.asarray(picture, dtype=np.float32)
    to_line = ((pixels - np.asarray(line, dtype=np.float32)) ** 2).sum(-1)
    to_ground = ((pixels - np.asarray(ground, dtype=np.float32)) ** 2).sum(-1)
    return to_line < to_ground
