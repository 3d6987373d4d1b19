"""video: the next 1-4 frames of a clip, painted greedily, against the frames that followed.

The paper shows such answers (figure 6 of arXiv 2312.00785: seven frames, then the next; longer prompts, then four) and
gives no number. Every condition of lvm/evaluation/clips.py is painted (shown=[1,3,7]: after each of these numbers of
frames) and scored, and so are a copy of the last frame, a linear extrapolation, the mean of the frames, and what the
tokenizer keeps of the truth. A pixel counts as moving against the last frame itself, not as the tokenizer shows it:
an answer that repeats the last frame's codes moves where the tokenizer is wrong, so read moving_iou beside `none`,
`wrong_task` and the ceiling.

    lvm evaluate MODEL --tokenizer T --suite video --out DIR frames=4 shown=[7]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lvm.evaluation.cases import Case, Measure, Published
from lvm.evaluation.clips import SHOWN, ClipCases, Kind, make_cut
from lvm.evaluation.measures import MOVING
from lvm.evaluation.suites.base import Context, open_clips
from lvm.evaluation.suites.perplexity import under
from lvm.evaluation.summary import interval, likelihoods, values
from lvm.evaluation.video_measures import frame_scores, mean_of_known
from lvm.runtime import UserError
from tokenizer.evaluate import SSIM_SIDE

if TYPE_CHECKING:
    from lvm.evaluation.cases import Picture

MOST_FRAMES = 4
LEAST_SHOWN = 3  # that four frames to paint leave room for, else one is painted
OF_MOVING = f"pixels that differ from the last frame shown by more than {MOVING} of 255, mean over channels"
MEASURES = (
    Measure("psnr", True, "dB", "peak 255, all pixels; 100 of equal pictures"),
    Measure("ssim", True, "", "Wang et al. 2004, where its Gaussian window fits: 11 pixels, sigma 1.5, range 255"),
    Measure("moving_psnr", True, "dB", f"on the truth's {OF_MOVING}; no number where nothing moves"),
    Measure("moving_iou", True, "", f"of {OF_MOVING}, in truth and in answer; no number where nothing moves"),
)


@dataclass(frozen=True)
class Options:
    frames: int | None = None  # to paint, 1 to 4; null: 4, or 1 where the context is too short for 3 and 4
    shown: tuple[int, ...] = ()  # frames before them, those that fit; empty: 1 and the most of 3, 7, 11, 15 that fit
    stride: int = 1  # of the frames that the source keeps: of videos every 8th, of folders of frames all
    kind: Kind = "clip"  # of the world; turntable: the next views of an object that turns


class VideoSuite:
    name, title = "video", "The next frames of a clip"
    measures = MEASURES
    published: Sequence[Published] = ()
    broken: Sequence[str] = ()

    def __init__(self, context: Context, options: Options):
        frames = options.frames
        if frames is None:
            frames = MOST_FRAMES if context.room >= LEAST_SHOWN + MOST_FRAMES else 1
        if not 1 <= frames <= MOST_FRAMES:
            raise UserError(f"frames={frames} must be from 1 to {MOST_FRAMES}")
        if context.size < SSIM_SIDE:
            raise UserError(f"frames of {context.size} pixels are too small for SSIM's window of {SSIM_SIDE}")
        clips = open_clips(context, options.kind)
        cut = make_cut(clips, context.room, options.shown or SHOWN, frames, options.stride)
        if not options.shown:
            cut = replace(cut, shown=tuple(sorted({cut.shown[0], cut.shown[-1]})))
        task = "next_frames" if options.kind == "clip" else "next_views"
        self._cases = ClipCases(clips, cut, context.num_cases or 200, context.seed, task, answered=True)
        self.settings = self._cases.describe()

    def __len__(self) -> int:
        return len(self._cases)

    def case(self, i: int) -> Case:
        return self._cases.case(i)

    def judge(self, case: Case, pictures: "Sequence[Picture]") -> Mapping[str, float]:
        """Means over the frames; psnr_2 and so on are of the second frame."""
        by_frame = frame_scores(pictures, case.truth, case.facts["shown"][-1])
        means = {name: mean_of_known(found) for name, found in by_frame.items()}
        single = {f"{name}_{k}": value for name, found in by_frame.items() for k, value in enumerate(found, 1)}
        return means | (single if len(pictures) > 1 else {})

    def over_all(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """`by_frame`: measure -> condition or baseline -> an interval for each frame painted. `by_shown`: measure ->
        number of frames shown -> interval."""
        conditions = list(dict.fromkeys(name for row in rows for name in row["conditions"]))
        baselines = list(dict.fromkeys(name for row in rows for name in row["baselines"]))
        names = [measure.name for measure in MEASURES]
        frames = range(1, self._cases.cut.frames + 1)
        key = lambda name, k: f"{name}_{k}" if len(frames) > 1 else name
        asked = {kind: partial(painted, kind) for kind in conditions} | {
            kind: partial(given, kind) for kind in baselines
        }
        mean = lambda read, name: interval(values(rows, lambda row: read(row).get(name)), 0)
        numbers = self._cases.condition_of()
        found = {shown: likelihoods(rows, partial(under, name)) for shown, name in numbers.items()}
        return {
            "by_frame": {
                name: {kind: [mean(read, key(name, k)) for k in frames] for kind, read in asked.items()}
                for name in names
            },
            "by_shown": {
                name: {shown: mean(asked[condition], name) for shown, condition in numbers.items()} for name in names
            },
            "perplexity": {shown: value["perplexity"] for shown, value in found.items() if value},
        }


def painted(condition: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
    scores: Mapping[str, Any] = under(condition, row).get("scores", {})
    return scores


def given(baseline: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
    scores: Mapping[str, Any] = row["baselines"].get(baseline, {})
    return scores


def make(context: Context, options: Options) -> VideoSuite:
    return VideoSuite(context, options)
