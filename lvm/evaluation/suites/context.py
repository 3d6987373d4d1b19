"""context: how likely the next frame of a clip is after 1, 3, 7, 11, 15 frames.

The paper's figure 7 (arXiv 2312.00785): Kinetics-700 validation videos, every 8th frame from a random start, squashed
without a crop, prompted without BOS. Here the same target frame after each number of frames, both averages, and beside
the right frames another clip's and shuffled ones before the same last frame.

    lvm evaluate MODEL --tokenizer T --suite context --data kinetics/val --out DIR      videos: every 8th frame is kept
    lvm evaluate MODEL --tokenizer T --suite context --out DIR stride=2                 clips of the embedded world
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lvm.evaluation.bootstrap import bootstrap_mean
from lvm.evaluation.cases import RIGHT, WRONG_TASK, Case, Measure, Published
from lvm.evaluation.clips import SHOWN, ClipCases, Kind, make_cut
from lvm.evaluation.suites.base import Context, open_clips
from lvm.evaluation.suites.perplexity import NO_BOS, WITH_BOS, nats, under
from lvm.evaluation.summary import likelihoods, values

if TYPE_CHECKING:
    from lvm.evaluation.cases import Picture

PUBLISHED = [
    Published(
        "LVM",
        {"1": 62.1, "3": 55.0, "7": 49.8, "11": 48.4, "15": 49.5},
        "figure 7",
        "Kinetics-700 validation videos, every 8th frame from a random start, 256 tokens a frame, mean over targets of "
        "each one's perplexity (per_answer_perplexity here), without BOS; not monotone as printed",
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
        self._other_bos = not context.prompt_bos if options.other_bos else None
        self.settings = self._cases.describe()

    def __len__(self) -> int:
        return len(self._cases)

    def case(self, i: int) -> Case:
        case = self._cases.case(i)
        if self._other_bos is None:
            return case
        again = replace(case.prompts[RIGHT], bos=self._other_bos)
        return replace(case, prompts={**case.prompts, WITH_BOS if self._other_bos else NO_BOS: again})

    def judge(self, case: Case, pictures: "Sequence[Picture]") -> Mapping[str, float]:
        return {}

    def over_all(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """By number of frames: {"perplexity": {"1": .., "3": ..}, ...}, and nats that they save over the fewest."""
        named = {**self._cases.condition_of(), "wrong": WRONG_TASK}
        found = {key: likelihoods(rows, partial(under, name)) for key, name in named.items()}
        found = {key: value for key, value in found.items() if value}
        report: dict[str, Any] = {
            name: {key: value[name] for key, value in found.items()}
            for name in ("perplexity", "per_answer_perplexity", "first_token")
        }
        of = {key: values(rows, partial(nats, named[key])) for key in found}
        fewest, *more = (str(k) for k in self._cases.cut.shown)
        report["targets"] = len(rows)
        report["saved_nats"] = {key: bootstrap_mean(of[fewest] - of[key]) for key in more}
        if "wrong" in of:
            report["wrong_costs_nats"] = bootstrap_mean(of["wrong"] - of[str(self._cases.cut.shown[-1])])
        return report


def make(context: Context, options: Options) -> ContextSuite:
    return ContextSuite(context, options)
