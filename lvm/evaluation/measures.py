"""Scores of an answer against the truth: pure functions of pictures uint8 [y, x, 3], one number for each picture.

Line drawings are scored by F1 with a tolerance of one pixel, class maps by intersection over union after snapping to
the palette, the rest by PSNR. `SCORES` says which task uses which.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64, UInt8

MAX_PSNR = 100.0  # of equal pictures, instead of infinity, so that means stay finite
MAX_PALETTE = 64  # colours of a sentence's class maps; the rarest beyond it are left out
MOVING = 16  # gray levels (mean over channels) by which a pixel must change between frames to count as moving
NEAR_LINE = 128  # L2 distance in RGB within which a pixel has the colour of a line


def psnr(answer: "UInt8[np.ndarray, 'y x 3']", truth: "UInt8[np.ndarray, 'y x 3']", where: Any = None) -> float:
    """Peak signal-to-noise ratio in dB for a peak of 255, over all pixels or those of the mask `where` [y, x]."""
    difference = answer.astype(np.float64) - truth.astype(np.float64)
    if where is not None:
        difference = difference[where]
    error = float((difference**2).mean())
    return MAX_PSNR if error == 0 else min(MAX_PSNR, 10 * float(np.log10(255**2 / error)))


def count_colours(
    pictures: "UInt8[np.ndarray, '*n y x 3']",
) -> "tuple[Int64[np.ndarray, 'k'], Int64[np.ndarray, 'k']]":
    """The distinct colours, each as one number (`colours_from` turns it back), and the pixels of each."""
    pixels = np.asarray(pictures).reshape(-1, 3).astype(np.int64)
    return np.unique(pixels @ np.array([65536, 256, 1]), return_counts=True)


def colours_from(keys: "Int64[np.ndarray, 'k']") -> "UInt8[np.ndarray, 'k 3']":
    return np.stack([keys >> 16, keys >> 8 & 255, keys & 255], -1).astype(np.uint8)


def colours_of(pictures: "UInt8[np.ndarray, '*n y x 3']") -> "UInt8[np.ndarray, 'k 3']":
    """The distinct colours, the most common first, at most `MAX_PALETTE`."""
    keys, counts = count_colours(pictures)
    return colours_from(keys[np.argsort(-counts, kind="stable")][:MAX_PALETTE])


def nearest_colour(picture: "UInt8[np.ndarray, 'y x 3']", palette: "UInt8[np.ndarray, 'k 3']") -> Any:
    """Index [y, x] of the palette's colour nearest in L2."""
    pixels, colours = picture.astype(np.int64), palette.astype(np.int64)
    # |p - c|^2 without |p|^2, which does not change the order
    return ((colours**2).sum(-1) - 2 * pixels @ colours.T).argmin(-1)


def miou(
    answer: "UInt8[np.ndarray, 'y x 3']", truth: "UInt8[np.ndarray, 'y x 3']", palette: "UInt8[np.ndarray, 'k 3']"
) -> float:
    """Intersection over union, mean over the classes of the truth, after snapping both to the nearest of `palette`."""
    given, wanted = nearest_colour(answer, palette), nearest_colour(truth, palette)
    shares = []
    for k in np.unique(wanted):
        union = ((given == k) | (wanted == k)).sum()
        shares.append(((given == k) & (wanted == k)).sum() / union)
    return float(np.mean(shares))


def grow(mask: "Bool[np.ndarray, 'y x']") -> "Bool[np.ndarray, 'y x']":
    """The mask and its eight neighbours: a tolerance of one pixel."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    wide = grown.copy()
    wide[:, 1:] |= grown[:, :-1]
    wide[:, :-1] |= grown[:, 1:]
    return wide


def tolerant_f1(answer: "Bool[np.ndarray, 'y x']", truth: "Bool[np.ndarray, 'y x']") -> float:
    """F1 of line pixels, each within one pixel of its match; two empty drawings agree."""
    if not answer.any() or not truth.any():
        return float(answer.any() == truth.any())
    precision = (answer & grow(truth)).sum() / answer.sum()
    recall = (truth & grow(answer)).sum() / truth.sum()
    return 0.0 if precision + recall == 0 else float(2 * precision * recall / (precision + recall))


def distance(picture: "UInt8[np.ndarray, 'y x 3']", colour: Any) -> "Float[np.ndarray, 'y x']":
    """L2 in RGB to a colour [3] or a picture [y, x, 3]."""
    return np.sqrt(((picture.astype(np.float64) - np.asarray(colour, np.float64)) ** 2).sum(-1))


def line_f1(answer: "UInt8[np.ndarray, 'y x 3']", truth: "UInt8[np.ndarray, 'y x 3']") -> float:
    """F1 of lines on a plain ground: the ground is the truth's most common colour, a line lies more than half as far
    from it as the truth's farthest colour."""
    ground = colours_of(truth)[0]
    reach = distance(truth, ground)
    least = max(reach.max() / 2, 1.0)
    return tolerant_f1(distance(answer, ground) > least, reach > least)


def line_pixels(
    answer: "UInt8[np.ndarray, 'y x 3']", truth: "UInt8[np.ndarray, 'y x 3']", photo: "UInt8[np.ndarray, 'y x 3']"
) -> "tuple[Bool[np.ndarray, 'y x'], Bool[np.ndarray, 'y x']]":
    """Where lines are drawn on `photo` in the answer and in the truth: their colour is what the truth has most where it
    differs from the photo; an answer's line pixel has that colour and is nearer to it than to the photo."""
    drawn = (truth != photo).any(-1)
    if not drawn.any():
        return distance(answer, photo) > NEAR_LINE, drawn
    line = colours_of(truth[drawn])[0]
    to_line = distance(answer, line)
    return (to_line < NEAR_LINE) & (to_line < distance(answer, photo)), drawn


def box_f1(
    answer: "UInt8[np.ndarray, 'y x 3']", truth: "UInt8[np.ndarray, 'y x 3']", photo: "UInt8[np.ndarray, 'y x 3']"
) -> float:
    """F1 of lines drawn on `photo`, the query."""
    return tolerant_f1(*line_pixels(answer, truth, photo))


def moving(truth: "UInt8[np.ndarray, 'y x 3']", last: "UInt8[np.ndarray, 'y x 3']") -> "Bool[np.ndarray, 'y x']":
    """Where a frame differs from the one before it by more than `MOVING`."""
    return np.abs(truth.astype(np.int64) - last.astype(np.int64)).mean(-1) > MOVING


def moving_psnr(
    answer: "UInt8[np.ndarray, 'y x 3']", truth: "UInt8[np.ndarray, 'y x 3']", last: "UInt8[np.ndarray, 'y x 3']"
) -> float:
    """PSNR in dB on the moving pixels; NaN where nothing moves."""
    where = moving(truth, last)
    return psnr(answer, truth, where) if where.any() else float("nan")


@dataclass(frozen=True)
class Score:
    """How the answers of a task are judged: `of(answer, truth, query, shown)`; `shown` are the answers of the pairs."""

    metric: str
    higher_is_better: bool
    of: Callable[[Any, Any, Any, Sequence[Any]], float]


PSNR = Score("psnr", True, lambda answer, truth, query, shown: psnr(answer, truth))
SCORES: dict[str, Score] = {
    "segmentation": Score("miou", True, lambda a, t, q, shown: miou(a, t, colours_of(np.stack([t, *shown])))),
    "edge": Score("line_f1", True, lambda a, t, q, shown: line_f1(a, t)),
    "box": Score("box_f1", True, lambda a, t, q, shown: box_f1(a, t, q)),
}


def score_of(task: str) -> Score:
    """The score of a task by name; PSNR where no other is listed."""
    return SCORES.get(task, PSNR)
