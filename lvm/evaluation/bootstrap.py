"""Paired bootstrap: how far a mean over targets (or the difference of two on the same targets) might be off."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Int

MAX_CELLS = 2_000_000  # resampled values held at once


def bootstrap_mean(
    values: "Float[np.ndarray, 'n']",
    seed: int = 0,
    num_resamples: int = 2000,
    level: float = 0.95,
    weights: "Float[np.ndarray, 'n'] | None" = None,
    queries: Sequence[str] | None = None,
) -> dict[str, float]:
    """{"mean", "low", "high"}: percentile interval of the (weighted) mean. Pair two conditions by passing their
    difference.

    Values of one query, `queries` naming each value's, are drawn together or not at all: what is asked twice counts as
    one draw. NaN values (targets without a score) are left out; without any value all three are NaN. Efron 1979; of
    clusters Davison and Hinkley 1997, 3.8.
    """
    values = np.asarray(values, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(values))
    if not len(known):
        return {"mean": float("nan"), "low": float("nan"), "high": float("nan")}
    weight = np.ones(len(known)) if weights is None else np.asarray(weights, np.float64)[known]
    query = np.arange(len(known)) if queries is None else numbered([queries[i] for i in known.tolist()])
    sums, totals = np.bincount(query, values[known] * weight), np.bincount(query, weight)
    equal = bool((totals == totals[0]).all())
    rng = np.random.default_rng(seed)
    rows = max(1, MAX_CELLS // len(sums))
    means = []
    for done in range(0, num_resamples, rows):
        drawn = rng.integers(len(sums), size=(min(rows, num_resamples - done), len(sums)))
        means.append(sums[drawn].sum(1) / (totals[0] * len(sums) if equal else totals[drawn].sum(1)))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return {"mean": float(sums.sum() / totals.sum()), "low": float(low), "high": float(high)}


def numbered(names: Sequence[str]) -> "Int[np.ndarray, 'n']":
    """Equal names have one number, in the order of their first."""
    number: dict[str, int] = {}
    return np.array([number.setdefault(name, len(number)) for name in names])
