"""Which of several choices an answer is, by its pixels or by likelihoods."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8


def ninth_cell(picture: "UInt8[np.ndarray, '*n y x 3']") -> "UInt8[np.ndarray, '*n b a 3']":
    """The last cell of a 3x3 matrix, without the lines about it: a fortieth of the side, at least a pixel."""
    height, width = picture.shape[-3:-1]
    top, left = -(-2 * height // 3), -(-2 * width // 3)
    rim = max(1, round(min(height, width) / 40))
    cell: np.ndarray = picture[..., top + rim : height - rim, left + rim : width - rim, :]
    return cell


def root_mean_square(
    picture: "UInt8[np.ndarray, 'y x 3']", others: "UInt8[np.ndarray, 'k y x 3']"
) -> "Float[np.ndarray, 'k']":
    """Difference to each of the others, in gray levels."""
    difference = picture.astype(np.float64) - others.astype(np.float64)
    found: np.ndarray = np.sqrt((difference**2).mean((-3, -2, -1)))
    return found


def share_of_least(values: "Sequence[float] | Float[np.ndarray, 'k']", right: int) -> float:
    """1 where the right one is the least of the values, 0 where another is; of n that are equally least 1 / n."""
    least = np.asarray(values, np.float64) == np.min(values)
    return float(least[right] / least.sum())
