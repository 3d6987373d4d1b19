"""What the model said of a case, and the row of JSON that is made of it.

Judging needs no model, and this file no torch: helper processes import it.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.evaluation.cases import CEILING, Case, Suite

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64

    from lvm.evaluation.cases import Picture


class StaysHere(TypeError):
    """Raised where something is pickled that belongs to this process, as the tokenizer does."""


@dataclass(frozen=True)
class Answered:
    """What came of one prompt."""

    nll: "Sequence[Float32[np.ndarray, 't']]"  # of each token of the truth, or of each choice; empty where it `joins`
    codes: "Int64[np.ndarray, 'n t'] | None" = None  # of the answer that was painted
    pictures: "Sequence[Picture]" = ()
    joins: str = ""


@dataclass(frozen=True)
class Asked:
    """All that the model and the tokenizer have to say about a case; what is left is to judge it."""

    case: Case  # without its prompts
    answers: Mapping[str, Answered]  # by condition
    held: "Sequence[Picture]"  # the truth through the tokenizer


def row_of(suite: Suite, asked: Asked) -> dict[str, Any]:
    """The row of JSON. It needs neither model nor tokenizer, unless the suite's judge does."""
    case, conditions = asked.case, {}
    judged = lambda pictures: plain_scores(suite.judge(case, pictures))
    for condition, answer in asked.answers.items():
        if answer.joins:
            continue
        conditions[condition] = likelihood_row(answer.nll, case)
        if answer.codes is not None:
            conditions[condition] |= {"scores": judged(answer.pictures), "codes": pack(answer.codes)}
    for together in sorted({answer.joins for answer in asked.answers.values()} - {""}):
        parts = [answer for answer in asked.answers.values() if answer.joins == together]
        mean = mean_of([answer.pictures for answer in parts])
        codes = [pack(answer.codes) for answer in parts if answer.codes is not None]
        conditions[together] = {"scores": judged(mean), "parts": codes}
    others = {**case.baselines, CEILING: asked.held}
    row: dict[str, Any] = {
        "id": case.id,
        "task": case.task,
        "label": case.label,
        "conditions": conditions,
        "baselines": {name: judged(given) for name, given in others.items()},
    }
    if case.choices:
        row["right_choice"] = case.right_choice
    return row


def likelihood_row(nll: "Sequence[Float32[np.ndarray, 't']]", case: Case) -> dict[str, Any]:
    """nll: nats of the whole answer; first_token: of its first code; choices: of each choice."""
    own = nll[case.right_choice if case.choices else 0].astype(np.float64)
    row: dict[str, Any] = {"nll": float(own.sum()), "first_token": float(own[0]), "tokens": len(own)}
    if case.choices:
        row["choices"] = [float(values.astype(np.float64).sum()) for values in nll]
        row["choice"] = int(np.argmin(row["choices"]))
    return row


def plain_scores(scores: Mapping[str, float]) -> dict[str, float | None]:
    """NaN becomes null."""
    return {name: float(value) if np.isfinite(value) else None for name, value in scores.items()}


def pack(codes: "Int64[np.ndarray, 'n t']") -> str:
    """Base64 of little-endian uint16."""
    return base64.b64encode(codes.astype("<u2").tobytes()).decode()


def unpack(text: str, tokens_per_picture: int) -> "Int64[np.ndarray, 'n t']":
    return np.frombuffer(base64.b64decode(text), "<u2").astype(np.int64).reshape(-1, tokens_per_picture)


def mean_of(answers: "Sequence[Sequence[Picture]]") -> "list[Picture]":
    """The mean of several answers, picture by picture."""
    return [np.rint(np.mean(same, axis=0)).astype(np.uint8) for same in zip(*answers, strict=True)]
