"""The mathematics of scaling laws, on plain numbers: fits, bootstraps, parabolas, compute-optimal sizes.

    L = E + sum_j A_j / x_j^alpha_j         x = (N, D), N alone or D alone

is fitted as Hoffmann et al. (arXiv 2203.15556, approach 3) do: Huber loss (delta 1e-3) of the residuals of log L, whose
prediction is a log-sum-exp of e = log E and a_j - alpha_j log x_j, from a grid of starts, the lowest minimum kept. Of
what Besiroglu et al. (arXiv 2404.10102) found wrong there: the Huber losses are summed and not averaged, the search
ends by the relative decrease of the sum, and nothing is rounded before it is used. Inputs are centred (z = log x - its
mean), without which a and alpha are nearly one direction.

The search is damped Gauss-Newton on reweighted squares (Holland and Welsch 1977), many problems at once: it finds the
minima that L-BFGS finds (tests), thousands of resamples a second.
"""

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float64

DELTA = 1e-3  # of Huber's loss, in log L
LARGEST_EXPONENT = 3.0
SMALLEST_SHARE = 1e-3  # of the lowest loss, to which E may fall
LEVEL = 0.95
STARTS_OF_RESAMPLES = 8  # the whole sample's minimum and this many others, spread over the grid
AT_ONCE = 6000  # problems


def huber(residual: "Float64[np.ndarray, '...']") -> "Float64[np.ndarray, '...']":
    size = np.abs(residual)
    return np.where(size <= DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA))


@dataclass(frozen=True)
class Fits:
    """Laws of one form: row 0 of the whole sample, further rows of its resamples.

    theta is [rows, 1 + 2k]: e, a_1 .. a_k, alpha_1 .. alpha_k, of centred z.
    """

    theta: "Float64[np.ndarray, 'rows p']"
    centre: "Float64[np.ndarray, 'k']"
    objective: float  # summed Huber loss of row 0
    at_bound: tuple[bool, ...]  # of row 0: e, then each exponent

    @property
    def num_terms(self) -> int:
        return len(self.centre)

    def loss(self, *x: Any) -> "Float64[np.ndarray, 'rows n']":
        """Predictions at n places: one array (or number) for each input."""
        columns = np.broadcast_arrays(*(np.atleast_1d(np.asarray(one, np.float64)) for one in x))
        return np.exp(_log_loss(self.theta, np.log(np.stack(columns, -1)) - self.centre)[0])

    def constants(self) -> "Float64[np.ndarray, 'rows p']":
        """E, A_1 .. A_k, alpha_1 .. alpha_k of uncentred inputs."""
        k = self.num_terms
        a, alpha = self.theta[:, 1 : 1 + k], self.theta[:, 1 + k :]
        return np.concatenate([np.exp(self.theta[:, :1]), np.exp(a + alpha * self.centre), alpha], 1)


def fit(
    x: "Float64[np.ndarray, 'n k']",
    loss: "Float64[np.ndarray, 'n']",
    weights: "Float64[np.ndarray, 'rows n'] | None" = None,
) -> Fits:
    """Fit the law to the sample, and to each of its resamples (how often each point is in it)."""
    logs, y = np.log(x), np.log(loss)
    centre = logs.mean(0)
    z = logs - centre
    low, high = _bounds(y, z.shape[1])
    starts = np.clip(_starts(y, z.shape[1]), low, high)
    whole, values = _minimise(starts, z, y, np.ones((1, len(y))).repeat(len(starts), 0), low, high)
    order = np.argsort(values, kind="stable")
    best = whole[order[0]]
    rows = [best[None]]
    if weights is not None and len(weights):
        spread = np.linspace(0, len(starts) - 1, STARTS_OF_RESAMPLES).round().astype(int)
        again = np.concatenate([best[None], starts[spread]])
        step = max(1, AT_ONCE // len(again))
        rows += [_resampled(again, z, y, weights[i : i + step], low, high) for i in range(0, len(weights), step)]
    edges = [0, *range(1 + z.shape[1], 1 + 2 * z.shape[1])]
    at_bound = tuple(bool(min(best[i] - low[i], high[i] - best[i]) < 1e-3) for i in edges)
    return Fits(np.concatenate(rows), centre, float(values[order[0]]), at_bound)


def _resampled(starts: Any, z: Any, y: Any, weights: Any, low: Any, high: Any) -> Any:
    """The lowest minimum of each resample."""
    count = len(starts)
    theta = np.tile(starts, (len(weights), 1))
    theta, value = _minimise(theta, z, y, weights.repeat(count, 0), low, high)
    best = value.reshape(-1, count).argmin(1)
    return theta.reshape(len(weights), count, -1)[np.arange(len(weights)), best]


def _bounds(y: Any, k: int) -> tuple[Any, Any]:
    lowest = y.min()
    low = np.array([lowest + np.log(SMALLEST_SHARE), *[lowest - 14] * k, *[0.0] * k])
    return low, np.array([lowest, *[y.max() + 14] * k, *[LARGEST_EXPONENT] * k])


def _starts(y: Any, k: int) -> Any:
    """Shares of E in the lowest loss, splits of the rest among the terms, exponents."""
    rest = np.exp(y.mean()) - np.exp(y.min()) * np.array([0.1, 0.5, 0.9])
    splits = [(1.0,)] if k == 1 else [(s, 1 - s) for s in (0.2, 0.5, 0.8)]
    starts = []
    for share, split in product(range(3), splits):
        e = y.min() + np.log((0.1, 0.5, 0.9)[share])
        a = np.log(rest[share] * np.array(split))
        starts += [np.array([e, *a, *alpha]) for alpha in product((0.1, 0.25, 0.5, 0.9, 1.5), repeat=k)]
    return np.array(starts)


def _log_loss(theta: Any, z: Any) -> tuple[Any, Any]:
    """log L [rows, n], and the share of each term in L [rows, n, 1 + k]."""
    k = z.shape[1]
    powers = theta[:, None, 1 : 1 + k] - theta[:, None, 1 + k :] * z
    terms = np.concatenate([np.broadcast_to(theta[:, None, :1], (*powers.shape[:2], 1)), powers], -1)
    top = terms.max(-1, keepdims=True)
    shares = np.exp(terms - top)
    total = shares.sum(-1, keepdims=True)
    return (top + np.log(total))[..., 0], shares / total


def _minimise(theta: Any, z: Any, y: Any, weights: Any, low: Any, high: Any, most_steps: int = 400) -> tuple[Any, Any]:
    """Each row's minimum from its start, and the summed Huber loss there. A row is left when its steps gain nothing."""
    theta, rows = theta.copy(), np.arange(len(theta))
    value = (weights * huber(_log_loss(theta, z)[0] - y)).sum(1)
    damping, idle = np.full(len(theta), 1e-2), np.zeros(len(theta), int)
    for _ in range(most_steps):
        here, its = theta[rows], weights[rows]
        trial = np.clip(here + _step(here, z, y, its, damping[rows], low, high), low, high)
        new = (its * huber(_log_loss(trial, z)[0] - y)).sum(1)
        gain = value[rows] - new
        better = gain > 0
        theta[rows] = np.where(better[:, None], trial, here)
        damping[rows] = np.clip(np.where(better, damping[rows] / 3, damping[rows] * 5), 1e-12, 1e12)
        idle[rows] = np.where(gain > 1e-9 * value[rows], 0, idle[rows] + 1)
        value[rows] = np.minimum(value[rows], new)
        rows = rows[idle[rows] < 12]
        if not len(rows):
            break
    return theta, value


def _step(theta: Any, z: Any, y: Any, weights: Any, damping: Any, low: Any, high: Any) -> Any:
    """Damped Gauss-Newton on squares weighted as Huber's loss bends; what a bound holds stands still."""
    k = z.shape[1]
    predicted, shares = _log_loss(theta, z)
    residual = predicted - y
    slopes = np.concatenate([shares, -shares[..., 1:] * z], -1)  # [rows, n, 1 + 2k]
    weighted = (weights * np.minimum(1, DELTA / np.maximum(np.abs(residual), 1e-300)))[..., None] * slopes
    gradient = (weighted * residual[..., None]).sum(1)
    curvature = weighted.transpose(0, 2, 1) @ slopes
    held = ((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0))
    free = ~held
    size = 1 + 2 * k
    curvature = curvature * free[:, :, None] * free[:, None, :]
    diagonal = curvature[:, range(size), range(size)]
    scale = np.maximum(diagonal, 1e-9 * diagonal.max(1, keepdims=True)) * damping[:, None] + 1e-14 + held
    curvature[:, range(size), range(size)] += scale
    return -np.linalg.solve(curvature, (gradient * free)[..., None])[..., 0]


# Resamples and what they say.


def resamples(levels: "list[Any]", count: int, seed: int, least: int = 3) -> "Float64[np.ndarray, 'rows n']":
    """How often each point is in each of `count` samples drawn with replacement (Efron 1979).

    A draw with fewer than `least` different values of any input cannot be fitted and is drawn again.
    """
    n = len(levels[0])
    rng, kept, found = np.random.default_rng(seed), [], 0
    if any(len(set(values)) < least for values in levels) or n <= least:
        return np.zeros((0, n))
    for _ in range(200):
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=count).astype(np.float64)
        enough = np.ones(count, bool)
        for values in levels:
            members = np.array([[value == level for value in values] for level in sorted(set(values))], np.float64)
            enough &= ((drawn @ members.T) > 0).sum(1) >= least
        kept.append(drawn[enough])
        found += int(enough.sum())
        if found >= count:
            break
    return np.concatenate(kept)[:count]


def interval(values: Any, level: float = LEVEL) -> list[float] | None:
    """The middle `level` of the values; None where there are too few to say."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if len(values) < 20:
        return None
    return [float(v) for v in np.quantile(values, [(1 - level) / 2, (1 + level) / 2])]


def run_interval(predicted: Any, residuals: Any, num_constants: int, seed: int) -> list[float] | None:
    """Where a further run is expected: the law's uncertainty and a run's own scatter (residuals of log L).

    `predicted` are the resamples' losses at one place. Residuals are widened by what the fit took out of them.
    """
    n = len(residuals)
    widened = np.asarray(residuals) * np.sqrt(n / max(1, n - num_constants))
    rng = np.random.default_rng(seed)
    return interval(
        np.asarray(predicted) * np.exp(rng.choice(widened, len(predicted)) * rng.choice([-1, 1], len(predicted)))
    )


# Parabolas and lines in logarithms.


def vertex(x: Any, loss: Any) -> tuple[float, float] | None:
    """(x, loss) at the bottom of the parabola in log x, by least squares; None where it opens downwards."""
    z = np.log(np.asarray(x, np.float64))
    centre = z.mean()
    c2, c1, c0 = np.polyfit(z - centre, np.asarray(loss, np.float64), 2)
    if c2 <= 0:
        return None
    bottom = -c1 / (2 * c2)
    return float(np.exp(bottom + centre)), float(c0 + c1 * bottom + c2 * bottom**2)


# 97.5% quantiles of Student's t for 1, 2, ... degrees of freedom.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def power_law(x: Any, y: Any) -> dict[str, Any]:
    """y = factor x^exponent by least squares in logarithms, with Student's interval of the exponent (3 points on)."""
    u, v = np.log(np.asarray(x, np.float64)), np.log(np.asarray(y, np.float64))
    exponent, offset = np.polyfit(u - u.mean(), v, 1)
    free = len(u) - 2
    found = {"factor": float(np.exp(offset - exponent * u.mean())), "exponent": float(exponent), "points": len(u)}
    if free < 1:
        return found | {"exponent_interval": None}
    spread = np.sum((v - offset - exponent * (u - u.mean())) ** 2) / free
    half = T_QUANTILES[min(free, len(T_QUANTILES)) - 1] * np.sqrt(spread / np.sum((u - u.mean()) ** 2))
    return found | {"exponent_interval": [float(exponent - half), float(exponent + half)]}


# What compute buys.


@dataclass(frozen=True)
class FlopsByToken:
    """FLOPs a token at a size: 6 N times a smooth ratio, a parabola in log N through the sizes that ran.

    Small nets pay more than 6 N (attention over the context, the head); beyond the sizes that ran the ratio stays as
    it was at the nearest.
    """

    sizes: tuple[float, ...]
    flops: tuple[float, ...]

    def __call__(self, n: Any) -> Any:
        z, ratio = np.log(self.sizes), np.log(np.array(self.flops) / (6 * np.array(self.sizes)))
        shape = np.polyfit(z - z.mean(), ratio, min(2, len(self.sizes) - 1))
        inside = np.clip(np.log(n), z.min(), z.max()) - z.mean()
        return 6 * np.asarray(n) * np.exp(np.polyval(shape, inside))


def optimal_sizes(fits: Fits, flops: Any, flops_per_token: Any, low: float, high: float) -> "tuple[Any, Any]":
    """(N, D) of the lowest loss for each budget, [rows, budgets]: N is searched from `low` to `high`, D = C / f(N)."""
    n = np.geomspace(low, high, 600)
    per_token = flops_per_token(n)
    best_n, best_d = [], []
    for budget in np.atleast_1d(flops):
        chosen = fits.loss(n, budget / per_token).argmin(1)
        best_n.append(n[chosen])
        best_d.append(budget / per_token[chosen])
    return np.stack(best_n, 1), np.stack(best_d, 1)
