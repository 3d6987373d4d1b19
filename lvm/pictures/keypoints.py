"""Keypoints as square dots on the photo: red ones, as the paper draws them, or each of a colour of its own; and back.

A keypoint is (x, y) in pixels, of which pixel i covers i to i + 1. Its dot is a square of an odd side about its pixel.
`read` and `read_each` are for sharp drawings, `find` for what a tokenizer has blurred.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.pictures import pieces
from lvm.pictures.boxes import NEAR_LINE, squared_distance
from lvm.pictures.pieces import Box

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

RED = (255, 0, 0)
SHORT_WAY = 32  # L2 in RGB: a photo that is nearer to the colour than this shows no dot


def draw(
    photo: "UInt8[np.ndarray, 'y x 3']", points: "Float[np.ndarray, 'k 2']", colours: Any = RED, half: int | None = None
) -> "UInt8[np.ndarray, 'y x 3']":
    """Dots on a copy of the photo, later ones on top; points that are NaN or off the frame are left out.

    `colours` is one colour for all or one for each point, [k, 3]. A dot is 2 `half` + 1 pixels wide and is cut off at
    the frame; by default 7 of 256.
    """
    height, width = photo.shape[:2]
    half = default_half(height, width) if half is None else half
    points = np.asarray(points, np.float64).reshape(-1, 2)
    colours = np.broadcast_to(np.asarray(colours, np.uint8), (len(points), 3))
    picture = photo.copy()
    for point, colour in zip(points, colours):
        if (point >= 0).all() and point[0] < width and point[1] < height:  # never of NaN
            x, y = point.astype(int)
            picture[max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1] = colour
    return picture


def default_half(height: int, width: int) -> int:
    return max(1, round(min(height, width) / 85))


def read(
    picture: "UInt8[np.ndarray, 'y x 3']",
    colour: Any = RED,
    photo: "UInt8[np.ndarray, 'y x 3'] | None" = None,
    half: int | None = None,
    least: int = 1,
) -> "Float[np.ndarray, 'k 2']":
    """The points (x, y) of all dots of one colour on `photo` (None: on black), from top to bottom.

    Each is the centre of a connected piece of at least `least` pixels: within half a pixel of what was drawn with the
    same `half`, also where the frame cuts a dot, if no two dots touch and the photo lacks the colour below them.
    """
    dots = [piece for piece in _pieces(picture, [colour], photo) if piece.size >= least]
    centres = [_centre(piece.box, picture.shape, half) for piece in dots]
    return np.array(sorted(centres, key=lambda point: point[::-1])).reshape(-1, 2)


def read_each(
    picture: "UInt8[np.ndarray, 'y x 3']",
    colours: "UInt8[np.ndarray, 'k 3']",
    photo: "UInt8[np.ndarray, 'y x 3'] | None" = None,
    half: int | None = None,
    least: int = 1,
) -> "Float[np.ndarray, 'k 2']":
    """The point of each colour, NaN where it has no dot; of several pieces of a colour the largest counts. Within half
    a pixel, as `read`, of dots that do not overlap; they may touch."""
    points = np.full((len(colours), 2), np.nan)
    for piece in sorted(_pieces(picture, colours, photo), key=lambda piece: piece.size):
        if piece.size >= least:
            points[piece.value - 1] = _centre(piece.box, picture.shape, half)
    return points


def find(
    picture: "UInt8[np.ndarray, 'y x 3']",
    photo: "UInt8[np.ndarray, 'y x 3']",
    colour: Any = RED,
    half: int | None = None,
    least: float = 0.15,
    most: int = 64,
) -> "Float[np.ndarray, 'k 2']":
    """The points (x, y) of dots of one colour in a picture that a tokenizer has blurred, the clearest first: where the
    picture has gone the farthest from the photo towards the colour, as the mean over a dot's square of the share of the
    way. At least `least`, never two within a dot's width of each other, at most `most`. Sharp drawings are for `read`.
    """
    half = default_half(*photo.shape[:2]) if half is None else half
    side = 2 * half + 1
    way = np.asarray(colour, np.float64) - photo
    length = np.maximum((way**2).sum(-1), SHORT_WAY**2)
    share = ((picture.astype(np.float64) - photo) * way).sum(-1) / length
    sums = np.pad(np.pad(share, half).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    left = (sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]) / side**2
    points: list[tuple[float, float]] = []
    while len(points) < most:
        y, x = np.unravel_index(left.argmax(), left.shape)
        if left[y, x] < least:
            break
        points.append((x + 0.5, y + 0.5))
        left[max(0, y - side) : y + side + 1, max(0, x - side) : x + side + 1] = -np.inf
    return np.array(points, np.float64).reshape(-1, 2)


def _pieces(picture: Any, colours: Any, photo: Any) -> list[pieces.Piece]:
    """Connected pixels that are near one of the colours and nearer to it than to the photo; value k is colour k - 1."""
    squared = np.stack([squared_distance(picture, colour) for colour in colours])
    nearest = squared.min(0)
    drawn = (nearest < NEAR_LINE**2) & (nearest < squared_distance(picture, 0 if photo is None else photo))
    return pieces.find(np.where(drawn, squared.argmin(0) + 1, 0))


def _centre(box: Box, shape: tuple[int, ...], half: int | None) -> tuple[float, float]:
    height, width = shape[:2]
    half = default_half(height, width) if half is None else half
    left, top, right, bottom = box
    return _middle(left, right, width, half), _middle(top, bottom, height, half)


def _middle(low: int, high: int, end: int, half: int) -> float:
    """Of a dot from `low` to `high`; one that the frame may have cut is measured from the side that lies within."""
    if low == 0:
        return high - half - 0.5
    if high == end:
        return low + half + 0.5
    return (low + high) / 2
