"""From annotated pictures to cases: which query, which pairs before it, and what stands there under other conditions.

    right        `pairs` pairs of the task and the query
    wrong_task   as many pairs of another task of the same items (of another class, where they have no other task), and
                 the query
    shuffled     the same pairs, each input before the answer of the next
    none         the query alone
    ensemble     the mean of the answers after `ensemble` prompts of other pairs, where more than one is asked for

Beside them answers that need no model: the query, the last pair's answer, the mean of the pairs' answers, and the
answer of the pair whose input is nearest to the query.
"""

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lvm.evaluation.annotated import Annotated
from lvm.evaluation.cases import ENSEMBLE, NONE, RIGHT, SHUFFLED, WRONG_TASK, Case, Shown
from lvm.evaluation.prompts import pick
from lvm.evaluation.tasks import Task, tasks_of
from lvm.runtime import UserError
from lvm.runtime.hashing import hash64, seed_from

if TYPE_CHECKING:
    from jaxtyping import Int64

    from lvm.evaluation.cases import Picture

THUMBNAIL = 16  # pixels a side, for the nearest pair
MOST_NAMED = 8  # classes, in one line

Choose = Literal["random", "nearest"]
Order = Literal["random", "nearest_last", "nearest_first"]
Encode = Callable[["Sequence[Picture]"], "Int64[np.ndarray, 'n t']"]


@dataclass(frozen=True)
class PairingConfig:
    pairs: int = 5  # before a query
    pool: int = 64  # items that pairs are chosen from, for each query
    choose: Choose = "random"  # nearest: whose inputs share most codes with the query (Jaccard)
    order: Order = "random"  # of the chosen pairs
    ensemble: int = 1  # prompts of other pairs, whose answers are averaged

    def __post_init__(self) -> None:
        for name in ("pairs", "pool", "ensemble"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)} must be at least 1")
        if self.pool < self.pairs * self.ensemble:
            raise UserError(
                f"a pool of {self.pool} items does not hold {self.ensemble} x {self.pairs} pairs; raise pool"
            )

    @property
    def needs_codes(self) -> bool:
        return self.choose != "random" or self.order != "random"


def jaccard(a: "Int64[np.ndarray, 't']", b: "Int64[np.ndarray, 't']") -> float:
    """Codes that both pictures have, of those that either has (Chain-of-Focus prompting, ICLR 2025)."""
    one, other = set(a.tolist()), set(b.tolist())
    return len(one & other) / len(one | other)


class Episodes:
    """Queries of one task and the items that may stand before each.

    Queries are the askable items that have the task's channels, in keyed order, gone through again with other pairs
    where there are fewer than are wanted. Pairs are of the query's class with `same_label`, never of its group, and of
    askable items too where there are enough; or of those that `may_show` allows. Raises `UserError` where no query has
    pairs enough.
    """

    def __init__(
        self,
        data: Annotated,
        task: Task,
        config: PairingConfig,
        seed: int,
        same_label: bool = False,
        may_show: Callable[[int], bool] | None = None,
    ):
        self.data, self.task, self.config = data, task, config
        self._keys = (seed, seed_from(task.name))
        holders = [i for i in range(len(data)) if data.has(i, task.input) and data.has(i, task.output)]
        asked = [i for i in holders if data.may_ask(i)]
        self._same_label = same_label
        shown = holders if may_show is None else [i for i in holders if may_show(i)]
        self._holders = group_by(shown, self._key)
        self._askable = group_by(asked if may_show is None else shown, self._key)
        order = pick(len(asked), np.array(asked, np.int64), (*self._keys, 0)).tolist()
        needed = config.pairs * config.ensemble
        others = self._count_others()
        self.queries = [i for i in order if others(i) >= needed]
        if not self.queries:
            alike = " of one class" if same_label else ""
            raise UserError(
                f"{data.name} has {len(asked)} pictures to ask about {task.name} and {len(shown)} to show "
                f"({task.input}, {task.output}): no query has {needed} others{alike} to show before it; "
                "give more pictures, fewer pairs, or hold out more"
            )

    def _key(self, i: int) -> str:
        """Pairs are of the query's."""
        return self.data.labels[i] if self._same_label else ""

    def _count_others(self) -> Callable[[int], int]:
        """How many items may stand before a query at most."""
        groups, key = self.data.groups, self._key
        of_group = Counter((key(i), groups[i]) for items in self._holders.values() for i in items)
        return lambda i: len(self._holders.get(key(i), ())) - of_group[key(i), groups[i]]

    def candidates(self, query: int) -> list[int]:
        """Items that may stand before a query."""
        group, key = self.data.groups[query], self._key(query)
        alike = [i for i in self._askable.get(key, ()) if self.data.groups[i] != group]
        if len(alike) < self.config.pairs * self.config.ensemble:
            alike = [i for i in self._holders.get(key, ()) if self.data.groups[i] != group]
        return alike

    def query(self, number: int) -> int:
        return self.queries[number % len(self.queries)]

    def pool(self, number: int) -> list[int]:
        """In keyed order."""
        among = np.array(self.candidates(self.query(number)), np.int64)
        return pick(self.config.pool, among, (*self._keys, 1, number)).tolist()

    def of_other_label(self, number: int) -> list[int]:
        """As many items of another class as stand before a query; none where pairs are of any class."""
        own, pairs = self._key(self.query(number)), self.config.pairs
        labels = sorted(label for label, items in self._holders.items() if label != own and len(items) >= pairs)
        if not self._same_label or not labels:
            return []
        label = labels[int(hash64(*self._keys, 5, number) % np.uint64(len(labels)))]
        return pick(pairs, np.array(self._holders[label], np.int64), (*self._keys, 6, number)).tolist()

    def lacks_wrong_pairs(self) -> str:
        """Why no query has pairs of another task, nor of another class; "" where one may."""
        task, pairs = self.task, self.config.pairs
        items = [i for own in self._holders.values() for i in own]
        for other in tasks_of(self.data.channels):
            held = sum(self.data.has(i, other.input) and self.data.has(i, other.output) for i in items)
            if (other.input, other.output) != (task.input, task.output) and held >= pairs:
                return ""
        if not self._same_label:
            return "none: the pictures have channels of no other task"
        labels = [label for label, own in self._holders.items() if len(own) >= pairs]
        if any(label != self._key(query) for label in labels for query in self.queries):
            return ""
        return "none: the pictures have channels of no other task, and pairs enough of no other class"

    def view(self, number: int, items: Sequence[int]) -> int:
        """One that all items of the sentence can be drawn under, above 0 where there is one."""
        common = set.intersection(*(set(self.data.views(i)) for i in items)) or {0}
        above = sorted(common - {0}) or [0]
        return above[int(hash64(*self._keys, 2, number) % np.uint64(len(above)))]


def check_classes(
    suite: str,
    data: Annotated,
    task: Task,
    config: PairingConfig,
    may_show: Callable[[int], bool] | None = None,
) -> Mapping[str, str]:
    """Where pairs are of the query's class: classes of which nothing is asked, and why; a line on stderr names them.
    Raises `UserError` where no class is left."""
    left_out = classes_left_out(data, task, config, may_show)
    named = ", ".join(f"{label} ({why})" for label, why in list(left_out.items())[:MOST_NAMED])
    named += f" and {len(left_out) - MOST_NAMED} more" if len(left_out) > MOST_NAMED else ""
    number = len({label for label in data.labels if label})
    if left_out and len(left_out) == number:
        raise UserError(
            f"{data.name} has no class to ask about ({task.input}, {task.output}): {named}; "
            "give more pictures, fewer pairs, or hold out more"
        )
    if left_out:
        print(f"{suite}: {len(left_out)} of {number} classes are not asked about: {named}", file=sys.stderr)
    return left_out


def classes_left_out(
    data: Annotated, task: Task, config: PairingConfig, may_show: Callable[[int], bool] | None = None
) -> dict[str, str]:
    needed = config.pairs * config.ensemble
    found = {}
    for label, items in sorted(group_by(range(len(data)), lambda i: data.labels[i]).items()):
        holders = [i for i in items if data.has(i, task.input) and data.has(i, task.output)]
        asked = [i for i in holders if data.may_ask(i)]
        shown = [i for i in holders if may_show is None or may_show(i)]
        of_group = Counter(data.groups[i] for i in shown)
        most = max((len(shown) - of_group[data.groups[i]] for i in asked), default=0)
        if label and most < needed:
            few = f"{most} other{'s' * (most != 1)} to show, {needed} wanted"
            found[label] = few if asked else "none may be asked" if holders else f"no {task.output}"
    return found


def missing_controls(parts: "Sequence[PairCases]") -> dict[str, dict[str, str]]:
    """Settings that say, by task, why a report has no control of wrong pairs; {} where it has."""
    lacking = {episodes.task.name: episodes.lacks_wrong_pairs() for part in parts for episodes in part.episodes}
    lacking = {name: why for name, why in lacking.items() if why}
    return {WRONG_TASK: lacking} if lacking else {}


def group_by(items: Sequence[int], key: Callable[[int], str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


@dataclass(frozen=True)
class Pairs:
    """What is known of one case before its prompts are made."""

    query: "Mapping[str, Picture]"
    shown: "list[Mapping[str, Picture]]"  # the pairs of each prompt, one after the other, in the order shown
    pairs: int
    view: int  # that all are drawn under

    def of(self, task: Task, prompt: int = 0) -> "list[tuple[Picture, Picture]]":
        own = self.shown[prompt * self.pairs : (prompt + 1) * self.pairs]
        return [(channels[task.input], channels[task.output]) for channels in own]


def choose(episodes: Episodes, number: int, encode: Encode | None, wrong: Task | None = None) -> Pairs:
    """The pictures of case `number`: pairs by `choose` and `order`; of an ensemble all prompts' pairs. Of the pairs the
    channels of the task and of the `wrong` one."""
    config, data, task = episodes.config, episodes.data, episodes.task
    query, pool = episodes.query(number), episodes.pool(number)
    needed = config.pairs * config.ensemble
    if config.choose == "random":
        pool = pool[:needed]
    view = episodes.view(number, [query, *pool])
    asked = data.read(query, view)
    if config.needs_codes and (len(pool) > needed or config.order != "random"):
        if encode is None:
            raise UserError("pairs are chosen by their codes; give the tokenizer")
        codes = encode([asked[task.input], *(data.read(i, view, (task.input,))[task.input] for i in pool)])
        near = {i: jaccard(codes[0], row) for i, row in zip(pool, codes[1:])}
        if config.choose == "nearest":
            pool = sorted(pool, key=lambda i: -near[i])[:needed]
            if config.order == "random":
                pool = pick(needed, np.array(pool), (*episodes._keys, 3, number)).tolist()
        pool = pool[:needed]
        prompts = [pool[k :: config.ensemble] for k in range(config.ensemble)]
        if config.order != "random":
            sign = 1 if config.order == "nearest_last" else -1
            prompts = [sorted(own, key=lambda i: sign * near[i]) for own in prompts]
        pool = [i for own in prompts for i in own]
    shown = [channel for one in (task, wrong) if one for channel in (one.input, one.output)]
    return Pairs(asked, [data.read(i, view, shown) for i in pool], config.pairs, view)


def flat(pairs: "Sequence[tuple[Picture, Picture]]", query: "Picture") -> "tuple[Picture, ...]":
    return (*(picture for pair in pairs for picture in pair), query)


def shuffled(pairs: "Sequence[tuple[Picture, Picture]]") -> "list[tuple[Picture, Picture]]":
    """Each input before the answer of the next pair; a single pair's answer becomes its input."""
    if len(pairs) == 1:
        return [(pairs[0][0], pairs[0][0])]
    answers = [answer for _, answer in pairs]
    return [(given, answer) for (given, _), answer in zip(pairs, [*answers[1:], answers[0]])]


def prompts_of(
    found: Pairs, task: Task, wrong: "Sequence[tuple[Picture, Picture]]", config: PairingConfig
) -> dict[str, Shown]:
    query, right = found.query[task.input], found.of(task)
    prompts = {RIGHT: Shown(flat(right, query))}
    if wrong:
        prompts[WRONG_TASK] = Shown(flat(wrong, query))
    prompts[SHUFFLED] = Shown(flat(shuffled(right), query))
    prompts[NONE] = Shown((query,))
    for k in range(config.ensemble if config.ensemble > 1 else 0):
        prompts[f"{ENSEMBLE}-{k}"] = Shown(flat(found.of(task, k), query), joins=ENSEMBLE)
    return prompts


def baselines_of(found: Pairs, task: Task) -> "dict[str, tuple[Picture, ...]]":
    right, query = found.of(task), found.query[task.input]
    near = min(right, key=lambda pair: float(np.square(thumbnail(pair[0]) - thumbnail(query)).mean()))
    mean = np.mean([answer for _, answer in right], axis=0)
    return {
        "copy_query": (query,),
        "copy_last_answer": (right[-1][1],),
        "mean_answer": (np.rint(mean).astype(np.uint8),),
        "nearest_pair": (near[1],),
    }


def thumbnail(picture: "Picture") -> Any:
    """Means of the picture's parts."""
    side = min(THUMBNAIL, *picture.shape[:2])
    rows, columns = (np.arange(side + 1) * length // side for length in picture.shape[:2])
    sums = np.add.reduceat(np.add.reduceat(picture.astype(np.float64), rows[:-1], 0), columns[:-1], 1)
    return sums / (np.diff(rows)[:, None, None] * np.diff(columns)[:, None])


def wrong_task(data: Annotated, query: int, items: Sequence[int], task: Task, keys: tuple[int, ...]) -> Task | None:
    """Another task that all items of a case allow, the same whatever the order or number of cases: one of other answers
    where there is one, else of other inputs."""
    held = [channel for channel in data.channels if all(data.has(i, channel) for i in (query, *items))]
    allowed = sorted(tasks_of(held), key=lambda t: t.name)
    others = [t for t in allowed if t.output != task.output] or [t for t in allowed if t.input != task.input]
    return others[int(hash64(*keys) % np.uint64(len(others)))] if others else None


class PairCases:
    """Cases of several tasks of one set of pictures, task after task: what a pair suite is made of."""

    def __init__(
        self,
        data: Annotated,
        tasks: Sequence[Task],
        config: PairingConfig,
        num_cases: int,
        seed: int,
        same_label: bool = False,
        encode: Encode | None = None,
        may_show: Callable[[int], bool] | None = None,
    ):
        self.data, self.tasks, self.config, self.num_cases = data, list(tasks), config, num_cases
        self._seed, self._encode = seed, encode if config.needs_codes else None
        self.episodes = [Episodes(data, task, config, seed, same_label, may_show) for task in tasks]

    @property
    def broken(self) -> Sequence[str]:
        return getattr(self.data, "broken", ())

    def __len__(self) -> int:
        return self.num_cases * len(self.tasks)

    def _wrong_pairs(
        self, episodes: Episodes, number: int, found: Pairs, wrong: Task | None
    ) -> "list[tuple[Picture, Picture]]":
        """Of another task; where the items have none, of the same task and another class."""
        if wrong is not None:
            return found.of(wrong)
        task = episodes.task
        shown = task.input, task.output
        drawn = [self.data.read(i, found.view, shown) for i in episodes.of_other_label(number)]
        return [(channels[task.input], channels[task.output]) for channels in drawn]

    def case(self, i: int) -> Case:
        which, number = divmod(i, self.num_cases)
        episodes, task = self.episodes[which], self.tasks[which]
        query = episodes.query(number)
        keys = (self._seed, seed_from(task.name), 4, number)
        wrong = wrong_task(self.data, query, episodes.pool(number), task, keys)
        found = choose(episodes, number, self._encode, wrong)
        again = number // len(episodes.queries)
        return Case(
            id=self.data.ids[query] + (f"#{again}" if again else ""),
            task=task.name,
            prompts=prompts_of(found, task, self._wrong_pairs(episodes, number, found, wrong), self.config),
            truth=(found.query[task.output],),
            label=self.data.labels[query],
            baselines=baselines_of(found, task),
            facts={
                "query": found.query,
                "shown": found.of(task),
                "wrong_task": wrong,
                "item": query,
                "view": found.view,
            },
        )
