"""What a suite asks and how its answers are judged: the one thing that all suites share.

    suite.case(i)   ->  Case: pictures to show under each condition, and the pictures that should follow
    ask.py          ->  answers and likelihoods of the model, one row of JSON a case
    suite.judge     ->  scores of pictures, the same for answers, baselines and the tokenizer's ceiling

Conditions are other prompts before the same target. `RIGHT` is the prompt as it should be; the three controls show
what it is worth: pairs of another task, pairs whose answers changed places, and nothing but the query.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import UInt8

    Picture = UInt8[np.ndarray, "y x 3"]

RIGHT, WRONG_TASK, SHUFFLED, NONE = "right", "wrong_task", "shuffled", "none"
CONTROLS = (WRONG_TASK, SHUFFLED, NONE)
CEILING = "tokenizer_ceiling"  # the truth through the tokenizer and back
ENSEMBLE = "ensemble"  # the mean of several answers


@dataclass(frozen=True)
class Shown:
    """A prompt: its pictures in order, the query last."""

    pictures: "tuple[Picture, ...]"
    answered: bool = True  # the model paints an answer; without, only the truth's likelihood is measured
    bos: bool | None = None  # before a prompt that is not answered; None: as the model's prompts have it
    joins: str = ""  # the answer counts only as one of several that are averaged as this condition


@dataclass(frozen=True)
class Case:
    id: str  # of the query, unique in its task
    task: str  # scores are averaged over the cases of a task
    prompts: Mapping[str, Shown]  # by condition
    truth: "tuple[Picture, ...]"  # what follows
    tuple_size: int = 2  # pictures of a tuple: inputs and answers alternate
    label: str = ""  # class
    choices: "tuple[Picture, ...]" = ()  # in place of `truth`, one picture each: which of them is most likely
    right_choice: int = 0
    baselines: "Mapping[str, tuple[Picture, ...]]" = field(default_factory=dict)  # answers that need no model
    facts: Mapping[str, Any] = field(default_factory=dict)  # for the judge alone


@dataclass(frozen=True)
class Measure:
    name: str
    higher_is_better: bool
    unit: str = ""
    about: str = ""  # how it is computed, thresholds included


@dataclass(frozen=True)
class Published:
    """A row of a paper, to be read beside ours."""

    name: str  # of the model, as printed
    scores: Mapping[str, float]
    source: str  # table or figure
    caveat: str


class Suite(Protocol):
    """Case i is a function of (data, options, i) alone: shards and restarts ask the same."""

    name: str
    title: str
    measures: Sequence[Measure]  # the first one stands for the suite
    settings: Mapping[str, Any]  # every choice that decides the numbers: sizes, thresholds, seeds; plain JSON values
    published: Sequence[Published]
    broken: Sequence[str]  # "file: reason" of what could not be listed, so that no case is made of it

    def __len__(self) -> int:
        """How many cases."""

    def case(self, i: int) -> Case:
        """Raises `BrokenItem`."""

    def judge(self, case: Case, pictures: "Sequence[Picture]") -> Mapping[str, float]:
        """Scores by measure; NaN where one says nothing. A prefix of the measures may be left out."""

    def over_all(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """What is no mean over cases (an IoU of classes), of all rows of one task: keys of the task's report."""


@runtime_checkable
class BesidePublished(Protocol):
    """A suite whose published columns are neither tasks nor measures says what of ours is comparable."""

    def ours(self, tasks: Mapping[str, Any]) -> Mapping[str, float | None]:
        """By published column, of the report's `tasks`; None where nothing comparable was asked."""
