"""Paired bootstrap: how far a mean over targets (or the difference of two on the same targets) might be off."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

MAX_CELLS = 2_000_000  # resampled values held at once


def bootstrap_mean(
    values: "Float[np.ndarray, 'n']", seed: int = 0, num_resamples: int = 2000, level: float = 0.95
) -> dict[str, float]:
    """{"mean", "low", "high"}: percentile interval of the mean. Pair two conditions by passing their difference.

    NaN values (targets without a score) are left out; without any value all three are NaN. Efron 1979.
    """
    values = np.asarray(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return {"mean": float("nan"), "low": float("nan"), "high": float("nan")}
    rng = np.random.default_rng(seed)
    rows = max(1, MAX_CELLS // len(values))
    means = np.concatenate(
        [
            values[rng.integers(len(values), size=(min(rows, num_resamples - done), len(values)))].mean(1)
            for done in range(0, num_resamples, rows)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}
