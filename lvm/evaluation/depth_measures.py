"""Errors of depth as the field computes them: AbsRel, RMSE, log RMSE, delta; and MiDaS' alignment of relative depth.

    errors(depth, truth)                         of depth in the truth's unit (Eigen et al. 2014)
    errors(aligned(level, truth, cap), truth)    of inverse depth up to a scale and a shift (Ranftl et al. 2020)

Where the truth is unknown it is NaN, and nothing is scored.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

DELTA = 1.25
NAMES = ("abs_rel", "rmse", "rmse_log", "delta_1", "delta_2", "delta_3")


def errors(depth: "Float[np.ndarray, 'y x']", truth: "Float[np.ndarray, 'y x']") -> Mapping[str, float]:
    """By `NAMES`: mean |d - t| / t; root mean squares of d - t and of ln d - ln t; shares with max(d/t, t/d) below
    1.25, 1.25^2, 1.25^3. NaN where no truth is known. `depth` is above 0 wherever the truth is known."""
    known = np.isfinite(truth)
    if not known.any():
        return dict.fromkeys(NAMES, float("nan"))
    d, t = depth[known].astype(np.float64), truth[known].astype(np.float64)
    ratio = np.maximum(d / t, t / d)
    found = (
        (np.abs(d - t) / t).mean(),
        np.sqrt(np.square(d - t).mean()),
        np.sqrt(np.square(np.log(d) - np.log(t)).mean()),
        *((ratio < DELTA**power).mean() for power in (1, 2, 3)),
    )
    return {name: float(value) for name, value in zip(NAMES, found)}


def aligned(
    level: "Float[np.ndarray, 'y x']", truth: "Float[np.ndarray, 'y x']", cap: float
) -> "Float[np.ndarray, 'y x']":
    """Depth of relative inverse depth `level`, by the scale and shift that bring it nearest to 1 / truth in least
    squares where the truth is known; farther than `cap` (or behind the camera) becomes `cap`.

    As in MiDaS the scale may have any sign. An answer of one level, which leaves the scale open, becomes the mean of
    1 / truth; MiDaS sets it to the cap.
    """
    known = np.isfinite(truth)
    level = level.astype(np.float64)
    if not known.any():
        return np.full(level.shape, cap)
    given, wanted = level[known], 1 / truth[known].astype(np.float64)
    spread = given - given.mean()
    variance = np.square(spread).sum()
    scale = (spread * (wanted - wanted.mean())).sum() / variance if variance > 0 else 0.0
    inverse = wanted.mean() + scale * (level - given.mean())
    return 1 / np.maximum(inverse, 1 / cap)
