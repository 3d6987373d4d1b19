"""Cases asked: pictures to codes, prompts to likelihoods and answers, answers to scores. One row of JSON a case.

All prompts of a list of cases go through the engine together; pictures that they share are encoded once, tokens that
prompts begin with are fed once. Answers are greedy: no seed, no luck.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.evaluation.cases import CEILING, Case, Shown, Suite
from lvm.evaluation.perplexity import Precision, autocast
from lvm.inference.prompter import Prompter, encode
from lvm.inference.rollout import Prompt
from lvm.inference.scoring import score_answers

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64, UInt8

    from lvm.evaluation.cases import Picture
    from tokenizer import VQGAN


class Codes:
    """The codes of pictures, each different picture encoded once."""

    def __init__(self, vq: "VQGAN"):
        self._vq = vq
        self._known: dict[bytes, np.ndarray] = {}

    def __call__(self, pictures: "Sequence[Picture]") -> "Int64[np.ndarray, 'n t']":
        keys = [hashlib.blake2b(picture.tobytes(), digest_size=16).digest() for picture in pictures]
        new = {key: picture for key, picture in zip(keys, pictures) if key not in self._known}
        if new:
            self._known.update(zip(new, encode(self._vq, np.stack(list(new.values()))).astype(np.uint16)))
        return np.stack([self._known[key] for key in keys]).astype(np.int64)


def ask(prompter: Prompter, suite: Suite, cases: Sequence[Case], precision: Precision = "auto") -> list[dict[str, Any]]:
    """A row for each case; `precision` as in `lvm.evaluation.perplexity`."""
    if not cases:
        return []
    codes = Codes(prompter.vq)
    codes([picture for case in cases for picture in pictures_of(case)])
    with autocast(prompter.model.head.weight.device, precision):
        nll = likelihoods(prompter, cases, codes)
        answers = answered(prompter, cases, codes)
    held = decoded(prompter, {number: codes(case.truth) for number, case in enumerate(cases)})
    pictures = decoded(prompter, answers)
    rows = []
    for number, case in enumerate(cases):
        painted = {name: pictures[number, name] for name, shown in case.prompts.items() if shown.answered}
        conditions: dict[str, dict[str, Any]] = {}
        for condition, shown in case.prompts.items():
            if shown.joins:
                continue
            conditions[condition] = likelihood_row(nll[number, condition], case)
            if shown.answered:
                conditions[condition]["scores"] = plain_scores(suite.judge(case, painted[condition]))
                conditions[condition]["codes"] = pack(answers[number, condition])
        for together in sorted({shown.joins for shown in case.prompts.values()} - {""}):
            parts = [condition for condition, shown in case.prompts.items() if shown.joins == together]
            conditions[together] = {
                "scores": plain_scores(suite.judge(case, mean_of([painted[part] for part in parts]))),
                "parts": [pack(answers[number, part]) for part in parts],
            }
        others = {**case.baselines, CEILING: held[number]}
        row: dict[str, Any] = {
            "id": case.id,
            "task": case.task,
            "label": case.label,
            "conditions": conditions,
            "baselines": {name: plain_scores(suite.judge(case, list(given))) for name, given in others.items()},
        }
        if case.choices:
            row["right_choice"] = case.right_choice
        rows.append(row)
    return rows


def pictures_of(case: Case) -> "list[Picture]":
    shown = [picture for prompt in case.prompts.values() for picture in prompt.pictures]
    return [*shown, *case.truth, *case.choices]


def likelihoods(
    prompter: Prompter, cases: Sequence[Case], codes: Codes
) -> "dict[tuple[int, str], list[Float32[np.ndarray, 't']]]":
    """NLL of each token of the truth after each prompt; of each choice, where there are several."""
    sequences, lengths, places = [], [], []
    for number, case in enumerate(cases):
        wanted = [[choice] for choice in case.choices] or [list(case.truth)]
        for condition, shown in case.prompts.items():
            if shown.joins:
                continue
            before = with_bos(prompter, codes(shown.pictures).reshape(-1), shown)
            for answer in wanted:
                after = codes(answer).reshape(-1)
                sequences.append(np.concatenate([before, after]))
                lengths.append(len(after))
                places.append((number, condition))
    found: dict[tuple[int, str], list[np.ndarray]] = {}
    for place, row in zip(places, score_answers(prompter.model, sequences, lengths)):
        found.setdefault(place, []).append(row)
    return found


def with_bos(prompter: Prompter, tokens: "Int64[np.ndarray, 't']", shown: Shown) -> "Int64[np.ndarray, 'u']":
    config = prompter.model.config
    bos = config.prompt_bos if shown.bos is None else shown.bos
    return np.concatenate([[config.bos], tokens]) if bos else tokens


def answered(
    prompter: Prompter, cases: Sequence[Case], codes: Codes
) -> "dict[tuple[int, str], Int64[np.ndarray, 'n t']]":
    places, prompts = [], []
    for number, case in enumerate(cases):
        for condition, shown in case.prompts.items():
            if shown.answered:
                places.append((number, condition))
                prompts.append(Prompt(codes(shown.pictures), len(case.truth), case.tuple_size))
    found = {}
    if prompts:
        for place, answer in prompter.continuations(prompts):
            found[places[place]] = answer.tokens[0]
    return found


def decoded(prompter: Prompter, codes: "Mapping[Any, Int64[np.ndarray, 'n t']]") -> "dict[Any, list[Picture]]":
    """All of them together: a tokenizer is slow picture by picture."""
    if not codes:
        return {}
    pictures = iter(prompter.decode(np.concatenate(list(codes.values()))))
    return {key: [next(pictures) for _ in rows] for key, rows in codes.items()}


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


def repaint(prompter: Prompter, row: Mapping[str, Any], condition: str) -> "UInt8[np.ndarray, 'n y x 3'] | None":
    """The answer of a row as pictures, of an ensemble the mean; None where none was painted."""
    found = row["conditions"].get(condition, {})
    paint = lambda codes: prompter.decode(unpack(codes, prompter.tokens_per_picture))
    if "parts" in found:
        return np.stack(mean_of([list(paint(codes)) for codes in found["parts"]]))
    return paint(found["codes"]) if "codes" in found else None
