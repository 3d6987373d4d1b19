"""Cases asked: pictures to codes, prompts to likelihoods and answers, answers to pictures. rows.py judges them.

All prompts of a list of cases go through the engine together; pictures that they share are encoded once, tokens that
prompts begin with are fed once. Answers are greedy: no seed, no luck.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.evaluation.cases import Case, Shown
from lvm.evaluation.perplexity import Precision, autocast
from lvm.evaluation.rows import Answered, Asked, StaysHere, mean_of, unpack
from lvm.inference.engine import Request, answer_requests
from lvm.inference.generate import make_requests
from lvm.inference.prompter import Prompter, encode
from lvm.inference.sampling import GREEDY, answer_keys
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

    def __reduce__(self) -> Any:
        raise StaysHere("codes are made where the tokenizer is")


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


def repaint(prompter: Prompter, row: Mapping[str, Any], condition: str) -> "UInt8[np.ndarray, 'n y x 3'] | None":
    """The answer of a row as pictures, of an ensemble the mean; None where none was painted."""
    found = row["conditions"].get(condition, {})
    paint = lambda codes: prompter.decode(unpack(codes, prompter.tokens_per_picture))
    if "parts" in found:
        return np.stack(mean_of([list(paint(codes)) for codes in found["parts"]]))
    return paint(found["codes"]) if "codes" in found else None
