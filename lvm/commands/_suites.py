"""Suites of `lvm evaluate` on the model of a run: which data it may be asked about, and asked while it trains."""

import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lvm.evaluation.annotated import HeldOut
from lvm.evaluation.ask import Codes, ask, row_of
from lvm.evaluation.cases import Case, Suite
from lvm.evaluation.suites.base import Context
from lvm.evaluation.suites.opening import open_suite
from lvm.evaluation.summary import summarise, task_figures
from lvm.inference.prompter import Prompter, decode
from lvm.model import LVM
from lvm.sources.base import BrokenItem
from tokenizer import VQGAN

HELD_OUT = 150  # per mille of the groups of files, where nothing says how a model was trained
CASES_AT_ONCE = 32


def kept_out(config: Mapping[str, Any], per_mille: int | None = None, groups: Sequence[str] = ()) -> HeldOut:
    """What the run of this config ({}: unknown) never trained on; what is given counts instead."""
    data = config.get("data", {})
    own = [group for source in data.get("sources", {}).values() for group in source.get("exclude_groups") or ()]
    share = data.get("held_out_per_mille", HELD_OUT) if per_mille is None else per_mille
    return HeldOut(share, tuple(groups or own))


def world_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The world a run was trained on."""
    return {"kind": "world", **config["world"]} if config.get("world") else None


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
        options: dict[str, Any] = {"num_cases": targets, "seed": config["seed"], "kept_out": kept_out(config)}
        through: dict[str, Any] = {"encode": Codes(vqgan), "decode": partial(decode, vqgan)}
        context = Context(data, vqgan.config.resolution, room, **options, **through, world=world_of(config))
        self._suites: dict[str, Suite] = {name: open_suite(name, context) for name in names}

    def __call__(self, model: LVM, step: int) -> dict[str, Any]:
        prompter = Prompter(model, self._vqgan)
        return {"live": {name: figures(prompter, suite) for name, suite in self._suites.items()}}


def figures(prompter: Prompter, suite: Suite) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for start in range(0, len(suite), CASES_AT_ONCE):
        cases: list[Case] = []
        for i in range(start, min(start + CASES_AT_ONCE, len(suite))):
            with contextlib.suppress(BrokenItem):  # `lvm evaluate` names it
                cases.append(suite.case(i))
        rows += [row_of(suite, asked) for asked in ask(prompter, cases)]
    return task_figures(summarise(suite, rows))
