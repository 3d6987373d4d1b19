"""perplexity: how likely the true annotation is after 0, 1, 3, 5, 7 pairs, for every annotation of the data.

The paper's figures 4 and 5 (arXiv 2312.00785): 5 pairs and a query, the 256 tokens of the annotation, over the whole
softmax, averaged over examples after exponentiation and prompted without BOS. Here both averages, and after each number
of pairs the prompt with BOS (as our models are trained) and without.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lvm.evaluation.annotated import Annotated, WorldItems
from lvm.evaluation.bootstrap import bootstrap_mean
from lvm.evaluation.cases import NONE, RIGHT, SHUFFLED, WRONG_TASK, Case, Measure, Published, Shown
from lvm.evaluation.pairing import Choose, Order, PairCases, PairingConfig, flat, missing_controls
from lvm.evaluation.parts import Joined
from lvm.evaluation.suites.base import Context, describe_pairs, open_items
from lvm.evaluation.summary import likelihoods, query_ids, values
from lvm.evaluation.tasks import Task, tasks_of
from lvm.runtime import UserError

if TYPE_CHECKING:
    from lvm.evaluation.cases import Picture

SHOTS = (0, 1, 3, 5, 7)
PUBLISHED_PAIRS = "5"
BOS = {False: "without_bos", True: "with_bos"}
# Of a world: kind of unit -> channels asked about that scenes lack, and whether pairs are of one label.
OF_KIND = {
    "scene": ((), False),
    "object": (("object_mask", "object_box", "pose"), True),
    "turntable": (("mask", "keypoints"), False),
    "puzzle": (("solution",), True),
}
CAVEAT = (
    "ImageNet validation pictures with pseudo-labels, 256 tokens an answer, 5 pairs without BOS, mean over answers of "
    "each one's perplexity. This model's: as many pairs, no BOS and the same average (per_answer_perplexity), but "
    "other pictures and labels, pairs drawn as the settings say, and as many tokens as its tokenizer has"
)
PUBLISHED = [
    Published(model, scores, "figure 4", CAVEAT)
    for model, scores in {
        "LVM 300M": {"segmentation": 23.1, "depth": 21.1, "normal": 15.9, "edge": 282.4},
        "LVM 600M": {"segmentation": 18.8, "depth": 17.5, "normal": 14.1, "edge": 215.7},
        "LVM 1B": {"segmentation": 16.8, "depth": 15.9, "normal": 13.2, "edge": 193.0},
        "LVM 3B": {"segmentation": 14.0, "depth": 13.5, "normal": 12.0, "edge": 155.0},
    }.items()
]


@dataclass(frozen=True)
class Options:
    shots: tuple[int, ...] = SHOTS  # numbers of pairs; those that do not fit the context are left out
    only: tuple[str, ...] = ()  # names of some tasks; empty: all that the data allow
    other_bos: bool = True  # ask without BOS too; with it, of a model that is prompted without
    choose: Choose = "random"
    order: Order = "random"
    pool: int = 64


class PerplexitySuite:
    name, title = "perplexity", "Perplexity by number of pairs"
    measures: Sequence[Measure] = ()  # of answers: none are painted
    published = PUBLISHED

    def __init__(self, context: Context, options: Options):
        self.shots = sorted({k for k in options.shots if 2 * k + 2 <= context.room})
        if any(k < 0 for k in options.shots) or max(self.shots, default=0) < 1:
            raise UserError(f"shots {list(options.shots)}: at least one pair must fit into {context.room} pictures")
        self._prompt_bos, self._other_bos = context.prompt_bos, options.other_bos
        config = PairingConfig(max(self.shots), options.pool, options.choose, options.order)
        number = context.num_cases or 200
        self._cases = Joined(
            PairCases(data, tasks, config, number, context.seed, same_label, context.encode)
            for data, tasks, same_label in asked(context, options.only)
        )
        parts = self._cases.parts
        self.broken = self._cases.broken
        described = describe_pairs(parts[0].data, None, config, context)
        self.settings = {
            **{key: value for key, value in described.items() if key != "nearest_pair"},  # no answer stands beside
            **missing_controls(parts),
            "data": [part.data.name for part in parts],
            "data_fingerprint": [part.data.fingerprint() for part in parts],
            "shots": self.shots,
            "answers": "none are painted",
        }

    def __len__(self) -> int:
        return len(self._cases)

    def case(self, i: int) -> Case:
        case = self._cases.case(i)
        right, query = list(case.facts["shown"]), case.prompts[NONE].pictures[-1]
        prompts = {str(k): Shown(flat(right[len(right) - k :], query), False) for k in self.shots[:-1] if k}
        for name in (RIGHT, WRONG_TASK, SHUFFLED, NONE):
            if name in case.prompts:
                prompts[name] = replace(case.prompts[name], answered=False)
        if self._other_bos:
            prompts |= asked_again(prompts, self.condition_of().values(), not self._prompt_bos)
        return replace(case, prompts=prompts, baselines={})

    def condition_of(self) -> dict[str, str]:
        """Number of pairs shown -> the condition that shows so many."""
        names = {str(k): str(k) for k in self.shots} | {str(self.shots[-1]): RIGHT}
        return names | ({"0": NONE} if 0 in self.shots else {})

    def judge(self, case: Case, pictures: "Sequence[Picture]") -> Mapping[str, float]:
        return {}

    def over_all(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """By number of pairs, under both kinds of prompts: what the report of older scripts holds, and beside it
        {"without_bos": {"perplexity": {"0": .., "1": ..}, ...}}."""
        numbers = self.condition_of()
        report: dict[str, Any] = by_number(rows, {**numbers, "wrong": WRONG_TASK})
        if self._other_bos:
            report |= with_other_bos(rows, numbers, not self._prompt_bos)
        asked = query_ids(rows)
        report |= {"targets": len(rows), "distinct_targets": len(set(asked))}
        of_answer = {name: values(rows, partial(nats, name)) for name in (RIGHT, NONE, WRONG_TASK)}
        if "0" in report["perplexity"]:
            report["saved_nats"] = bootstrap_mean(of_answer[NONE] - of_answer[RIGHT], queries=asked)
        if "wrong" in report["perplexity"]:
            report["wrong_costs_nats"] = bootstrap_mean(of_answer[WRONG_TASK] - of_answer[RIGHT], queries=asked)
        return report

    def ours(self, tasks: Mapping[str, Any]) -> Mapping[str, float | None]:
        """After 5 pairs, as published."""
        columns = PUBLISHED[0].scores
        return {name: published_average(tasks.get(name, {}), self._prompt_bos).get(PUBLISHED_PAIRS) for name in columns}


def asked_again(prompts: Mapping[str, Shown], conditions: Iterable[str], bos: bool) -> dict[str, Shown]:
    """Prompts of those conditions with BOS or without: right_without_bos, 5_without_bos, ..."""
    return {f"{name}_{BOS[bos]}": replace(prompts[name], bos=bos) for name in conditions}


def by_number(rows: Sequence[Mapping[str, Any]], conditions: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """{"perplexity": {number: ...}, "per_answer_perplexity", "first_token"} of conditions by the number they show."""
    found = {key: likelihoods(rows, partial(under, name)) for key, name in conditions.items()}
    found = {key: value for key, value in found.items() if value}
    names = ("perplexity", "per_answer_perplexity", "first_token")
    return {name: {key: value[name] for key, value in found.items()} for name in names}


def with_other_bos(rows: Sequence[Mapping[str, Any]], numbers: Mapping[str, str], bos: bool) -> dict[str, Any]:
    """The same of the prompts asked again, under "without_bos" or "with_bos"."""
    return {BOS[bos]: by_number(rows, {key: f"{name}_{BOS[bos]}" for key, name in numbers.items()})}


def published_average(task: Mapping[str, Any], prompt_bos: bool) -> Mapping[str, float | None]:
    """By number, the mean over answers of each one's perplexity after prompts without BOS; {} where none was asked."""
    found = task.get(BOS[False], {}) if prompt_bos else task
    average: Mapping[str, float | None] = found.get("per_answer_perplexity", {})
    return average


def under(condition: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = row["conditions"].get(condition, {})
    return found


def nats(condition: str, row: Mapping[str, Any]) -> float | None:
    return under(condition, row).get("nll")


def asked(context: Context, names: Sequence[str]) -> list[tuple[Annotated, list[Task], bool]]:
    """(pictures, tasks, whether pairs are of one class) of everything the data hold. Raises `UserError`."""
    scenes = open_items(context, "scene")
    found: list[tuple[Annotated, list[Task], bool]] = []
    if isinstance(scenes, WorldItems):
        for kind, (channels, same_label) in OF_KIND.items():
            if not scenes.world.counts[kind]:
                continue
            data = WorldItems(scenes.world, kind, context.size)
            tasks = tasks_of(data.channels)
            found.append((data, [t for t in tasks if not channels or t.output in channels], same_label))
    else:
        held = [t for t in tasks_of(scenes.channels) if any_asked(scenes, t)]
        found.append((scenes, held, False))
    known = [task.name for _, tasks, _ in found for task in tasks]
    for name in names:
        if name not in known:
            raise UserError(f"only has {name!r}, which {scenes.name} does not allow; it has {', '.join(known)}")
    chosen = [(data, [t for t in tasks if not names or t.name in names], alike) for data, tasks, alike in found]
    chosen = [(data, tasks, alike) for data, tasks, alike in chosen if tasks]
    if not chosen:
        raise UserError(f"{scenes.name} has no annotation to ask about: nothing held out has two channels")
    return chosen


def any_asked(data: Annotated, task: Task) -> bool:
    return any(data.may_ask(i) and data.has(i, task.input) and data.has(i, task.output) for i in range(len(data)))


def make(context: Context, options: Options) -> PerplexitySuite:
    return PerplexitySuite(context, options)
