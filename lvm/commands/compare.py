"""Compare two evaluations case by case: lvm compare A B [--out DIR] [--json FILE]

A and B are folders of `lvm evaluate --out` (of one suite, or of `--suite all`) that were asked the same, or runs: then
of each suite the newest checkpoint that both have evaluated, and the metrics that both noted. B - A of each case, its
mean and a 95% interval; the perplexity ratio; how many cases B won. The terminal shows the right prompts, --all those
with other pairs and none too.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lvm.cluster.evaluation_jobs import FOLDER
from lvm.cluster.runs import is_run
from lvm.evaluation.cases import RIGHT
from lvm.evaluation.comparison import compare, is_evaluation, lines_of, read_evaluation, verdict
from lvm.evaluation.comparison_page import comparison_page
from lvm.evaluation.suite_page import interval
from lvm.runtime import UserError, atomic_write, write_json
from lvm.runtime.configs import flat
from lvm.runtime.metrics import read_metrics
from lvm.runtime.page import number

NO_FIGURES = ("step", "time")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        "lvm compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", type=Path, metavar="A", help="folder of an evaluation, or a run")
    parser.add_argument("b", type=Path, metavar="B", help="what it is compared with: above 0, B has more")
    parser.add_argument("--out", type=Path, metavar="DIR", help="compare.html and compare.json")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the numbers")
    parser.add_argument("--all", action="store_true", help="show every kind of prompt, not the right one alone")
    parser.add_argument("--seed", type=int, default=0, help="of the intervals (0)")
    arguments = parser.parse_args(argv)
    pairs, notes = evaluations_of_both(arguments.a, arguments.b)
    compared = [
        {"folders": [str(a), str(b)], **compare(read_evaluation(a), read_evaluation(b), arguments.seed)}
        for a, b in pairs
    ]
    metrics = metrics_of_both(arguments.a, arguments.b) if is_run(arguments.a) and is_run(arguments.b) else None
    if not compared and not metrics:
        raise UserError(f"{arguments.a} and {arguments.b} have no evaluation in common; run lvm evaluate on both")
    found = {"a": str(arguments.a), "b": str(arguments.b), "notes": notes, "suites": compared, "metrics": metrics}
    for line in [*notes, *(line for one in compared for line in told(one, arguments.all)), *metric_lines(metrics)]:
        print(line)
    if arguments.json:
        write_json(arguments.json, found, sort_keys=False)
    if arguments.out:
        write_json(arguments.out / "compare.json", found, sort_keys=False)
        page = comparison_page(compared, metrics, str(arguments.a), str(arguments.b))
        atomic_write(arguments.out / "compare.html", page)
        print(arguments.out / "compare.html")
    return 0


# Which folders.


def evaluations_of_both(a: Path, b: Path) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Folders to compare, and what is left out. Raises `UserError` where the two are not of one kind."""
    for path in (a, b):
        if not path.is_dir():
            raise UserError(f"{path} is no folder; give one of lvm evaluate --out, or a run")
    if is_evaluation(a) or is_evaluation(b):
        return [(a, b)], []
    if is_run(a) != is_run(b):
        run, other = (a, b) if is_run(a) else (b, a)
        raise UserError(f"{run} is a run and {other} is none; compare two runs, or two folders of lvm evaluate")
    ours, theirs = (dict(by_name(path)) for path in (a, b))
    if not ours and not is_run(a):
        raise UserError(f"{a} holds no evaluation; give a folder of lvm evaluate --out, or a run")
    both = sorted(set(ours) & set(theirs))
    if is_run(a):
        newest = {suite: step for step, suite in both}  # ascending: the last step stays
        notes = [f"{suite}: step {step}, the newest that both have" for suite, step in newest.items()]
        return [(ours[step, suite], theirs[step, suite]) for suite, step in newest.items()], notes
    alone = sorted({suite for _, suite in set(ours) ^ set(theirs)})
    return [(ours[key], theirs[key]) for key in both], [f"{suite}: only one of them has it" for suite in alone]


def by_name(path: Path) -> Iterator[tuple[tuple[int, str], Path]]:
    """((step, suite), folder) of the complete evaluations below a folder or of a run; step 0 where it is no run's."""
    pattern = f"{FOLDER}/step-*-*" if is_run(path) else "*"
    for folder in path.glob(pattern):
        if is_evaluation(folder) and (folder / "report.json").is_file():
            _, step, suite = folder.name.split("-", 2) if is_run(path) else ("", "0", folder.name)
            yield (int(step), suite), folder


def metrics_of_both(a: Path, b: Path) -> dict[str, Any] | None:
    """Figures at one step, the newest common one of an evaluation, else of a validation, else of training."""
    ours, theirs = ({row["step"]: dict(figures(row)) for row in read_metrics(path / "metrics")} for path in (a, b))
    common = {step: [key for key in ours[step] if key in theirs[step]] for step in set(ours) & set(theirs)}
    rank = lambda step: (
        any(key.startswith("evaluation.") for key in common[step]),
        "validation_loss" in common[step],
        step,
    )
    if not any(common.values()):
        return None
    step = max((step for step in common if common[step]), key=rank)
    return {"step": step, "figures": {key: {"a": ours[step][key], "b": theirs[step][key]} for key in common[step]}}


def figures(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in flat(row):
        if isinstance(value, (int, float)) and not isinstance(value, bool) and key not in NO_FIGURES:
            yield key, value


# On the terminal.


def told(compared: Mapping[str, Any], every: bool) -> Iterator[str]:
    yield f"{compared['suite']}: A {compared['a']}, B {compared['b']}"
    yield from (f"  {note}" for note in compared["notes"])
    if compared["left_out"]:
        yield f"  {compared['left_out']} cases failed or are missing in one of them and are left out"
    lines = list(lines_of(compared, None if every else [RIGHT])) or list(lines_of(compared))
    head = ("task", "prompt", "measure", "A", "B", "B - A", "won/lost/tied", "", "perplexity B/A")
    yield from columns([head, *(cells(*line) for line in lines)])
    marks = [verdict(of, measure["higher_is_better"]) for *_, measure, of in lines]
    better, worse = marks.count("better"), marks.count("worse")
    yield f"  B is better in {better} of {len(marks)} and worse in {worse} (95% intervals)"


def cells(task: str, condition: str, measure: Mapping[str, Any], of: Mapping[str, Any]) -> tuple[str, ...]:
    difference = interval(of["difference"], signed=True)
    counts = "/".join(str(of[key]) for key in ("won", "lost", "tied"))
    mark = verdict(of, measure["higher_is_better"])
    ratio = interval(of["perplexity_ratio"]) if "perplexity_ratio" in of else ""
    return (task, condition, measure["name"], number(of["a"]), number(of["b"]), difference, counts, mark, ratio)


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()


def metric_lines(metrics: Mapping[str, Any] | None) -> Iterator[str]:
    if metrics:
        yield f"metrics of step {metrics['step']}, without intervals"
        rows = [
            (key, number(of["a"]), number(of["b"]), number(of["b"] - of["a"])) for key, of in metrics["figures"].items()
        ]
        yield from columns([("metric", "A", "B", "B - A"), *rows])
