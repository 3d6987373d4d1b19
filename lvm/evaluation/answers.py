"""Greedy answers of the model, as codes and as pictures."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from lvm.evaluation.perplexity import Precision, autocast, task_tokens
from lvm.evaluation.prompts import ClipSet, PromptSet
from lvm.evaluation.tasks import Task

if TYPE_CHECKING:
    from jaxtyping import Int, Int64

    from lvm.model import LVM


def greedy(
    model: "LVM",
    prompts: "Int[np.ndarray, 'n t']",
    num_tokens: int,
    precision: Precision = "auto",
) -> "Int64[np.ndarray, 'n num_tokens']":
    """The most likely next code, `num_tokens` times, after each prompt of codes; `precision` as in `answer_nll`."""
    from lvm.inference import generate

    device = next(model.parameters()).device
    with autocast(device, precision):
        answers = generate(model, torch.from_numpy(prompts.astype(np.int64)), num_tokens, temperature=0.0).tokens
    return answers[:, 0].cpu().numpy()


def answer_task(
    model: "LVM", prompts: PromptSet, task: Task, num_pairs: int, precision: Precision = "auto"
) -> "Int64[np.ndarray, 'n t']":
    """Codes of the answer to each query after `num_pairs` pairs."""
    tokens = prompts.codes[task.output].shape[-1]
    return greedy(model, task_tokens(prompts, task, num_pairs)[:, :-tokens], tokens, precision)


def answer_clips(
    model: "LVM", clips: ClipSet, num_frames: int, precision: Precision = "auto"
) -> "Int64[np.ndarray, 'n t']":
    """Codes of the last frame of each clip after the `num_frames` before it."""
    n, f, t = clips.codes.shape
    shown = clips.codes[:, f - 1 - num_frames : f - 1].reshape(n, -1)  # n f t -> n (f t)
    return greedy(model, shown, t, precision)
