"""Depth as gray, near bright; what is unknown (NaN, or not above 0) is black.

draw(depth, near, far)               linear in inverse depth, as MiDaS draws it, between a stated near and far
draw(depth, *percentiles(depth))     relative: each picture in a range of its own
draw_metric(depth)                   metres, linear in their logarithm: the same relative error near and far
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

NEAR_METRES, FAR_METRES = 0.5, 80.0  # of metric pictures: from a desk to the end of a street


def draw(depth: "Float[np.ndarray, 'y x']", near: float, far: float) -> "UInt8[np.ndarray, 'y x 3']":
    """Depth in any unit; `near` and what is nearer becomes 255, `far` and beyond (or infinite) 0."""
    depth = np.asarray(depth, dtype=np.float32)
    with np.errstate(divide="ignore"):
        inverse = (1.0 / depth - 1.0 / far) / (1.0 / near - 1.0 / far)
    return _gray(np.where(depth > 0, 255 * np.clip(inverse, 0, 1), 0))


def read(picture: "UInt8[np.ndarray, '*n y x 3']", near: float, far: float) -> "Float[np.ndarray, '*n y x']":
    """Depth back from the mean of the channels; inverse depth errs by at most half a gray level. Black is far."""
    inverse = np.asarray(picture, dtype=np.float32).mean(-1) / 255 * (1.0 / near - 1.0 / far) + 1.0 / far
    return 1.0 / inverse


def percentiles(depth: "Float[np.ndarray, 'y x']", low: float = 2.0, high: float = 98.0) -> tuple[float, float]:
    """The near and far of a relative picture: percentiles of the known, finite depths. (1, 2) where there are none."""
    known = depth[np.isfinite(depth) & (depth > 0)]
    if not known.size:
        return 1.0, 2.0
    near, far = np.percentile(known, [low, high]).tolist()
    return near, max(far, near * 1.001)


def draw_metric(
    depth: "Float[np.ndarray, 'y x']", near: float = NEAR_METRES, far: float = FAR_METRES
) -> "UInt8[np.ndarray, 'y x 3']":
    """Depth in metres: `near` and nearer becomes 255, `far` and beyond 1, linear in log(depth) between; unknown 0."""
    depth = np.asarray(depth, dtype=np.float64)
    known = depth > 0
    share = np.log(far / np.clip(np.where(known, depth, far), near, far)) / np.log(far / near)
    return _gray(np.where(known, 1 + 254 * share, 0))


def read_metric(
    picture: "UInt8[np.ndarray, '*n y x 3']", near: float = NEAR_METRES, far: float = FAR_METRES
) -> "Float[np.ndarray, '*n y x']":
    """Metres back, within half a gray level: a factor of (far / near) ** (0.5 / 254), 1% by default. NaN where the
    mean of the channels is below 0.5."""
    level = np.asarray(picture, dtype=np.float64).mean(-1)
    metres = far * (near / far) ** np.clip((level - 1) / 254, 0, 1)
    return np.where(level < 0.5, np.nan, metres)


def from_disparity(
    disparity: "Float[np.ndarray, '*n y x']", focal: float = 1.0, baseline: float = 1.0
) -> "Float[np.ndarray, '*n y x']":
    """Depth = focal * baseline / disparity, in the unit of the baseline where focal and disparity are in pixels; NaN
    where the disparity is not above 0 (no match)."""
    disparity = np.asarray(disparity, dtype=np.float64)
    matched = disparity > 0
    return np.where(matched, focal * baseline / np.where(matched, disparity, 1), np.nan)


def _gray(levels: "Float[np.ndarray, 'y x']") -> "UInt8[np.ndarray, 'y x 3']":
    return np.repeat(np.rint(levels).astype(np.uint8)[..., None], 3, axis=-1)
