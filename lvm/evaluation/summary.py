"""Rows of cases to the report of a suite: means with intervals, paired differences, what the controls say.

    {"suite", "title", "items", "failed": [...], "unreadable": [...], "settings", "measures", "published",
     "ours": {column of the published rows: number},   where a suite says what is comparable
     "tasks": {task: {
        "items", "measure",
        "conditions": {condition: {measure: interval, "perplexity", "per_answer_perplexity", "first_token", ...}},
        "perplexity_intervals": {condition: {"perplexity": interval, "per_answer_perplexity": interval}},
        "baselines":  {name: {measure: interval}},
        "controls":   {control: {"nats": interval, measure: interval}},   differences, see below
        "over_baselines": {name: {measure: interval}}}}}

Differences are right minus control and right minus baseline; of nats control minus right, so that above 0 the pairs
are worth something. An interval is {"mean", "low", "high"}: 95%, bootstrapped over cases (for differences over those of
the same case); cases of one query are drawn together.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lvm.evaluation.bootstrap import bootstrap_mean
from lvm.evaluation.cases import CONTROLS, RIGHT, BesidePublished, Measure, Suite

Row = Mapping[str, Any]
OF_A_TASK = {  # keys; others a suite adds
    "items", "measure", "conditions", "perplexity_intervals", "baselines", "controls", "over_baselines",
}  # fmt: skip


def summarise(suite: Suite, rows: Sequence[Row], seed: int = 0) -> dict[str, Any]:
    """`rows` as `lvm.evaluation.job` keeps them; those that failed are listed and left out."""
    failed = [dict(row) for row in rows if "failed" in row]
    tasks: dict[str, list[Row]] = {}
    for row in rows:
        if "failed" not in row:
            tasks.setdefault(row["task"], []).append(row)
    found = {name: {**summarise_task(suite.measures, of, seed), **suite.over_all(of)} for name, of in tasks.items()}
    return {
        "suite": suite.name,
        "title": suite.title,
        "items": len(rows),
        "failed": failed,
        "unreadable": list(suite.broken),
        "settings": dict(suite.settings),
        "measures": [vars(measure) for measure in suite.measures],
        "published": [vars(row) | {"scores": dict(row.scores)} for row in suite.published],
        "ours": dict(suite.ours(found)) if isinstance(suite, BesidePublished) else {},
        "tasks": found,
    }


def summarise_task(measures: Sequence[Measure], rows: Sequence[Row], seed: int) -> dict[str, Any]:
    names = [measure.name for measure in measures]
    conditions = list(dict.fromkeys(name for row in rows for name in row["conditions"]))
    baselines = list(dict.fromkeys(name for row in rows for name in row["baselines"]))
    under = {name: lambda row, name=name: row["conditions"].get(name, {}) for name in conditions}
    score = lambda of, name: values(rows, lambda row: of(row).get("scores", {}).get(name))
    baseline = lambda kind, name: values(rows, lambda row: row["baselines"].get(kind, {}).get(name))
    nats = lambda of: values(rows, lambda row: of(row).get("nll"))
    asked = query_ids(rows)
    found: dict[str, Any] = {
        "items": len(rows),
        "measure": names[0] if names else None,
        "conditions": {
            condition: {
                **likelihoods(rows, of),
                **{name: interval(score(of, name), seed, asked) for name in names if given(score(of, name))},
            }
            for condition, of in under.items()
        },
        "perplexity_intervals": {
            condition: intervals
            for condition, of in under.items()
            if (intervals := perplexity_intervals(rows, of, seed, asked))
        },
        "baselines": {
            kind: {name: interval(baseline(kind, name), seed, asked) for name in names if given(baseline(kind, name))}
            for kind in baselines
        },
        "controls": {},
        "over_baselines": {},
    }
    if RIGHT not in under:
        return found
    right = under[RIGHT]
    for control in (name for name in CONTROLS if name in under):
        found["controls"][control] = {
            "nats": interval(nats(under[control]) - nats(right), seed, asked),
            **{
                name: interval(score(right, name) - score(under[control], name), seed, asked)
                for name in names
                if given(score(right, name))
            },
        }
    for kind in baselines:
        found["over_baselines"][kind] = {
            name: interval(score(right, name) - baseline(kind, name), seed, asked)
            for name in names
            if given(score(right, name))
        }
    return found


def likelihoods(rows: Sequence[Row], of: Callable[[Row], Mapping[str, Any]]) -> dict[str, Any]:
    """Perplexity = exp of the mean NLL of all tokens; per answer, as the published scripts average: the mean over
    answers of exp(mean NLL); `first_token` the perplexity of an answer's first code."""
    kept = [of(row) for row in rows if of(row).get("nll") is not None]
    if not kept:
        return {}
    nll, tokens, first = (np.array([row[key] for row in kept], np.float64) for key in ("nll", "tokens", "first_token"))
    with np.errstate(over="ignore"):
        found: dict[str, Any] = {
            "perplexity": finite(np.exp(nll.sum() / tokens.sum())),
            "per_answer_perplexity": finite(np.exp(nll / tokens).mean()),
            "first_token": finite(np.exp(first.mean())),
        }
    return found


def perplexity_intervals(
    rows: Sequence[Row], of: Callable[[Row], Mapping[str, Any]], seed: int, asked: Sequence[str]
) -> dict[str, Any]:
    """Of the perplexities that `likelihoods` gives; {} where no row has a likelihood."""
    nll, tokens = values(rows, lambda row: of(row).get("nll")), values(rows, lambda row: of(row).get("tokens"))
    if not given(nll):
        return {}
    with np.errstate(over="ignore", invalid="ignore"):
        nats = bootstrap_mean(nll / tokens, seed, weights=tokens, queries=asked)  # of a token
        return {
            "perplexity": {key: finite(np.exp(value)) for key, value in nats.items()}
            | {"items": int((~np.isnan(nll)).sum())},
            "per_answer_perplexity": interval(np.exp(nll / tokens), seed, asked),
        }


def query_ids(rows: Sequence[Row]) -> list[str]:
    """The query of each row of a task: of `x#1`, which asks x again after other pairs, x."""
    ids = {row["id"] for row in rows}
    first = [re.sub(r"#\d+$", "", row["id"]) for row in rows]
    return [query if query in ids else row["id"] for query, row in zip(first, rows)]


def values(rows: Sequence[Row], of: Callable[[Row], Any]) -> np.ndarray:
    return np.array([np.nan if (value := of(row)) is None else value for row in rows], np.float64)


def given(found: np.ndarray) -> bool:
    return bool((~np.isnan(found)).any())


def interval(found: np.ndarray, seed: int, queries: Sequence[str] | None = None) -> dict[str, Any]:
    """`queries`: of each value, those of one are drawn together."""
    return {key: finite(value) for key, value in bootstrap_mean(found, seed, queries=queries).items()} | {
        "items": int((~np.isnan(found)).sum())
    }


def finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def in_order(conditions: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Right, the numbers in order, others, the controls."""
    names = list(conditions)
    rank = lambda name: (
        0 if name == RIGHT else 1 if name.isdigit() else 3 if name in CONTROLS else 2,
        int(name) if name.isdigit() else CONTROLS.index(name) if name in CONTROLS else names.index(name),
    )
    return [(name, conditions[name]) for name in sorted(names, key=rank)]


def task_figures(report: Mapping[str, Any]) -> dict[str, Any]:
    """What of a report goes into a run's metrics: perplexities by condition (or number of pairs), scores after the
    right prompt, and what the controls cost."""
    found = {}
    for name, row in report["tasks"].items():
        under = row["conditions"]
        by = {condition: of["perplexity"] for condition, of in under.items() if of.get("perplexity") is not None}
        figures: dict[str, Any] = {"perplexity": row.get("perplexity") or by}
        right = under.get(RIGHT, {})
        scores = {key: value["mean"] for key, value in right.items() if isinstance(value, Mapping)}
        saved = {control: of["nats"]["mean"] for control, of in row["controls"].items()}
        found[name] = {**figures, **({"score": scores} if scores else {}), "costs_nats": saved}
    return found
