"""failures: how often an answer is the wrong kind of picture, whatever its score; for every annotation of the data.

The paper's figure 12 shows such cases (another task's answer, the query again) and counts none. Here each is a rule on
pictures or codes, so that it has a rate, an interval and the same controls as any score:

    other_task        nearer to another channel of the query than to the one asked for, all through the tokenizer
    one_colour        99% of the pixels within 16 gray levels of the median, where the truth is not so
    copies_query      `overlap` of its codes are the query's, place by place, where the truth's are not
    copies_pair       the same of a pair's answer
    copies_training   the same of a picture of the training store (`train=STORE`), in the asked channel
    any               one of these
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.evaluation.annotated import Remembered
from lvm.evaluation.cases import Case, Measure
from lvm.evaluation.job import LARGEST_BLOCK
from lvm.evaluation.pairing import PairCases, missing_controls
from lvm.evaluation.parts import Joined
from lvm.evaluation.suites.base import Context, PairOptions, describe_pairs
from lvm.evaluation.suites.perplexity import asked
from lvm.inference.choosing import one_colour
from lvm.runtime import UserError
from lvm.store import TokenStore

if TYPE_CHECKING:
    from jaxtyping import Int64, UInt16

    from lvm.evaluation.cases import Picture
    from lvm.evaluation.tasks import Task

NAMES = ("other_task", "one_colour", "copies_query", "copies_pair", "copies_training")
PICTURES_AT_ONCE = 2**16  # of the training store, compared together


@dataclass(frozen=True)
class Options(PairOptions):
    only: tuple[str, ...] = ()  # names of some tasks; empty: all that the data allow
    overlap: float = 0.9  # share of equal codes, place by place, from which on a picture is a copy
    train: str | None = None  # token store of the training, for copies_training


class FailuresSuite:
    name, title = "failures", "What kind of wrong an answer is"
    published = ()

    def __init__(self, context: Context, options: Options):
        if context.encode is None or context.decode is None:
            raise UserError("failures are found in codes; give the tokenizer")
        if not 0 < options.overlap <= 1:
            raise UserError(f"overlap {options.overlap} must be above 0 and at most 1")
        self._encode, self._overlap = context.encode, options.overlap
        self._decode: Any = context.decode
        config = options.pairing(context)
        number = context.num_cases or 100
        self._cases = Joined(
            PairCases(data, tasks, config, number, context.seed, same_label, context.encode)
            for data, tasks, same_label in asked(context, options.only)
        )
        parts = self._cases.parts
        self.broken = self._cases.broken
        self._held = Remembered(4 * LARGEST_BLOCK)  # the channels of queries through the tokenizer
        self._tasks: dict[str, Task] = {task.name: task for part in parts for task in part.tasks}
        self._training = None if options.train is None else TrainingCodes(options.train)
        known = NAMES if self._training else NAMES[:-1]
        self.measures = [Measure("any", False, "share", "one of the failures below"), *map(self._measure, known)]
        self.settings = {
            **describe_pairs(parts[0].data, None, config, context),
            **missing_controls(parts),
            "data": [part.data.name for part in parts],
            "data_fingerprint": [part.data.fingerprint() for part in parts],
            "overlap": options.overlap,
            "codes of an answer": "of its picture, encoded again",
            "train": None if self._training is None else self._training.description,
        }

    def _measure(self, name: str) -> Measure:
        copy = f"{self._overlap:.0%} of its codes, place by place, are those of "
        about = {
            "other_task": "nearest in L2 to another channel of the query, all channels through the tokenizer",
            "one_colour": "99% of its pixels within 16 gray levels of its median colour; the truth is not so",
            "copies_query": copy + "the query; the truth's are not",
            "copies_pair": copy + "a pair's answer; the truth's are not",
            "copies_training": copy + "a picture of the training store; the truth's are not",
        }
        return Measure(name, False, "share", about[name])

    def __len__(self) -> int:
        return len(self._cases)

    def case(self, i: int) -> Case:
        return self._cases.case(i)

    def judge(self, case: Case, pictures: "Sequence[Picture]") -> Mapping[str, float]:
        task, truth, answer = self._tasks[case.task], case.truth[0], pictures[0]
        query: Mapping[str, Any] = case.facts["query"]
        of_answer, of_truth, of_query, *of_pairs = self._encode(
            [answer, truth, query[task.input], *(shown for _, shown in case.facts["shown"])]
        )
        copies = lambda codes: self._equal(of_answer, codes) and not self._equal(of_truth, codes)
        found = {
            "other_task": self._other_task(case, answer, query),
            "one_colour": bool(one_colour(answer[None])[0]) and not bool(one_colour(truth[None])[0]),
            "copies_query": copies(of_query),
            "copies_pair": any(map(copies, of_pairs)),
        }
        if self._training is not None:
            share = self._training.most_equal
            found["copies_training"] = share(of_answer, task.output) >= self._overlap > share(of_truth, task.output)
        return {"any": float(any(found.values())), **{name: float(value) for name, value in found.items()}}

    def _equal(self, a: "Int64[np.ndarray, 't']", b: "Int64[np.ndarray, 't']") -> bool:
        return bool((a == b).mean() >= self._overlap)

    def _other_task(self, case: Case, answer: "Picture", query: Mapping[str, Any]) -> bool:
        """A channel equal to the asked one does not count against it."""
        task = self._tasks[case.task]
        held = self._held((case.task, case.id), lambda: self._through_tokenizer(query))
        far = {name: float(((held[name] - answer) ** 2).mean()) for name in query if name != task.input}
        return bool(far[task.output] > min(far.values()))

    def _through_tokenizer(self, query: Mapping[str, Any]) -> Any:
        held = self._decode(self._encode(list(query.values()))).astype(np.float64)
        return dict(zip(query, held))

    def over_all(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        return {}


class TrainingCodes:
    """The codes of a token store, channel by channel. Raises `UserError` where there is none."""

    def __init__(self, path: str):
        self._store = TokenStore(path)
        self._codes: dict[str, np.ndarray | None] = {}
        self.description = {"store": self._store.info.get("name", path), "items": len(self._store)}

    def most_equal(self, codes: "Int64[np.ndarray, 't']", channel: str) -> float:
        """The largest share of places in which a picture of the channel has the same code; 0 where it has none."""
        if channel not in self._codes:
            self._codes[channel] = self._of(channel)
        known = self._codes[channel]
        if known is None:
            return 0.0
        pieces = (known[start : start + PICTURES_AT_ONCE] for start in range(0, len(known), PICTURES_AT_ONCE))
        return float(max((piece == codes).mean(1).max() for piece in pieces))

    def _of(self, channel: str) -> "UInt16[np.ndarray, 'n t'] | None":
        store = self._store
        if channel not in store.channels:
            return None
        own = store.columns().channel_mask >> store.bit(channel) & 1 == 1
        items = np.flatnonzero(own & store.admitted)
        if not len(items):
            return None
        frames = store.num_pictures_of(items)
        every, first = np.repeat(items, frames), np.repeat(np.cumsum(frames) - frames, frames)
        found: np.ndarray = store.pictures(every, channel, np.arange(len(every)) - first)
        return found


def make(context: Context, options: Options) -> FailuresSuite:
    return FailuresSuite(context, options)
