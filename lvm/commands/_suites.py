"""Suites of `lvm evaluate` on the model of a run: which data it may be asked about, and asked while it trains."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lvm.evaluation.annotated import HeldOut
from lvm.evaluation.ask import Codes, ask
from lvm.evaluation.cases import Case, Suite
from lvm.evaluation.rows import row_of
from lvm.evaluation.suites.base import Context
from lvm.evaluation.suites.opening import open_suite
from lvm.evaluation.summary import summarise, task_figures
from lvm.inference.prompter import Prompter, decode
from lvm.interop.training_data import TrainingData, data_of_config
from lvm.model import LVM
from lvm.sources.base import BrokenItem
from tokenizer import VQGAN

HELD_OUT = 150  # per mille of the groups of files, where nothing says how a model was trained
CASES_AT_ONCE = 32


def kept_out(data: TrainingData, per_mille: int | None = None, groups: Sequence[str] = ()) -> HeldOut:
    """What a model of this training never saw; what is given counts instead."""
    known = (share for share in (per_mille, data.held_out_per_mille) if share is not None)
    return HeldOut(next(known, HELD_OUT), tuple(groups) or data.exclude_groups)


def world_of(data: TrainingData) -> dict[str, Any] | None:
    """The world a model was trained on."""
    return {"kind": "world", **data.world} if data.world else None


def figures_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """What of a suite's report goes into a run's metrics: figures by task, and how many cases failed if any did."""
    return {**task_figures(report), **({"failed": len(report["failed"])} if report["failed"] else {})}


class LiveSuites:
    """`answer(model, step)` of a training: {"live": {suite: figures by task}}, as `lvm evaluate` would report them.

    The same few cases each time; they are drawn anew, since their pictures would fill the memory.
    """

    def __init__(
        self, names: Sequence[str], targets: int, data: str | None, config: Mapping[str, Any], vqgan: VQGAN, room: int
    ):
        """`room`: pictures that fit the model's context, the answer included. Raises `UserError` for data and suites
        that do not go together."""
        self._vqgan = vqgan
        trained_on = data_of_config(config)
        options: dict[str, Any] = {"num_cases": targets, "seed": config["seed"], "kept_out": kept_out(trained_on)}
        through: dict[str, Any] = {"encode": Codes(vqgan), "decode": partial(decode, vqgan)}
        context = Context(data, vqgan.config.resolution, room, **options, **through, world=world_of(trained_on))
        self._suites: dict[str, Suite] = {name: open_suite(name, context) for name in names}

    def __call__(self, model: LVM, step: int) -> dict[str, Any]:
        prompter = Prompter(model, self._vqgan)
        return {"live": {name: figures(prompter, suite) for name, suite in self._suites.items()}}


def figures(prompter: Prompter, suite: Suite) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for start in range(0, len(suite), CASES_AT_ONCE):
        cases: list[Case] = []
        for i in range(start, min(start + CASES_AT_ONCE, len(suite))):
            try:
                cases.append(suite.case(i))
            except BrokenItem as error:  # counted here; `lvm evaluate` names it
                rows.append({"case": i, "file": error.file, "failed": error.reason})
        rows += [row_of(suite, asked) for asked in ask(prompter, cases)]
    return figures_of(summarise(suite, rows))
