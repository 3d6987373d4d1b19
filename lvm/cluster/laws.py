"""Scaling laws of the finished runs of a sweep: lvm sweep fit RUNS --out DIR

    L(N, D) = E + A / N^alpha + B / D^beta, L(N) for each number of tokens D, L(D) for each size N, with 95% intervals
    from resampled runs; the compute-optimal size and tokens of a budget; the best learning rate by size; the larger
    runs predicted from the others.

Of each size and budget the run at the best learning rate counts. A run is a point once its rate has fallen: trunks at a
constant rate are left out and listed. Writes DIR/law.json, DIR/index.html and DIR/*.svg; prints a short table.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from lvm.cluster.law_fit import (
    Fits,
    FlopsByToken,
    fit,
    interval,
    optimal_sizes,
    power_law,
    resamples,
    run_interval,
    vertex,
)
from lvm.cluster.law_points import (
    Gathered,
    Parameters,
    Point,
    at_best_rate,
    by_size_and_tokens,
    gather,
    level_of,
    levels,
    rates_of,
)
from lvm.runtime import UserError
from lvm.runtime.charts import short

LARGEST, NONE = "LARGEST", "NONE"
LEAST = 3  # different values of an input, below which E, A and alpha cannot be told apart
FEW = 10  # runs, below which a bootstrap's interval is rough
FORMS = {
    ("n", "tokens"): ("E + A / N^alpha + B / D^beta", ("E", "A", "B", "alpha", "beta")),
    ("n",): ("E + A / N^alpha", ("E", "A", "alpha")),
    ("tokens",): ("E + B / D^beta", ("E", "B", "beta")),
}


@dataclass(frozen=True)
class Law:
    inputs: tuple[str, ...]  # of a Point
    points: tuple[Point, ...]
    fits: Fits
    record: dict[str, Any]

    def predict(self, point: Point) -> "np.ndarray":
        """The loss of such a run: of the fit, then of its resamples."""
        return self.fits.loss(*(getattr(point, name) for name in self.inputs))[:, 0]

    def residuals(self) -> "np.ndarray":
        """log measured - log fitted."""
        columns = [np.array([getattr(point, name) for point in self.points]) for name in self.inputs]
        return np.log([point.loss for point in self.points]) - np.log(self.fits.loss(*columns)[0])


@dataclass(frozen=True)
class Findings:
    """What the runs say: laws with their resamples for who draws them, and all of it as numbers in `record`."""

    gathered: Gathered
    used: tuple[Point, ...]  # those at the best rate of their size and budget
    joint: Law | None
    by_tokens: dict[float, Law]
    by_size: dict[float, Law]
    record: dict[str, Any]


# One law.


def law(points: Sequence[Point], inputs: tuple[str, ...], bootstrap: int, seed: int) -> Law | str:
    """The law of these runs, or why there is none."""
    columns = [[getattr(point, name) for point in points] for name in inputs]
    names = {"n": "sizes", "tokens": "numbers of tokens"}
    for name, values in zip(inputs, columns):
        if (count := len(levels(values))) < LEAST:
            return f"it needs runs of {LEAST} {names[name]} and there are {count}"
    form, constants = FORMS[inputs]
    if len(points) < len(constants):
        return f"it has {len(constants)} constants and there are {len(points)} runs"
    grouped = [[level_of(value, levels(values)) for value in values] for values in columns]
    weights = resamples(grouped, bootstrap, seed, LEAST) if len(points) > len(constants) else None
    x, loss = np.array(columns, np.float64).T, np.array([point.loss for point in points])
    found = Law(inputs, tuple(points), fit(x, loss, weights), {})
    return Law(inputs, found.points, found.fits, law_record(found, form, constants))


def law_record(found: Law, form: str, names: Sequence[str]) -> dict[str, Any]:
    values = found.fits.constants()
    k = found.fits.num_terms
    bound = dict(zip(("E", *names[1 + k :]), found.fits.at_bound))
    rows = {}
    for i, name in enumerate(names):
        value, ends = float(values[0, i]), interval(values[1:, i])
        sure = ends is not None and ends[1] - ends[0] <= abs(value) and not bound.get(name, False)
        rows[name] = {"value": value, "interval": ends, "determined": sure}
    residuals = found.residuals()
    logs = np.log([point.loss for point in found.points])
    worst = int(np.abs(residuals).argmax())
    return {
        "form": form,
        "runs": len(found.points),
        "resamples": len(values) - 1,
        "constants": rows,
        "r2_log": float(1 - np.sum(residuals**2) / max(np.sum((logs - logs.mean()) ** 2), 1e-300)),
        "rms_residual": float(np.sqrt(np.mean(residuals**2))),
        "largest_residual": {"name": found.points[worst].name, "residual": float(residuals[worst])},
        "notes": law_notes(found, rows, bound),
    }


def law_notes(found: Law, rows: dict[str, Any], bound: dict[str, bool]) -> list[str]:
    """What one must know before believing it."""
    notes = []
    lowest = min(point.loss for point in found.points)
    if rows["E"]["value"] < 0.01 * lowest:
        notes.append("E is at 0: these runs show no floor yet, a pure power law fits as well")
    notes += [f"{name} is at the end of what was searched" for name, ends in bound.items() if ends and name != "E"]
    if len(found.points) == len(rows):
        notes.append(f"{len(found.points)} runs for {len(rows)} constants: it passes through all, nothing is tested")
    elif len(found.points) < FEW:
        notes.append(f"{len(found.points)} runs only: the intervals are rough")
    if vague := [name for name, row in rows.items() if not row["determined"]]:
        notes.append(f"not determined by these runs: {', '.join(vague)}")
    return notes


# Learning rates.


def rates(points: Sequence[Point]) -> dict[str, Any]:
    """The rates tried at each size and budget, the best of each, and how the best moves with size."""
    rows = []
    for (n, tokens), group in sorted(by_size_and_tokens(points).items()):
        losses = rates_of(group)
        rows.append(
            {"n": n, "tokens": tokens, "losses": [[lr, loss] for lr, loss in losses.items()]} | best_rate(losses)
        )
    inside = [row for row in rows if row["lr_at_bottom"] is not None]
    budgets = sorted({row["tokens"] for row in inside}, key=lambda d: -sum(row["tokens"] == d for row in inside))
    at = [row for row in inside if row["tokens"] == budgets[0]] if budgets else []
    found = power_law([row["n"] for row in at], [row["lr_at_bottom"] for row in at]) if len(at) >= LEAST else None
    warnings = rate_warnings(rows)
    if found is not None and found["exponent_interval"][0] < 0 < found["exponent_interval"][1]:
        warnings.append("how the best lr moves with size is not determined by these runs: its exponent may be 0")
    return {"rows": rows, "law": found and found | {"tokens": budgets[0]}, "warnings": warnings}


def best_rate(losses: dict[float, float]) -> dict[str, Any]:
    """The best of a grid, whether it is at the border, and the bottom of the parabola through it and its neighbours."""
    lrs = list(losses)
    i = min(range(len(lrs)), key=lambda j: losses[lrs[j]])
    border = None
    if len(lrs) > 1 and i in (0, len(lrs) - 1):
        border = "lowest" if i == 0 else "highest"
    bottom = None
    if 0 < i < len(lrs) - 1:
        near = lrs[i - 1 : i + 2]
        bottom = vertex(near, [losses[lr] for lr in near])
    return {"best_lr": lrs[i], "at_border": border, "lr_at_bottom": bottom and bottom[0]}


def rate_warnings(rows: Sequence[dict[str, Any]]) -> list[str]:
    warnings = []
    searched = [row for row in rows if len(row["losses"]) > 1]
    if not searched:
        tried = sorted({row["best_lr"] for row in rows})
        which = f"all runs have lr {tried[0]:g}" if len(tried) == 1 else "no size was run at more than one lr"
        return [f"{which}: size is confounded with the rate, whose best value moves with size; sweep optim.lr too"]
    budgets, with_search = sorted({row["tokens"] for row in rows}), sorted({row["tokens"] for row in searched})
    if without := sorted({row["n"] for row in rows} - {row["n"] for row in searched}):
        warnings.append(f"the rate was not searched at size {', '.join(map(short, without))}: confounded with it there")
    if len(with_search) < len(budgets):
        warnings.append(
            f"the rate was searched at {', '.join(map(short, with_search))} tokens alone; other budgets take it over, "
            "though the best one may fall with tokens"
        )
    warnings += [
        f"the best lr of size {short(row['n'])} at {short(row['tokens'])} tokens, {row['best_lr']:g}, is the "
        f"{row['at_border']} tried: a better one may lie beyond, the loss is an upper bound"
        for row in searched
        if row["at_border"]
    ]
    return warnings


# Compute.


def beyond(value: float, known: Sequence[float]) -> float:
    """How many times outside of what ran a value lies; 1 within."""
    return max(1.0, value / max(known), min(known) / value)


def reach(n: float, tokens: float, flops: float, points: Sequence[Point]) -> dict[str, float]:
    known = {"n": [p.n for p in points], "tokens": [p.tokens for p in points], "flops": [p.flops for p in points]}
    return {key: beyond(value, known[key]) for key, value in (("n", n), ("tokens", tokens), ("flops", flops))}


def flops_by_token(points: Sequence[Point]) -> FlopsByToken:
    by_size = {point.n: point.flops_per_token for point in points}
    return FlopsByToken(tuple(by_size), tuple(by_size.values()))


def frontier(joint: Law) -> dict[str, Any]:
    """Compute-optimal size and tokens: exponents for C = 6 N D, and a table with the FLOPs that these nets take."""
    points, fits = joint.points, joint.fits
    alpha, beta = fits.constants()[:, 3], fits.constants()[:, 4]
    share = beta / np.maximum(alpha + beta, 1e-12)
    flops = sorted(point.flops for point in points)
    budgets = np.concatenate([np.geomspace(flops[0], flops[-1], 4), flops[-1] * np.array([10.0, 100.0])])
    low, high = min(p.n for p in points) / 1e3, max(p.n for p in points) * 1e4
    n, tokens = optimal_sizes(fits, budgets, flops_by_token(points), low, high)
    rows = []
    for i, budget in enumerate(budgets):
        rows.append(
            {
                "flops": float(budget),
                "n": float(n[0, i]),
                "n_interval": interval(n[1:, i]),
                "tokens": float(tokens[0, i]),
                "tokens_interval": interval(tokens[1:, i]),
                "loss": float(fits.loss(n[0, i], tokens[0, i])[0, 0]),
                "tokens_per_parameter": float(tokens[0, i] / n[0, i]),
                "beyond": reach(float(n[0, i]), float(tokens[0, i]), float(budget), points),
                "in_sight": bool(low * 1.05 < n[0, i] < high / 1.05),
            }
        )
    exponents = {"n": (share[0], share[1:]), "tokens": (1 - share[0], 1 - share[1:])}
    return {
        "exponents_6nd": {
            key: {"value": float(value), "interval": interval(again)} for key, (value, again) in exponents.items()
        },
        "at": rows,
    }


def isoflop(points: Sequence[Point]) -> dict[str, Any] | None:
    """Parabolas in log N through runs of equal compute (approach 2), and the power law of their bottoms."""
    budgets = levels(point.flops for point in points)
    profiles = []
    for budget in budgets:
        group = [point for point in points if level_of(point.flops, budgets) == budget]
        sizes = {point.n for point in group}
        bottom = vertex([p.n for p in group], [p.loss for p in group]) if len(sizes) >= LEAST else None
        if len(sizes) >= LEAST:
            profile: dict[str, Any] = {"flops": budget, "runs": [[p.n, p.loss] for p in group], "n": None}
            if bottom is not None and min(sizes) <= bottom[0] <= max(sizes):
                profile |= {"n": bottom[0], "loss": bottom[1]}
            profiles.append(profile)
    if not profiles:
        return None
    inside = [profile for profile in profiles if profile["n"] is not None]
    found = power_law([p["flops"] for p in inside], [p["n"] for p in inside]) if len(inside) >= 2 else None
    return {"profiles": profiles, "law": found}


# What is held back.


def chosen(points: Sequence[Point], held_back: str) -> list[Point]:
    """The runs to predict. Raises `UserError` for a name that no run has."""
    if held_back.upper() == NONE:
        return []
    if held_back.upper() == LARGEST:
        return [point for point in points if point.n == max(p.n for p in points)]
    matching = [
        point
        for point in points
        if fnmatch(point.name, held_back) or any(fnmatch(part, held_back) for part in PurePath(point.name).parts)
    ]
    if not matching:
        raise UserError(
            f"no run is called {held_back!r}; use LARGEST, NONE or a pattern of names like {points[0].name}"
        )
    return matching


def held_back_runs(points: Sequence[Point], held_back: str, bootstrap: int, seed: int) -> dict[str, Any]:
    """Runs predicted by the law of the others: L(N, D), or L(N) at their tokens where that cannot be fitted."""
    apart = chosen(points, held_back)
    rest = [point for point in points if point not in apart]
    if not apart:
        return {"predictions": [], "why_not": "nothing is held back"}
    joint = law(rest, ("n", "tokens"), bootstrap, seed) if rest else "no run is left"
    predictions, reasons = [], []
    for point in apart:
        by = joint
        if isinstance(by, str) and rest:
            same = [p for p in rest if len(levels([p.tokens, point.tokens])) == 1]
            by = law(same, ("n",), bootstrap, seed)
        if isinstance(by, str):
            reasons.append(by)
        else:
            predictions.append(prediction(by, point, seed))
    why_not = f"nothing can be fitted without the runs held back: {reasons[0]}" if reasons else None
    return {"predictions": predictions, "why_not": why_not}


def prediction(by: Law, point: Point, seed: int) -> dict[str, Any]:
    predicted = by.predict(point)
    ends = run_interval(predicted[1:], by.residuals(), len(FORMS[by.inputs][1]), seed)
    return {
        "name": point.name,
        "n": point.n,
        "tokens": point.tokens,
        "flops": point.flops,
        "form": FORMS[by.inputs][0],
        "runs": len(by.points),
        "measured": point.loss,
        "predicted": float(predicted[0]),
        "interval": ends,
        "error": float(predicted[0] / point.loss - 1),
        "inside": None if ends is None else ends[0] <= point.loss <= ends[1],
        "beyond": reach(point.n, point.tokens, point.flops, by.points),
    }


# All of it.


def find_laws(gathered: Gathered, held_back: str = LARGEST, bootstrap: int = 1000, seed: int = 0) -> Findings:
    """Every law these points can tell. Raises `UserError` where they tell none."""
    points = at_best_rate(gathered.points)
    sizes = levels((point.n for point in points), 0)
    budgets = levels(point.tokens for point in points)
    if len(sizes) == 1:
        raise UserError(f"all {len(points)} runs are of one size, {short(sizes[0])}; a law needs {LEAST} sizes or more")
    groups = {
        "tokens": {d: [p for p in points if level_of(p.tokens, budgets) == d] for d in budgets},
        "n": {n: [p for p in points if p.n == n] for n in sizes},
    }
    by_tokens = {d: law(group, ("n",), bootstrap, seed) for d, group in groups["tokens"].items()}
    by_size = {n: law(group, ("tokens",), bootstrap, seed) for n, group in groups["n"].items()}
    joint = law(points, ("n", "tokens"), bootstrap, seed)
    laws = [one for one in (joint, *by_tokens.values(), *by_size.values()) if isinstance(one, Law)]
    if not laws:
        raise UserError(
            f"{len(points)} runs of {len(sizes)} sizes and {len(budgets)} numbers of tokens tell no law: a law of size "
            f"needs {LEAST} sizes with equal tokens"
        )
    predicted = held_back_runs(points, held_back, bootstrap, seed)
    searched = rates(gathered.points)
    whole = joint if isinstance(joint, Law) else None
    fitted_n = {d: one for d, one in by_tokens.items() if isinstance(one, Law)}
    fitted_d = {n: one for n, one in by_size.items() if isinstance(one, Law)}
    record = {
        "seed": seed,
        "level": 0.95,
        "points": [point_record(point, point in points, whole) for point in gathered.points],
        "left_out": [{"name": one.name, "why": one.why} for one in gathered.left_out],
        "laws": {
            "n_and_d": whole.record if whole else None,
            "n": [one.record | {"tokens": d} for d, one in fitted_n.items()],
            "d": [one.record | {"n": n} for n, one in fitted_d.items()],
        },
        "not_fitted": {"n_and_d": joint if isinstance(joint, str) else None},
        "frontier": frontier(whole) if whole else None,
        "isoflop": isoflop(points),
        "rates": searched,
        "held_back": predicted,
    }
    record["warnings"] = [
        *searched["warnings"],
        *gathered.warnings,
        *scatter_warnings(groups["tokens"]),
        *law_warnings(whole, record),
    ]
    return Findings(gathered, tuple(points), whole, fitted_n, fitted_d, record)


def point_record(point: Point, used: bool, joint: Law | None) -> dict[str, Any]:
    return {
        "name": point.name,
        "n": point.n,
        "non_embedding": point.non_embedding,
        "parameters": point.parameters,
        "tokens": point.tokens,
        "flops": point.flops,
        "flops_6nd": 6 * point.n * point.tokens,
        "lr": point.lr,
        "seed": point.seed,
        "loss": point.loss,
        "at_best_lr": used,
        "fitted": float(joint.predict(point)[0]) if joint and used else None,
    }


def scatter_warnings(by_tokens: dict[float, list[Point]]) -> list[str]:
    """Where a larger size has the higher loss, runs scatter by more than their sizes differ."""
    warnings = []
    for tokens, group in by_tokens.items():
        sizes = sorted({point.n for point in group})
        means = [float(np.mean([point.loss for point in group if point.n == n])) for n in sizes]
        if rises := [i for i in range(1, len(sizes)) if means[i] > means[i - 1]]:
            shown = ", ".join(f"{short(sizes[i])} above {short(sizes[i - 1])}" for i in rises)
            warnings.append(
                f"at {short(tokens)} tokens the loss rises with size ({shown}): runs scatter by more than their sizes "
                "differ; more seeds or rates would tell"
            )
    return warnings


def law_warnings(joint: Law | None, record: dict[str, Any]) -> list[str]:
    warnings = [f"L(N, D): {'; '.join(joint.record['notes'])}"] if joint and joint.record["notes"] else []
    if joint is None:
        warnings.append(f"L(N, D) was not fitted: {record['not_fitted']['n_and_d']}")
    for one in record["laws"]["n"]:
        warnings += [f"L(N) at {short(one['tokens'])} tokens: {'; '.join(one['notes'])}"] if one["notes"] else []
    if record["held_back"]["why_not"]:
        warnings.append(f"no prediction: {record['held_back']['why_not']}")
    for row in record["held_back"]["predictions"]:
        if row["inside"] is False:
            warnings.append(f"{row['name']}: measured {row['measured']:.4f}, outside of its interval")
    return warnings


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lvm sweep fit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="run folders, or folders that hold some")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where law.json and the page go")
    parser.add_argument(
        "--held-back",
        default=LARGEST,
        metavar="NAME",
        help="runs to predict: LARGEST (default), NONE, or a name pattern",
    )
    parser.add_argument("--parameters", choices=("non_embedding", "all"), default="non_embedding", help="what N counts")
    parser.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="resamples of the runs")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples")
    options = parser.parse_args(argv)
    if options.bootstrap < 0:
        raise UserError(f"--bootstrap is {options.bootstrap}; use 0 (no intervals) or more")
    return fit_runs(options.runs, options.out, options.held_back, options.parameters, options.bootstrap, options.seed)


def fit_runs(runs: Sequence[Path], out: Path, held_back: str, parameters: Parameters, bootstrap: int, seed: int) -> int:
    from lvm.cluster.law_report import summary, write_report

    if file := next((place for place in (out, *out.parents) if place.exists() and not place.is_dir()), None):
        raise UserError(f"--out {out}: {file} is a file; name a folder")
    findings = find_laws(gather(runs, parameters), held_back, bootstrap, seed)
    findings.record["parameters"] = parameters
    page = write_report(out, findings)
    print(summary(findings))
    print(f"\n{page}")
    return 0
