"""Two evaluations of the same cases, compared case by case: B - A with intervals.

    {"suite", "a", "b", "notes": [...], "left_out", "measures",
     "tasks": {task: {
        "items",
        "conditions": {condition: {
            "nll":   {"a", "b", "difference", "won", "lost", "tied", "perplexity_ratio"},     nats an answer
            measure: {"a", "b", "difference", "won", "lost", "tied"}}},
        "over_all": {figure: {"a", "b"}}}}}            what is no mean over cases has no interval

A difference is {"mean", "low", "high"}, 95%, bootstrapped over cases; B won a case where it is better than A there. The
perplexity ratio is B's over A's, below 1 where B finds the truth likelier.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lvm.evaluation.job import QUESTION
from lvm.evaluation.summary import OF_A_TASK, finite, given, in_order, interval, query_ids, values
from lvm.runtime import UserError, read_json
from lvm.runtime.configs import flat, shown

Row = Mapping[str, Any]
MOST_SHOWN = 60  # characters of a setting in a message
MAY_DIFFER = ("model", "tokenizer", "precision")  # in what was asked of two evaluations that can be compared
NLL: dict[str, Any] = {"name": "nll", "higher_is_better": False, "unit": "nats", "about": "of the whole true answer"}
CHOICE: dict[str, Any] = {
    "name": "right_choice",
    "higher_is_better": True,
    "unit": "",
    "about": "share of cases whose right choice is the likeliest one",
}


@dataclass(frozen=True)
class Evaluated:
    """The folder of a complete evaluation."""

    path: Path
    question: Mapping[str, Any]
    report: Mapping[str, Any]
    rows: Sequence[Row]

    @property
    def name(self) -> str:
        return str(self.report.get("model", self.path))


def is_evaluation(path: Path) -> bool:
    return (path / QUESTION).is_file()


def read_evaluation(path: Path) -> Evaluated:
    """Raises `UserError` where it is none, or not complete."""
    for name in (QUESTION, "report.json", "rows.jsonl"):
        if not (path / name).is_file():
            raise UserError(f"{path} has no {name}: it is no complete evaluation; run `lvm evaluate ... --out {path}`")
    try:
        rows = [json.loads(line) for line in (path / "rows.jsonl").read_text().splitlines()]
    except ValueError as error:
        raise UserError(f"{path / 'rows.jsonl'} is damaged ({error}); run the evaluation again") from None
    return Evaluated(path, read_json(path / QUESTION), read_json(path / "report.json"), rows)


def check_same_question(a: Evaluated, b: Evaluated) -> list[str]:
    """What may differ and does, in words. Raises `UserError` naming what must not differ."""
    suites = a.question["suite"], b.question["suite"]
    if suites[0] != suites[1]:
        raise UserError(f"{a.path} is of suite {suites[0]} and {b.path} of suite {suites[1]}; compare one suite")
    ours, theirs = dict(flat(a.question)), dict(flat(b.question))
    lines: list[str] = []
    notes: list[str] = []
    for key in dict.fromkeys([*ours, *theirs]):
        if (one := ours.get(key, "absent")) != (other := theirs.get(key, "absent")):
            (notes if key in MAY_DIFFER else lines).append(f"{key} is {brief(one)} and {brief(other)}")
    if lines:
        raise UserError(f"{a.path} and {b.path} are answers to different questions: {shown(lines)}")
    return [note for note in notes if not note.startswith("model")]


def brief(value: Any) -> str:
    words = str(value)
    return words if len(words) <= MOST_SHOWN else words[: MOST_SHOWN - 3] + "..."


def compare(a: Evaluated, b: Evaluated, seed: int = 0) -> dict[str, Any]:
    """Raises `UserError` where they were not asked the same."""
    notes = check_same_question(a, b)
    likelihoods = a.question["tokenizer"] == b.question["tokenizer"]
    if not likelihoods:
        notes.append("likelihoods of different tokenizers' codes are not compared")
    tasks, left_out = paired(a, b)
    measures = [NLL] if likelihoods else []
    measures += [measure for measure in b.report["measures"] if measure in a.report["measures"]]
    if likelihoods and any("right_choice" in row for pairs in tasks.values() for row, _ in pairs):
        measures.append(CHOICE)
    return {
        "suite": b.report["suite"],
        "title": b.report["title"],
        "a": a.name,
        "b": b.name,
        "notes": notes,
        "left_out": left_out,
        "measures": measures,
        "tasks": {
            task: {
                "items": len(pairs),
                "conditions": compare_conditions(pairs, measures, seed),
                "over_all": over_all(a.report["tasks"].get(task, {}), b.report["tasks"].get(task, {})),
            }
            for task, pairs in tasks.items()
        },
    }


def paired(a: Evaluated, b: Evaluated) -> tuple[dict[str, list[tuple[Row, Row]]], int]:
    """(A's row, B's row) of each case that neither failed, by task; the number of others."""
    ours, theirs = ({row["case"]: row for row in of.rows} for of in (a, b))
    tasks: dict[str, list[tuple[Row, Row]]] = {}
    for number in sorted(set(ours) & set(theirs)):
        row, other = ours[number], theirs[number]
        if "failed" in row or "failed" in other:
            continue
        if (row["task"], row["id"]) != (other["task"], other["id"]):
            raise UserError(
                f"case {number} is {row['task']} of {row['id']} in {a.path} and {other['task']} of {other['id']} "
                f"in {b.path}: the data differ; evaluate both on the same"
            )
        tasks.setdefault(row["task"], []).append((row, other))
    return tasks, len(set(ours) | set(theirs)) - sum(map(len, tasks.values()))


def compare_conditions(
    pairs: Sequence[tuple[Row, Row]], measures: Sequence[Mapping[str, Any]], seed: int
) -> dict[str, Any]:
    names = list(dict.fromkeys(name for row, _ in pairs for name in row["conditions"]))
    found: dict[str, Any] = {}
    for condition in names:
        for measure in measures:
            read = partial(value_of, condition, measure["name"])
            if compared := compare_values(pairs, read, 1 if measure["higher_is_better"] else -1, seed):
                found.setdefault(condition, {})[measure["name"]] = compared
        if nll := found.get(condition, {}).get("nll"):
            tokens = np.nanmean([row["conditions"].get(condition, {}).get("tokens", np.nan) for row, _ in pairs])
            nll["perplexity_ratio"] = perplexity_ratio(nll["difference"], float(tokens))
    return found


def value_of(condition: str, measure: str, row: Row) -> float | None:
    found = row["conditions"].get(condition, {})
    value: float | None = found.get("scores", {}).get(measure)
    if measure == NLL["name"]:
        return found.get("nll")
    if measure == CHOICE["name"] and "choice" in found:
        return float(found["choice"] == row["right_choice"])
    return value


def compare_values(pairs: Sequence[tuple[Row, Row]], of: Callable[[Row], Any], sign: int, seed: int) -> dict[str, Any]:
    """Over the cases that both have a value of; {} where there are none."""
    ours, theirs = values([row for row, _ in pairs], of), values([row for _, row in pairs], of)
    difference = theirs - ours
    if not given(difference):
        return {}
    both = ~np.isnan(difference)
    return {
        "a": finite(ours[both].mean()),
        "b": finite(theirs[both].mean()),
        "difference": interval(difference, seed, query_ids([row for row, _ in pairs])),
        "won": int((sign * difference[both] > 0).sum()),
        "lost": int((sign * difference[both] < 0).sum()),
        "tied": int((difference[both] == 0).sum()),
    }


def perplexity_ratio(nats: Mapping[str, Any], tokens: float) -> dict[str, float | None]:
    """exp of the nats a code: answers of a task have as many codes each."""
    ends = {key: nats[key] for key in ("mean", "low", "high")}
    return {key: None if nat is None else finite(math.exp(nat / tokens)) for key, nat in ends.items()}


def over_all(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    ours, theirs = dict(figures(a)), dict(figures(b))
    return {key: {"a": ours[key], "b": theirs[key]} for key in ours if key in theirs}


def figures(task: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Numbers of a task's report that suites add to it; of intervals the mean."""
    for key, value in flat({key: value for key, value in task.items() if key not in OF_A_TASK}):
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not key.endswith((".low", ".high")):
            yield key.removesuffix(".mean"), value


def verdict(compared: Mapping[str, Any], higher_is_better: bool) -> str:
    """better, worse, or "" where the interval of B - A holds 0."""
    low, high = compared["difference"]["low"], compared["difference"]["high"]
    if low is None or low <= 0 <= high:
        return ""
    return "better" if (low > 0) == higher_is_better else "worse"


def lines_of(
    comparison: Mapping[str, Any], conditions: Sequence[str] | None = None
) -> Iterator[tuple[str, str, Mapping[str, Any], Mapping[str, Any]]]:
    """(task, condition, measure, compared) of each, or of some conditions."""
    for task, row in comparison["tasks"].items():
        for condition, found in in_order(row["conditions"]):
            if conditions is None or condition in conditions:
                for measure in comparison["measures"]:
                    if measure["name"] in found:
                        yield task, condition, measure, found[measure["name"]]
