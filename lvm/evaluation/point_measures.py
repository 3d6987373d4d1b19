"""Points against points: the assignment of least total distance, and the share that lies near enough (PCK).

All that these functions know are coordinates [k, 2]; `reach` is what distances are measured in, the larger side of the
object's bounding box.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64, UInt8

    from lvm.pictures.pieces import Box

GROUND = 32  # L2 in RGB by which a pixel must differ from a plain ground to be of the object


def assign(cost: "Float[np.ndarray, 'n m']") -> "tuple[Int64[np.ndarray, 'k'], Int64[np.ndarray, 'k']]":
    """Rows and columns, k = min(n, m) of each, that make the least total cost (the Hungarian method: rows enter one by
    one, each by the shortest augmenting path). Costs must be finite."""
    if cost.shape[0] > cost.shape[1]:
        columns, rows = assign(cost.T)
        order = np.argsort(rows)
        return rows[order], columns[order]
    n, m = cost.shape
    of_row, of_column = np.zeros(n + 1), np.zeros(m + 1)  # potentials; row and column 0 stand for "none"
    row_at = np.zeros(m + 1, np.int64)
    for row in range(1, n + 1):
        row_at[0], column = row, 0
        slack, before = np.full(m + 1, np.inf), np.zeros(m + 1, np.int64)
        done = np.zeros(m + 1, bool)
        while row_at[column]:
            done[column] = True
            reduced = cost[row_at[column] - 1] - of_row[row_at[column]] - of_column[1:]
            nearer = ~done[1:] & (reduced < slack[1:])
            slack[1:][nearer], before[1:][nearer] = reduced[nearer], column
            column = int(np.where(done, np.inf, slack).argmin())
            step = slack[column]
            of_row[row_at[done]] += step
            of_column[done] -= step
            slack[~done] -= step
        while column:
            row_at[column] = row_at[before[column]]
            column = before[column]
    columns = np.flatnonzero(row_at[1:])
    rows = row_at[1:][columns] - 1
    order = np.argsort(rows)
    return rows[order], columns[order]


def matched(answer: "Float[np.ndarray, 'n 2']", truth: "Float[np.ndarray, 'm 2']") -> "Float[np.ndarray, 'm']":
    """Distance of each true point to the answer's point that is assigned to it; infinite where none is."""
    found = np.full(len(truth), np.inf)
    if len(answer) and len(truth):
        between = np.linalg.norm(truth[:, None] - answer[None], axis=-1)
        rows, columns = assign(between)
        found[rows] = between[rows, columns]
    return found


def named(answer: "Float[np.ndarray, 'k 2']", truth: "Float[np.ndarray, 'k 2']") -> "Float[np.ndarray, 'm']":
    """Distance of each point that the truth knows to the answer's point of the same number; infinite where it has
    none."""
    distance = np.linalg.norm(answer - truth, axis=-1)[np.isfinite(truth).all(-1)]
    return np.where(np.isnan(distance), np.inf, distance)


def pck(distances: "Float[np.ndarray, 'k']", reach: float, share: float) -> float:
    """Percentage of correct keypoints, as a share of 1: those at most `share` of `reach` away; NaN of none."""
    return float((distances <= share * reach).mean()) if len(distances) else float("nan")


def mean_distance(distances: "Float[np.ndarray, 'k']", reach: float) -> float:
    """In `reach`; a point that is missed, or farther off, counts as 1. NaN of none."""
    return float(np.minimum(distances / reach, 1).mean()) if len(distances) else float("nan")


def precision(distances: "Float[np.ndarray, 'k']", num_answered: int, reach: float, share: float) -> float:
    """The share of the answer's points that are correct; NaN where it has none."""
    return float((distances <= share * reach).sum() / num_answered) if num_answered else float("nan")


def larger_side(box: "Box") -> float:
    left, top, right, bottom = box
    return float(max(right - left, bottom - top))


def box_of(shown: "Bool[np.ndarray, 'y x']") -> "Box | None":
    """What bounds the pixels; None without any."""
    ys, xs = np.nonzero(shown)
    return None if not len(ys) else (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)


def off_ground(photo: "UInt8[np.ndarray, 'y x 3']") -> "Bool[np.ndarray, 'y x']":
    """Pixels that differ from the rim's median colour by more than `GROUND`: the object, on a plain ground."""
    rim = np.concatenate([photo[0], photo[-1], photo[:, 0], photo[:, -1]])
    away = photo.astype(np.float64) - np.median(rim, axis=0)
    shown: np.ndarray = np.linalg.norm(away, axis=-1) > GROUND
    return shown
