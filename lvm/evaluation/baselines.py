"""What an answer must be compared with: copies, the tokenizer's ceiling, and the other channels of the query."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.evaluation.measures import Score
from lvm.evaluation.prompts import PromptSet
from lvm.evaluation.tasks import Task

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, UInt8


def scores(
    score: Score, prompts: PromptSet, task: Task, answers: "UInt8[np.ndarray, 'n y x 3']"
) -> "Float[np.ndarray, 'n']":
    """The score of each answer against the truth in pixels, not against its tokenised form."""
    truths, queries = prompts.pixels[task.output], prompts.pixels[task.input]
    found = [
        score.of(answer, truth[-1], query[-1], list(truth[:-1]))
        for answer, truth, query in zip(answers, truths, queries)
    ]
    return np.array(found, dtype=np.float64)


def copies(prompts: PromptSet, task: Task) -> "dict[str, UInt8[np.ndarray, 'n y x 3']]":
    """Answers that need no model: the query itself, and the answer of the last pair, in pixels as they were given."""
    return {
        "copy_query": prompts.pixels[task.input][:, -1],
        "copy_last_answer": prompts.pixels[task.output][:, -2],
    }


def right_task(
    answers: "UInt8[np.ndarray, 'n y x 3']",
    tokenised: "Mapping[str, UInt8[np.ndarray, 'n y x 3']]",
    task: Task,
) -> "Bool[np.ndarray, 'n']":
    """Whether each answer is nearest in L2 to the asked channel among all tokenised channels of its query, the query's
    own channel left out. A channel equal to the asked one does not count against it."""
    given = answers.astype(np.float64)
    far: dict[str, Any] = {
        channel: ((given - pictures) ** 2).mean(axis=(1, 2, 3))
        for channel, pictures in tokenised.items()
        if channel != task.input
    }
    return far[task.output] <= np.min(list(far.values()), axis=0)


def tokenised_queries(prompts: PromptSet, decode: Callable[[Any], Any]) -> "dict[str, UInt8[np.ndarray, 'n y x 3']]":
    """Every channel of the last item of each sentence, through the tokenizer and back."""
    return {c: decode(prompts.codes[c][:, -1]) for c in prompts.codes}
