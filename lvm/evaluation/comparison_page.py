"""The page of `lvm compare`: a table for each task of each suite; one file, nothing loaded."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lvm.evaluation.comparison import lines_of, verdict
from lvm.evaluation.report import title_of
from lvm.evaluation.suite_page import interval
from lvm.runtime.page import document, number, section, table, tile

Comparison = Mapping[str, Any]
SET = {"better": "good", "worse": "bad", "": ""}
ABOUT = (
    "Means of the same cases under A and B, and B − A of each case: its mean with a 95% bootstrap interval, bold where "
    "B is better and the interval beyond 0, red where it is worse. Won: cases in which B is better. No correction is "
    "made for the number of intervals: of twenty that mean nothing one lies beyond 0."
)


def comparison_page(comparisons: Sequence[Comparison], metrics: Mapping[str, Any] | None, a: str, b: str) -> str:
    body = f"<h1>{escape(a)} (A) and {escape(b)} (B)</h1>{tiles(comparisons)}"
    for found in comparisons:
        notes = [*found["notes"], *([f"{found['left_out']} cases failed or are missing"] if found["left_out"] else [])]
        body += section(
            f"{found['title']} ({found['suite']})",
            ABOUT + "".join(f" {escape(note)}." for note in notes),
            *(task_part(found, task) for task in found["tasks"]),
        )
    if metrics:
        text = f"Step {metrics['step']}, no intervals: what both runs noted there."
        body += section("Metrics of both runs", text, metric_table(metrics))
    raw = escape(json.dumps({"suites": comparisons, "metrics": metrics}, indent=1, sort_keys=True), quote=False)
    details = f"<details><summary>All numbers</summary><pre>{raw}</pre></details>"
    return document(f"{a} and {b}", body + details)


def tiles(comparisons: Sequence[Comparison]) -> str:
    shown = []
    for found in comparisons:
        marks = [verdict(row, m["higher_is_better"]) for _, name, m, row in lines_of(found, ["right"])]
        caption = f"{found['suite']}: better and worse of {len(marks)}, right prompts"
        shown.append((f"{marks.count('better')} / {marks.count('worse')}", caption))
    return f"<div class=tiles>{''.join(tile(*pair) for pair in shown)}</div>" if shown else ""


def task_part(found: Comparison, task: str) -> str:
    row = found["tasks"][task]
    lines = [line for line in lines_of(found) if line[0] == task]
    head = ["prompt", "measure", "A", "B", "B − A", "perplexity B / A", "won", "lost", "tied"]
    body = [
        [condition.replace("_", " "), measure["name"], number(of["a"]), number(of["b"])]
        + [(interval(of["difference"], signed=True), SET[verdict(of, measure["higher_is_better"])])]
        + [interval(of.get("perplexity_ratio"))]
        + [str(of[key]) for key in ("won", "lost", "tied")]
        for _, condition, measure, of in lines
    ]
    figures = [
        [key.replace("_", " "), number(of["a"]), number(of["b"]), number(of["b"] - of["a"])]
        for key, of in row["over_all"].items()
    ]
    heading = f"<h3>{escape(title_of(task))}, {row['items']} cases</h3>"
    return heading + table(head, body) + table(["over all cases", "A", "B", "B − A"], figures)


def metric_table(metrics: Mapping[str, Any]) -> str:
    rows = [
        [key, number(of["a"]), number(of["b"]), number(of["b"] - of["a"])] for key, of in metrics["figures"].items()
    ]
    return table(["metric", "A", "B", "B − A"], rows)
