"""Cases of an evaluation to look at: the best, the median and the worst of each task, drawn again from their rows.

A strip is what one case showed and what came of it: the prompt's pictures, then the query, the answers after each kind
of prompt, the truth as the tokenizer can draw it, and the truth. Nothing is kept for it while a suite is asked: the
prompt is `suite.case(i)` again, the answers are the codes in the row.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.evaluation.ask import repaint
from lvm.evaluation.cases import CEILING, CONTROLS, ENSEMBLE, RIGHT, Case, Measure, Suite
from lvm.inference.prompter import Prompter
from lvm.runtime.page import number
from lvm.sources.base import BrokenItem

if TYPE_CHECKING:
    from lvm.evaluation.cases import Picture

Row = Mapping[str, Any]
MOST_ANSWERS = 6  # kinds of prompts of which answers are shown


@dataclass(frozen=True)
class Cell:
    name: str
    picture: "Picture"
    notes: tuple[str, ...] = ()  # below it
    answer: bool = False  # painted by the model, or chosen by it


@dataclass(frozen=True)
class Strip:
    task: str
    title: str
    prompt: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]  # below each other; one where answers are single pictures


def draw_strips(suite: Suite, rows: Sequence[Row], prompter: Prompter) -> list[Strip]:
    """Of each task in the order of `rows`; those that failed are left out, and what can be read no more."""
    tasks: dict[str, list[Row]] = {}
    for row in rows:
        if "failed" not in row:
            tasks.setdefault(row["task"], []).append(row)
    strips = []
    for task, found in tasks.items():
        for place, row in chosen(found, suite.measures):
            try:
                strips.append(draw_strip(suite, row, f"{place} of {len(found)}", prompter))
            except BrokenItem as error:
                print(f"{task}: the {place} case, {row['id']}, is not on the page: {error}", file=sys.stderr)
    return strips


def shown_condition(row: Row) -> str:
    """The prompt that is drawn and ranked by: right, or the last where a suite has no such."""
    return RIGHT if RIGHT in row["conditions"] else list(row["conditions"])[-1]


def chosen(rows: Sequence[Row], measures: Sequence[Measure]) -> list[tuple[str, Row]]:
    """("best", row), ("median", row), ("worst", row) by the first measure, by NLL where no answer has a score; fewer
    of fewer rows."""
    of = lambda row: row["conditions"][shown_condition(row)]
    first, sign = (measures[0].name, -1 if measures[0].higher_is_better else 1) if measures else ("", 1)
    ranked = [(sign * score, row) for row in rows if (score := of(row).get("scores", {}).get(first)) is not None]
    if not ranked:
        ranked = [(nll, row) for row in rows if (nll := of(row).get("nll")) is not None]
    order = [row for _, row in sorted(ranked, key=lambda pair: (pair[0], pair[1]["case"]))]
    places = {"best": 0, "median": (len(order) - 1) // 2, "worst": len(order) - 1}
    taken: dict[int, str] = {}
    for name in ("best", "worst", "median"):
        if order:
            taken.setdefault(places[name], name)
    return [(name, order[place]) for place, name in sorted(taken.items())]


def draw_strip(suite: Suite, row: Row, place: str, prompter: Prompter) -> Strip:
    case, name = suite.case(row["case"]), shown_condition(row)
    first = suite.measures[0].name if suite.measures else ""
    *before, query = case.prompts[name].pictures
    pairs = case.tuple_size == 2
    prompt = [Cell("→" if pairs and k % 2 else str(k // case.tuple_size + 1), p) for k, p in enumerate(before)]
    rows = [[Cell("query" if pairs else "last shown", query)], *answer_rows(row, first, prompter)]
    if case.truth:
        held = prompter.decode(prompter.encode(np.stack(case.truth)))
        rows.append(several("truth, tokenised", list(held), score_note(row["baselines"].get(CEILING, {}), first)))
        rows.append(several("truth", case.truth))
    if len(case.truth) <= 1:
        rows = [[cell for cells in rows for cell in cells]]
    if case.choices:
        rows.append(choice_cells(case, row["conditions"][name]))
    title = f"{place}: {row['id']}" + (f" ({case.label})" if case.label else "") + likelihoods_note(row)
    return Strip(row["task"], title, tuple(prompt), tuple(map(tuple, rows)))


def answer_rows(row: Row, measure: str, prompter: Prompter) -> Iterator[list[Cell]]:
    """Of the right prompt, the controls and an ensemble; of all others where there are none of these."""
    painted = {name: pictures for name in row["conditions"] if (pictures := repaint(prompter, row, name)) is not None}
    known = [name for name in (RIGHT, *CONTROLS, ENSEMBLE) if name in painted]
    for name in (known or list(painted))[:MOST_ANSWERS]:
        found = row["conditions"][name]
        notes = (*score_note(found.get("scores", {}), measure), *nats_note(found))
        yield several(name.replace("_", " "), list(painted[name]), notes, answer=True)


def choice_cells(case: Case, found: Mapping[str, Any]) -> list[Cell]:
    nats = found.get("choices") or [None] * len(case.choices)
    names = [f"choice {k + 1}" + (" (right)" if k == case.right_choice else "") for k in range(len(case.choices))]
    return [
        Cell(name, picture, nats_note({"nll": value}), answer=k == found.get("choice"))
        for k, (name, picture, value) in enumerate(zip(names, case.choices, nats))
    ]


def several(name: str, pictures: "Sequence[Picture]", notes: tuple[str, ...] = (), answer: bool = False) -> list[Cell]:
    """Pictures that follow each other; the notes stand below the first."""
    numbered = len(pictures) > 1
    return [
        Cell(f"{name} +{k + 1}" if numbered else name, picture, () if k else notes, answer)
        for k, picture in enumerate(pictures)
    ]


def score_note(scores: Mapping[str, Any], measure: str) -> tuple[str, ...]:
    return (f"{measure} {number(scores[measure])}",) if scores.get(measure) is not None else ()


def nats_note(found: Mapping[str, Any]) -> tuple[str, ...]:
    return (f"{number(found['nll'])} nats",) if found.get("nll") is not None else ()


def likelihoods_note(row: Row) -> str:
    """The nats of the truth after each kind of prompt, where no answers say them."""
    found = row["conditions"]
    if any("scores" in of for of in found.values()):
        return ""
    known = [name for name in (RIGHT, *CONTROLS) if found.get(name, {}).get("nll") is not None]
    return "; nats: " + ", ".join(f"{name.replace('_', ' ')} {number(found[name]['nll'])}" for name in known)
