"""Choosing one of a prompt's candidates without the truth: a score for each by every rule of `RULES`; higher is better.

    scores = score_candidates(prompter, prompt, found, pictures)
    pictures[scores.best("gain_over_wrong")]

log_prob         mean log-probability of a code of the answer. It likes plain answers: a blank is easy to continue.
gain_over_none   that minus the same of this answer after the query alone (of a sequence: its last picture alone).
gain_over_wrong  that minus the same after wrong pairs: the answers of the prompt's own pairs, moved round by one.
agreement        nearness to the other candidates: the best is the medoid.

A gain is what the prompt adds: what makes an answer likely whatever is asked cancels (Li et al., 1510.03055).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange

from lvm.inference.decoded import Decoded
from lvm.inference.prompter import Prompter
from lvm.inference.rollout import Continuation, Prompt, move_window
from lvm.inference.scoring import score_answers
from lvm.runtime.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, Float64, Int64, UInt8

RULES: tuple[str, ...] = ("log_prob", "gain_over_none", "gain_over_wrong", "agreement")
NEAR = 16  # gray levels, in every channel, within which a pixel has a picture's median colour
ONE_COLOUR = 0.99  # share of such pixels from which on a picture is of one colour


@dataclass(frozen=True)
class Scores:
    """Of the c candidates of one prompt. A rule without meaning for the prompt is in `left_out`, with the reason."""

    by_rule: "dict[str, Float32[np.ndarray, 'c']]"
    one_colour: "Bool[np.ndarray, 'c']"  # a picture of the candidate is blank
    left_out: dict[str, str] = field(default_factory=dict)

    def best(self, rule: str) -> int:
        """The number of the candidate that `rule` puts first. Raises `UserError` where it has no score."""
        if rule not in self.by_rule:
            why = self.left_out.get(rule, "it was not asked for")
            raise UserError(f"cannot choose by {rule}: {why}; use one of {', '.join(self.by_rule) or 'none'}")
        return int(self.by_rule[rule].argmax())

    def record(self) -> dict[str, Any]:
        """Plain JSON. Candidates are exchangeable draws, so the first of them is a random choice."""
        return {
            "by_rule": {rule: values.tolist() for rule, values in self.by_rule.items()},
            "best": {rule: self.best(rule) for rule in self.by_rule},
            "random": 0,
            "one_colour": self.one_colour.tolist(),
            "left_out": self.left_out,
        }


def score_candidates(
    prompter: Prompter,
    prompt: Prompt,
    found: Continuation,
    pictures: "UInt8[np.ndarray, 'c n y x 3'] | Decoded",
    rules: Sequence[str] = RULES,
) -> Scores:
    """Scores of the candidates `found` after `prompt`; `pictures` are their codes decoded.

    Rules without meaning here are left out. Raises `UserError` for a name that is no rule.
    """
    num_candidates, num_pictures = found.tokens.shape[:2]
    if isinstance(pictures, np.ndarray) and pictures.shape[:2] != (num_candidates, num_pictures):
        raise UserError(
            f"pictures of shape {list(pictures.shape)} are not those of {num_candidates} candidates "
            f"of {num_pictures} pictures; decode found.tokens"
        )
    seen = seen_prompt(prompt, prompter.pictures_per_window)
    left_out = {rule: why for rule in rules if (why := no_meaning(rule, seen, num_candidates))}
    mean = found.log_probs.mean((1, 2))
    blank, far = np.zeros(num_candidates, bool), np.zeros(num_candidates)
    compare = "agreement" in rules and "agreement" not in left_out
    by_number = pictures if isinstance(pictures, Decoded) else pictures.swapaxes(0, 1)
    for candidates in by_number:  # once: to decode them again may take long
        blank |= one_colour(candidates)
        if compare:
            far += differences(candidates) / num_pictures

    def gain(over: Callable[[Prompt], Prompt]) -> "Float32[np.ndarray, 'c']":
        return np.asarray(mean - answer_log_probs(prompter, over(seen), found.tokens).mean((1, 2)))

    score: dict[str, Callable[[], Any]] = {
        "log_prob": lambda: mean,
        "gain_over_none": lambda: gain(without_pairs),
        "gain_over_wrong": lambda: gain(wrong_pairs),
        "agreement": lambda: -far,
    }
    by_rule = {rule: np.asarray(score[rule](), np.float32) for rule in rules if rule not in left_out}
    return Scores(by_rule, blank, left_out)


def check_rule(rule: str, prompt: Prompt, num_candidates: int, pictures_per_window: int) -> None:
    """Raise `UserError` where a choice by `rule` will not be possible: to know before anything is generated."""
    why = no_meaning(rule, seen_prompt(prompt, pictures_per_window), num_candidates)
    if why:
        raise UserError(f"cannot choose by {rule}: {why}")


def no_meaning(rule: str, prompt: Prompt, num_candidates: int) -> str | None:
    """Why a rule says nothing about the candidates of a prompt that fits the window; None where it does."""
    if rule not in RULES:
        raise UserError(f"there is no rule {rule!r} to choose by; use one of {', '.join(RULES)}")
    num_tuples = (len(prompt.codes) - query_size(prompt)) // prompt.tuple_size
    if rule == "gain_over_none" and num_tuples == 0:
        return "nothing stands before the query"
    if rule == "gain_over_wrong" and prompt.tuple_size == 1:
        return "a sequence has no pairs"
    if rule == "gain_over_wrong" and num_tuples < 2:
        return f"{num_tuples} pairs before the query cannot be mixed up; give at least 2"
    if rule == "gain_over_wrong" and np.array_equal(wrong_pairs(prompt).codes, prompt.codes):
        return "all pairs have the same answer"
    if rule == "agreement" and num_candidates < 3:
        return f"{num_candidates} candidates are all equally near to each other; draw at least 3"
    return None


# Other prompts for the same answer.


def seen_prompt(prompt: Prompt, pictures_per_window: int) -> Prompt:
    """The pictures that the first answer followed: the others had left the window."""
    leave = move_window(len(prompt.codes), pictures_per_window - 1, prompt.tuple_size)
    return replace(prompt, codes=prompt.codes[leave:])


def query_size(prompt: Prompt) -> int:
    """How many pictures stand at the end of a prompt after its whole pairs; the last pair or frame if none."""
    return len(prompt.codes) % prompt.tuple_size or prompt.tuple_size


def without_pairs(prompt: Prompt) -> Prompt:
    return replace(prompt, codes=prompt.codes[-query_size(prompt) :])


def wrong_pairs(prompt: Prompt) -> Prompt:
    """Each query before the answer of the next pair; the last before that of the first. The last query is untouched."""
    codes = prompt.codes.copy()
    answers = slice(prompt.tuple_size - 1, len(codes) - query_size(prompt), prompt.tuple_size)
    codes[answers] = np.roll(codes[answers], -1, axis=0)
    return replace(prompt, codes=codes)


# The rules.


def answer_log_probs(
    prompter: Prompter, prompt: Prompt, answers: "Int64[np.ndarray, 'c n t']"
) -> "Float32[np.ndarray, 'c n t']":
    """Log-probability of each code of `answers` after `prompt`: window, positions and BOS as when they are drawn."""
    model, t = prompter.model, prompter.tokens_per_picture
    bos = [model.config.bos] if model.config.prompt_bos else []
    found = []
    for shown, wanted in windows(prompt, answers, prompter.pictures_per_window):
        rows = rearrange(np.concatenate([shown, wanted], axis=1), "c n t -> c (n t)")
        rows = np.pad(rows, ((0, 0), (len(bos), 0)), constant_values=bos[0] if bos else 0)
        nll = score_answers(model, list(rows), [wanted[0].size] * len(rows))
        found.append(rearrange(-np.stack(nll), "c (n t) -> c n t", t=t))
    return np.concatenate(found, axis=1)


def windows(
    prompt: Prompt, answers: "Int64[np.ndarray, 'c n t']", pictures_per_window: int
) -> "Iterator[tuple[Int64[np.ndarray, 'c shown t'], Int64[np.ndarray, 'c now t']]]":
    """(pictures before, pictures answered) of each window that the answers were drawn in."""
    sentences = np.concatenate([np.broadcast_to(prompt.codes, (len(answers), *prompt.codes.shape)), answers], axis=1)
    end = len(prompt.codes)
    while end < sentences.shape[1]:
        start = move_window(end, pictures_per_window - 1, prompt.tuple_size)
        until = min(sentences.shape[1], start + pictures_per_window)
        yield sentences[:, start:end], sentences[:, end:until]
        end = until


def differences(candidates: "UInt8[np.ndarray, 'c y x 3']") -> "Float64[np.ndarray, 'c']":
    """The mean absolute difference to the other candidates, in gray levels."""
    flat = candidates.reshape(len(candidates), -1).astype(np.float32)
    return np.array([np.abs(flat - row).mean(1).sum() for row in flat]) / (len(flat) - 1)


def one_colour(pictures: "UInt8[np.ndarray, '*n y x 3']") -> "Bool[np.ndarray, '*n']":
    """Whether a picture is blank: `ONE_COLOUR` of its pixels within `NEAR` of its median colour."""
    blank = [
        (np.abs(pixels - np.median(pixels, axis=0)) <= NEAR).all(-1).mean() >= ONE_COLOUR
        for picture in pictures.reshape(-1, *pictures.shape[-3:])
        for pixels in [picture.reshape(-1, 3).astype(np.float32)]
    ]
    return np.array(blank, dtype=bool).reshape(pictures.shape[:-3])
