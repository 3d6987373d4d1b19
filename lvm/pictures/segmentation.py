"""Class maps as flat colours, and back.

The colours of `PALETTE` are spread over the RGB cube (Painter's idea: few levels a channel, far apart), so that the
nearest colour still names the class after a tokenizer has blurred it.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Int, UInt8


def _spread_palette(num_colours: int) -> Any:
    """`num_colours` distinct colours, each in turn the farthest from those before it; 0 is black."""
    levels = np.array([0, 42, 85, 128, 170, 213, 255], dtype=np.int64)
    cube = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    chosen = [0]
    distance = np.full(len(cube), np.iinfo(np.int64).max)
    for _ in range(num_colours - 1):
        distance = np.minimum(distance, ((cube - cube[chosen[-1]]) ** 2).sum(1))
        chosen.append(int(distance.argmax()))
    return cube[chosen].astype(np.uint8)


PALETTE: Any = _spread_palette(256)


def draw(
    labels: "Int[np.ndarray, 'y x']", palette: "UInt8[np.ndarray, 'k 3']" = PALETTE
) -> "UInt8[np.ndarray, 'y x 3']":
    """Class k in colour `palette[k]`; classes beyond the palette wrap round."""
    return palette[np.asarray(labels).astype(np.int64) % len(palette)]


def read(
    picture: "UInt8[np.ndarray, '*n y x 3']", palette: "UInt8[np.ndarray, 'k 3']" = PALETTE
) -> "Int[np.ndarray, '*n y x']":
    """The class whose colour is nearest (L2) at each pixel; exact for what `draw` drew with distinct colours."""
    pixels, colours = np.asarray(picture).astype(np.float32), np.asarray(palette, dtype=np.float32)
    # |p - c|^2 without |p|^2, which does not change the order; whole numbers that float32 holds exactly
    return ((colours**2).sum(-1) - 2 * pixels @ colours.T).argmin(-1)
