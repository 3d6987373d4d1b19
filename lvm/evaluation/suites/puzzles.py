"""puzzles: matrices of 3x3 panels, the ninth of eight choices.

    form=matrix    pairs of a matrix with a blank ninth cell and the whole matrix, all by the same rules, then a matrix
                   (the paper's probe, figure 13)
    form=panels    the eight panels as a sequence of pictures, then the ninth

By likelihood: which choice is most likely, and which gains most by the prompt over the query alone (a choice that is
likely anywhere gains nothing). By generation: which choice the painted cell is nearest to. Chance is 1/8 in all three.
World without --data; else a folder of .npz files as of RAVEN, I-RAVEN, RAVEN-FAIR or PGM (datasets/raven.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lvm.evaluation.cases import CONTROLS, NONE, RIGHT, SHUFFLED, WRONG_TASK, Case, Measure, Published, Shown
from lvm.evaluation.choice_measures import ninth_cell, root_mean_square, share_of_least
from lvm.evaluation.datasets.raven import SIDE, TREE, RavenMatrices
from lvm.evaluation.matrices import Matrices, WorldMatrices
from lvm.evaluation.pairing import PairCases, PairingConfig, group_by, missing_controls, thumbnail
from lvm.evaluation.prompts import pick
from lvm.evaluation.suites.base import NEAREST_PAIR, Context, PairOptions, describe_pairs, open_data
from lvm.evaluation.summary import interval
from lvm.evaluation.tasks import Task
from lvm.runtime import UserError
from lvm.sources.world import WorldSource

if TYPE_CHECKING:
    from lvm.evaluation.cases import Picture

Form = Literal["matrix", "panels"]
TASK = Task("matrix", "image", "solution", "Puzzles")
NUM_CHOICES = 8
CHANCE = 1 / NUM_CHOICES
PANELS = 9

MEASURES = (
    Measure(
        "correct",
        True,
        about="1 where of the eight choices' cells the right one is nearest (L2) to the painted cell; chance 0.125",
    ),
    Measure("exact", True, about="correct, and the root mean square difference to it at most `exact` gray levels"),
    Measure("error", False, "gray levels", "root mean square difference of the painted cell and the right one"),
)
PUBLISHED = (
    Published(
        "LVM",
        {},
        "figure 13",
        "three examples after five masked and clean photos; no accuracy was published",
    ),
)


@dataclass(frozen=True)
class Options(PairOptions):
    form: Form = "matrix"
    exact: float = 16.0  # gray levels

    def __post_init__(self) -> None:
        if not 0 <= self.exact <= 255:
            raise UserError(f"exact {self.exact} must be from 0 to 255 gray levels")
        if self.form == "panels" and (self.pairs, self.choose, self.order, self.ensemble) != (
            None,
            "random",
            "random",
            1,
        ):
            raise UserError("form=panels shows one matrix alone: pairs, choose, order and ensemble are of form=matrix")


class PuzzleSuite:
    name, title = "puzzles", "Puzzles"
    measures: Sequence[Measure] = MEASURES
    published: Sequence[Published] = PUBLISHED
    broken: Sequence[str] = ()

    def __init__(self, context: Context, options: Options):
        self._data, self._seed, self._exact = open_matrices(context), context.seed, options.exact
        number = context.num_cases or 200
        self._cases: MatrixCases | PanelCases
        config: PairingConfig | None = None
        if options.form == "matrix":
            config = options.pairing(context)
            self._cases = MatrixCases(self._data, config, number, context)
        else:
            if context.room < PANELS:
                raise UserError(f"the model's context holds {context.room} pictures; the panels of a matrix are 9")
            self._cases = PanelCases(self._data, number, context.seed)
        described = describe_pairs(self._data, TASK, config or PairingConfig(), context)
        hidden = set() if config else {"task", "shuffled", *vars(PairingConfig())}
        self.settings = {
            **{key: value for key, value in described.items() if key not in hidden},
            **({"resize": resized(options.form)} if isinstance(self._data, RavenMatrices) else {}),
            **self._cases.missing_controls(),
            "held_out": "test split",
            "form": options.form,
            "pairs_are": "of the query's rules; wrong_task: of other rules" if config else None,
            "conditions": None if config else PANEL_CONDITIONS,
            "nearest_pair": NEAREST_PAIR if config else NEAREST_ROW,
            "exact": options.exact,
            "chance": CHANCE,
            "cell": "the ninth without the lines about it" if config else "the whole picture",
        }

    def __len__(self) -> int:
        return len(self._cases)

    def case(self, i: int) -> Case:
        return self._cases.case(i)

    def judge(self, case: Case, pictures: "Sequence[Picture]") -> Mapping[str, float]:
        cut: Callable[[Any], Any] = ninth_cell if case.task == "matrix" else np.asarray
        difference = root_mean_square(cut(pictures[0]), cut(np.stack(case.choices)))
        correct, error = share_of_least(difference, case.right_choice), float(difference[case.right_choice])
        return {"correct": correct, "exact": correct * (error <= self._exact), "error": error}

    def over_all(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """Accuracies by likelihood, after each prompt and as right minus control, and all accuracies by rules."""
        most_likely = {name: found for name in (RIGHT, *CONTROLS) if (found := by_likelihood(rows, name)) is not None}
        gains = {
            name: found
            for name in most_likely
            if name != NONE and (found := by_likelihood(rows, name, NONE)) is not None
        }
        ways = {"likelihood": most_likely, "prior_corrected": gains}
        report: dict[str, Any] = {"chance": CHANCE}
        for way, found in ways.items():
            report[way] = {name: interval(values, self._seed) for name, values in found.items()}
            report[f"{way}_over_controls"] = {
                name: interval(found[RIGHT] - values, self._seed) for name, values in found.items() if name != RIGHT
            }
        painted = np.array([row["conditions"][RIGHT]["scores"]["correct"] for row in rows])
        of_row = {"correct": painted, **{way: found[RIGHT] for way, found in ways.items()}}
        members = group_by(range(len(rows)), lambda i: str(rows[i]["label"]))
        report["by_label"] = {
            label: {"items": len(own), **{way: float(values[own].mean()) for way, values in of_row.items()}}
            for label, own in sorted(members.items())
        }
        return report


def by_likelihood(rows: Sequence[Mapping[str, Any]], condition: str, prior: str = "") -> Any:
    """Of each row 1 where the right choice is the most likely one, or gains most over the condition `prior`; None where
    the rows lack the condition."""
    if any(name not in row["conditions"] for row in rows for name in (condition, prior) if name):
        return None
    found = []
    for row in rows:
        nll = np.array(row["conditions"][condition]["choices"])
        before = np.array(row["conditions"][prior]["choices"]) if prior else 0
        found.append(share_of_least(nll - before, row["right_choice"]))
    return np.array(found)


class MatrixCases:
    """Pairs of a matrix and its solution by the query's rules, then the query."""

    def __init__(self, data: Matrices, config: PairingConfig, num_cases: int, context: Context):
        self._data = data
        self._cases = PairCases(data, [TASK], config, num_cases, context.seed, True, context.encode)

    def missing_controls(self) -> Mapping[str, Any]:
        return missing_controls([self._cases])

    def __len__(self) -> int:
        return len(self._cases)

    def case(self, i: int) -> Case:
        case = self._cases.case(i)
        query = case.facts["item"]
        return replace(case, choices=tuple(self._data.filled(query)), right_choice=self._data.right_choice(query))


PANEL_CONDITIONS = {
    RIGHT: "the eight panels",
    WRONG_TASK: "two rows of a matrix of other rules, then the third row's two panels",
    SHUFFLED: "the panels of the first two rows in another order, then the third row's two",
    NONE: "the third row's two panels alone",
}

NEAREST_ROW = f"the third panel of the row whose second is nearest to the eighth panel, {NEAREST_PAIR}"


def resized(form: Form) -> str:
    """What becomes of RAVEN's files."""
    whole = f"the matrix, {3 * SIDE}" if form == "matrix" else f"each panel, {SIDE}"
    return f"{whole} pixels a side, box filter"


class PanelCases:
    """The panels of one matrix, in reading order."""

    def __init__(self, data: Matrices, num_cases: int, seed: int):
        self._data, self._num_cases, self._seed = data, num_cases, seed
        self._queries = pick(len(data), np.arange(len(data)), (seed, 8)).tolist()

    def missing_controls(self) -> Mapping[str, Any]:
        one_kind = len(set(self._data.labels)) == 1
        return {WRONG_TASK: {"panels": "none: all matrices are of one kind"}} if one_kind else {}

    def __len__(self) -> int:
        return self._num_cases

    def case(self, i: int) -> Case:
        query, again = self._queries[i % len(self._queries)], i // len(self._queries)
        panels = list(self._data.panels(query))
        rows, last = panels[:6], panels[6:8]
        prompts = {RIGHT: Shown((*rows, *last))}
        others = [k for k in self._queries if self._data.labels[k] != self._data.labels[query]]
        if others:
            other = pick(1, np.array(others), (self._seed, 9, i))[0]
            prompts[WRONG_TASK] = Shown((*self._data.panels(int(other))[:6], *last))
        order = next_order(self._seed, i)
        prompts[SHUFFLED] = Shown((*(rows[k] for k in order), *last))
        prompts[NONE] = Shown(tuple(last))
        near = min((rows[1], rows[2]), (rows[4], rows[5]), key=lambda row: difference(row[0], last[1]))
        return Case(
            id=self._data.ids[query] + (f"#{again}" if again else ""),
            task="panels",
            prompts=prompts,
            truth=(panels[8],),
            tuple_size=1,
            label=self._data.labels[query],
            choices=tuple(self._data.choices(query)),
            right_choice=self._data.right_choice(query),
            baselines={
                "copy_query": (last[1],),
                "copy_last_answer": (rows[5],),
                "mean_answer": (np.rint(np.mean([rows[2], rows[5]], axis=0)).astype(np.uint8),),
                "nearest_pair": (near[1],),
            },
        )


def next_order(seed: int, number: int) -> list[int]:
    """Of the six panels of two rows, never as they were."""
    order: list[int] = pick(6, np.arange(6), (seed, 10, number)).tolist()
    return order if order != sorted(order) else order[::-1]


def difference(one: "Picture", other: "Picture") -> float:
    return float(np.square(thumbnail(one) - thumbnail(other)).mean())


def open_matrices(context: Context) -> Matrices:
    """Raises `UserError` where there are none."""
    path = Path(context.data or "").expanduser()
    if context.data is not None and path.is_dir():
        return RavenMatrices(path, context.size)
    source = open_data(context)
    if not isinstance(source, WorldSource):
        raise UserError(f"{context.data} holds no matrices with choices; give no --data for the world's, or {TREE}")
    if not source.counts["puzzle"] or "solution" not in source.channels:
        raise UserError("the world has no puzzles: num_puzzles is 0, or channels lack solution; use world_evaluated")
    return WorldMatrices(source, context.size)


def make(context: Context, options: Options) -> PuzzleSuite:
    return PuzzleSuite(context, options)
