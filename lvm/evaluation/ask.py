"""Cases asked: pictures to codes, prompts to likelihoods and answers; answers judged: one row of JSON a case.

All prompts of a list of cases go through the engine together; pictures that they share are encoded once, tokens that
prompts begin with are fed once. Answers are greedy: no seed, no luck.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.evaluation.cases import CEILING, Case, Shown, Suite
from lvm.evaluation.perplexity import Precision, autocast
from lvm.inference.engine import Request, answer_requests
from lvm.inference.generate import make_requests
from lvm.inference.prompter import Prompter, encode
from lvm.inference.sampling import GREEDY, answer_keys
from lvm.inference.scoring import score_answers

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64, UInt8

    from lvm.evaluation.cases import Picture
    from tokenizer import VQGAN


class HoldsTokenizer(TypeError):
    """What was to be sent to another process."""


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

    def __reduce__(self) -> Any:
        raise HoldsTokenizer("codes are made where the tokenizer is")


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


def ask(prompter: Prompter, cases: Sequence[Case], precision: Precision = "auto") -> list[Asked]:
    """`precision` as in `lvm.evaluation.perplexity`."""
    if not cases:
        return []
    codes = Codes(prompter.vq)
    codes([picture for case in cases for picture in pictures_of(case)])
    with autocast(prompter.model.head.weight.device, precision):
        nll = likelihoods(prompter, cases, codes)
        answers = answered(prompter, cases, codes, nll)
    held = decoded(prompter, {number: codes(case.truth) for number, case in enumerate(cases)})
    pictures = decoded(prompter, answers)
    found = []
    for number, case in enumerate(cases):
        of_case = {}
        for condition, shown in case.prompts.items():
            place = number, condition
            painted = answers.get(place), pictures.get(place, ())
            of_case[condition] = Answered(nll.get(place, ()), *painted, shown.joins)
        found.append(Asked(replace(case, prompts={}), of_case, held[number]))
    return found


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


def pictures_of(case: Case) -> "list[Picture]":
    shown = [picture for prompt in case.prompts.values() for picture in prompt.pictures]
    return [*shown, *case.truth, *case.choices]


def likelihoods(
    prompter: Prompter, cases: Sequence[Case], codes: Codes
) -> "dict[tuple[int, str], list[Float32[np.ndarray, 't']]]":
    """NLL of each token of the truth, or of each choice, after each prompt that is not answered."""
    sequences, lengths, places = [], [], []
    for number, case in enumerate(cases):
        for condition, shown in case.prompts.items():
            if shown.answered:
                continue
            before = with_bos(prompter, codes(shown.pictures).reshape(-1), shown)
            for after in wanted(case, codes):
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


def wanted(case: Case, codes: Codes) -> "list[Int64[np.ndarray, 't']]":
    """The answers whose likelihood is measured."""
    return [codes([choice])[0] for choice in case.choices] or [codes(case.truth).reshape(-1)]


def answered(
    prompter: Prompter,
    cases: Sequence[Case],
    codes: Codes,
    nll: "dict[tuple[int, str], list[Float32[np.ndarray, 't']]]",
) -> "dict[tuple[int, str], Int64[np.ndarray, 'n t']]":
    """Greedy answers; the likelihoods after the same prompts are put into `nll`: each prompt is fed once for both."""
    config, t = prompter.model.config, prompter.tokens_per_picture
    places: list[tuple[int, str]] = []
    requests: list[Request] = []
    for number, case in enumerate(cases):
        for condition, shown in case.prompts.items():
            if shown.answered:
                prompt = [codes(shown.pictures).reshape(-1)]
                (request,) = make_requests(config, prompt, answer_keys(prompt, 1, 0), len(case.truth) * t)
                given = () if shown.joins else tuple(wanted(case, codes))
                places.append((number, condition))
                requests.append(replace(request, given=given))
    found = {}
    scored: dict[int, np.ndarray] = {}
    for place, answer, _ in answer_requests(prompter.model, requests, GREEDY, nll=scored):
        found[places[place]] = answer[0].reshape(-1, t)
    nll.update({places[place]: list(rows) for place, rows in scored.items()})
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
