"""Teacher-forced perplexity of answers: by number of pairs, after pairs of another task, and of next frames.

NLL in nats over the full vocabulary, one forward pass a prompt, no sampling; perplexity = exp(mean NLL over all answer
tokens of all targets). LVM (arXiv 2312.00785) averages perplexities of examples instead: see `per_answer_perplexity`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from lvm.evaluation.prompts import ClipSet, PromptSet
from lvm.evaluation.tasks import Task, tasks_of
from lvm.inference.scoring import TOKENS_AT_ONCE, score_answers
from lvm.runtime.hashing import hash64, seed_from
from lvm.runtime.machine import bf16_is_fast

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Int, Int64

    from lvm.model import LVM

PAIRS = (0, 1, 3, 5)  # shown before the query
FRAMES = (1, 3, 7, 11)  # shown before the target

Precision = Literal["auto", "exact"]


def perplexity(nll: "Float[np.ndarray, '*n']") -> float:
    """exp of the mean NLL."""
    return float(np.exp(np.mean(nll, dtype=np.float64)))


def per_answer_perplexity(nll: "Float[np.ndarray, 'n t']") -> float:
    """Mean over answers of exp(mean NLL of its tokens), as the published scripts average."""
    return float(np.exp(nll.mean(1, dtype=np.float64)).mean())


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The blocks in bfloat16 where the machine multiplies it in hardware, unless `precision` is "exact"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "auto" and bf16_is_fast(device))


def answer_nll(
    model: "LVM",
    tokens: "Int[np.ndarray, 'n t']",
    answer_tokens: int,
    precision: Precision = "auto",
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> "Float32[np.ndarray, 'n answer_tokens']":
    """NLL of the last `answer_tokens` of each sequence of codes; BOS is put before where the model's prompts have it.

    `precision` "exact": the type of the weights throughout; "auto": blocks in bfloat16 where the machine multiplies it
    in hardware, twice as fast. Logits exist for answer tokens only, in float32. Raises `UserError` where a sequence is
    longer than the model's context.
    """
    if model.config.prompt_bos:
        start = np.full((len(tokens), 1), model.config.bos, dtype=np.int64)
        tokens = np.concatenate([start, tokens.astype(np.int64)], axis=1)
    with autocast(model.head.weight.device, precision):
        return np.stack(score_answers(model, list(tokens), [answer_tokens] * len(tokens), tokens_at_once))


def pair_tokens(prompts: PromptSet, task: Task, places: slice) -> "Int64[np.ndarray, 'n t']":
    """Codes of input, answer, input, answer, ... of the given places of each sentence."""
    shown = np.stack([prompts.codes[task.input][:, places], prompts.codes[task.output][:, places]], axis=2)
    return shown.reshape(len(prompts), -1).astype(np.int64)  # n p 2 t -> n (p 2 t)


def task_tokens(
    prompts: PromptSet, task: Task, num_pairs: int, shown_tasks: Sequence[Task] | None = None
) -> "Int64[np.ndarray, 'n t']":
    """`num_pairs` pairs, the query and its answer: the pairs nearest to the query, so that fewer pairs are a suffix.

    `shown_tasks` names, for each target, the task its pairs are of (default: `task` itself).
    """
    last = prompts.codes[task.input].shape[1] - 1
    places = slice(last - num_pairs, last)
    if shown_tasks is None:
        pairs = pair_tokens(prompts, task, places)
    else:
        by_name = {other.name: pair_tokens(prompts, other, places) for other in set(shown_tasks)}
        pairs = np.stack([by_name[other.name][row] for row, other in enumerate(shown_tasks)])
    return np.concatenate([pairs, pair_tokens(prompts, task, slice(last, last + 1))], axis=1)


def wrong_tasks(task: Task, tasks: Sequence[Task], num_targets: int, seed: int) -> list[Task]:
    """For each target another task, the same whatever the order or number of targets asked for."""
    others = sorted((other for other in tasks if other != task), key=lambda other: other.name)
    keys = hash64(seed, seed_from(task.name), np.arange(num_targets))
    return [others[int(key % np.uint64(len(others)))] for key in keys]


def task_nll(
    model: "LVM",
    prompts: PromptSet,
    task: Task,
    seed: int = 0,
    pairs: Sequence[int] = PAIRS,
    precision: Precision = "auto",
) -> "dict[str, Float[np.ndarray, 'n t']]":
    """NLL of each answer token by number of pairs ("0", "1", ...), and after the most pairs of another task ("wrong").

    Wrong pairs are of any other task that the channels of `prompts` allow; where there is none, "wrong" is left out.
    """
    tokens = prompts.codes[task.output].shape[-1]
    nll = {str(k): answer_nll(model, task_tokens(prompts, task, k), tokens, precision) for k in pairs}
    among = tasks_of(prompts.codes)
    if any(other != task for other in among):
        wrong = wrong_tasks(task, among, len(prompts), seed)
        nll["wrong"] = answer_nll(model, task_tokens(prompts, task, max(pairs), wrong), tokens, precision)
    return nll


def frame_nll(
    model: "LVM", clips: ClipSet, frames: Sequence[int] = FRAMES, precision: Precision = "auto"
) -> "dict[str, Any]":
    """NLL of each token of the last frame after 1, 3, ... frames before it: the same targets throughout."""
    n, f, t = clips.codes.shape
    return {
        str(k): answer_nll(model, clips.codes[:, f - 1 - k :].reshape(n, -1), t, precision)  # n f t -> n (f t)
        for k in frames
        if k < f
    }
