"""context: how likely the next frame of a clip is after 1, 3, 7, 11, 15 frames.

The paper's figure 7 (arXiv 2312.00785): Kinetics-700 validation videos, every 8th frame from a random start, squashed
without a crop, prompted without BOS. Here the same target frame after each number of frames, with BOS and without, both
averages, and beside the right frames another clip's and shuffled ones before the same last frame.

    lvm evaluate MODEL --tokenizer T --suite context --data kinetics/val --out DIR      videos: every 8th frame is kept
    lvm evaluate MODEL --tokenizer T --suite context --out DIR stride=2                 clips of the embedded world
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lvm.evaluation.bootstrap import bootstrap_mean
from lvm.evaluation.cases import WRONG_TASK, Case, Measure, Published
from lvm.evaluation.clips import SHOWN, ClipCases, Kind, make_cut
from lvm.evaluation.suites.base import Context, open_clips
from lvm.evaluation.suites.perplexity import asked_again, by_number, nats, published_average, with_other_bos
from lvm.evaluation.summary import values

if TYPE_CHECKING:
    from lvm.evaluation.cases import Picture

PUBLISHED = [
    Published(
        "LVM",
        {"1": 62.1, "3": 55.0, "7": 49.8, "11": 48.4, "15": 49.5},
        "figure 7",
        "Kinetics-700 validation videos, every 8th frame from a random start, 256 tokens a frame, no BOS, mean over "
        "targets of each one's perplexity; not monotone as printed. This model's: as many frames, no BOS and the same "
        "average (per_answer_perplexity), but other clips, frames as the settings say, and as many tokens as its "
        "tokenizer has",
    )
]


@dataclass(frozen=True)
class Options:
    shown: tuple[int, ...] = SHOWN  # frames before the target; those that do not fit the context or the clips: left out
    stride: int = 1  # of the frames that the source keeps: of videos every 8th, of folders of frames all
    kind: Kind = "clip"  # of the world; turntable: the next view of an object that turns
    other_bos: bool = True  # ask without BOS too; with it, of a model that is prompted without


class ContextSuite:
    name, title = "context", "Perplexity of the next frame by number of frames shown"
    measures: Sequence[Measure] = ()  # of answers: none are painted
    published = PUBLISHED
    broken: Sequence[str] = ()

    def __init__(self, context: Context, options: Options):
        clips = open_clips(context, options.kind)
        cut = make_cut(clips, context.room, options.shown, 1, options.stride)
        task = "next_frame" if options.kind == "clip" else "next_view"
        self._cases = ClipCases(clips, cut, context.num_cases or 200, context.seed, task, answered=False)
        self._prompt_bos, self._other_bos = context.prompt_bos, options.other_bos
        self.settings = self._cases.describe()

    def __len__(self) -> int:
        return len(self._cases)

    def case(self, i: int) -> Case:
        case = self._cases.case(i)
        if not self._other_bos:
            return case
        again = asked_again(case.prompts, self._cases.condition_of().values(), not self._prompt_bos)
        return replace(case, prompts={**case.prompts, **again})

    def judge(self, case: Case, pictures: "Sequence[Picture]") -> Mapping[str, float]:
        return {}

    def over_all(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """By number of frames: {"perplexity": {"1": .., "3": ..}, ...}, and nats that they save over the fewest; under
        "without_bos" the same of prompts without it."""
        numbers = self._cases.condition_of()
        named = {**numbers, "wrong": WRONG_TASK}
        report: dict[str, Any] = by_number(rows, named)
        if self._other_bos:
            report |= with_other_bos(rows, numbers, not self._prompt_bos)
        of = {key: values(rows, partial(nats, named[key])) for key in report["perplexity"]}
        fewest, *more = (str(k) for k in self._cases.cut.shown)
        report["targets"] = len(rows)
        report["saved_nats"] = {key: bootstrap_mean(of[fewest] - of[key]) for key in more}
        if "wrong" in of:
            report["wrong_costs_nats"] = bootstrap_mean(of["wrong"] - of[str(self._cases.cut.shown[-1])])
        return report

    def ours(self, tasks: Mapping[str, Any]) -> Mapping[str, float | None]:
        """After each number of frames, as published."""
        found = published_average(next(iter(tasks.values()), {}), self._prompt_bos)
        return {shown: found.get(shown) for shown in PUBLISHED[0].scores}


def make(context: Context, options: Options) -> ContextSuite:
    return ContextSuite(context, options)
