"""depth: AbsRel, RMSE, log RMSE and delta of the answer read back as distances.

    abs_rel, ...            where every picture is drawn between the same near and far: a gray is a distance
    abs_rel_aligned, ...    after the least-squares scale and shift of inverse depth against the truth, as MiDaS is
                            scored: all that can be asked where each picture is drawn between its own percentiles

On scenes of the world, on any source with depth (16 bits; a collection's parts may differ), and on NYU Depth v2 as
folders (datasets/nyuv2.py). The paper of LVM gives no errors of depth, so no published row stands beside these.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lvm.evaluation.annotated import Annotated, SourceItems, WorldItems
from lvm.evaluation.cases import Case, Measure
from lvm.evaluation.datasets import nyuv2
from lvm.evaluation.datasets.layout import refuse, refuse_options
from lvm.evaluation.datasets.nyuv2 import NYUv2, is_nyuv2
from lvm.evaluation.depth_measures import NAMES, aligned, errors
from lvm.evaluation.depth_truth import DepthOf, DepthTruth, FilesDepth, WorldDepth, refuse_other_depth
from lvm.evaluation.pairing import PairCases, missing_controls
from lvm.evaluation.suites.base import Context, PairOptions, PairSuite, describe_pairs, open_items
from lvm.evaluation.tasks import TASKS
from lvm.pictures import depth
from lvm.runtime import UserError

if TYPE_CHECKING:
    from lvm.evaluation.cases import Picture

TASK = next(task for task in TASKS if task.name == "depth")
ALIGNED = "_aligned"
NUM_CASES = 200
TREE = (
    "images/NAME.jpg with depth/NAME.png beside (16 bits), a source with a channel depth, "
    f"or NYU Depth v2: {nyuv2.TREE}"
)
ABOUT = {
    "abs_rel": "mean |d - t| / t",
    "rmse": "root mean square of d - t",
    "rmse_log": "root mean square of ln d - ln t",
    "delta_1": "share of pixels with max(d/t, t/d) below 1.25",
    "delta_2": "share below 1.25^2",
    "delta_3": "share below 1.25^3",
}
READ = "the mean of the channels as inverse depth between the near and far that all pictures are drawn with"
FITTED = (
    "the mean of the channels as inverse depth, after the scale and shift of least squares to 1/t (MiDaS), "
    "at most the cap; an answer of one level becomes the mean of 1/t"
)


@dataclass(frozen=True)
class Options(PairOptions):
    layout: Literal["auto", "source", "nyuv2"] = "auto"  # auto: nyuv2 by its test.txt beside rgb/ or depth/
    near: float | None = None  # drawn white: of nyuv2 in metres; of a source the range its 8-bit pictures were drawn in
    far: float | None = None  # drawn black
    resize: Literal["squash", "crop"] = "squash"  # of nyuv2; crop: the central square
    eigen_crop: bool = True  # of nyuv2: distances are scored inside it

    def __post_init__(self) -> None:
        if (self.near is None) != (self.far is None):
            raise UserError("near and far are given together, or neither")
        if self.near is not None and self.far is not None and not 0 < self.near < self.far:
            raise UserError(f"near {self.near} and far {self.far} must be above 0, the smaller first")

    @property
    def drawn(self) -> tuple[float, float] | None:
        return None if self.near is None or self.far is None else (self.near, self.far)


@dataclass
class DepthSuite(PairSuite):
    truth: DepthOf | None = None

    def case(self, i: int) -> Case:
        case = super().case(i)
        assert self.truth is not None
        found = self.truth(case.facts["item"], case.facts["view"])
        answers = [answer for _, answer in case.facts["shown"]]
        mean_level = np.full_like(case.truth[0], round(float(np.mean(answers))))
        return replace(
            case,
            facts={**case.facts, "depth": found, "one_range": self.truth.one_range},
            baselines={**case.baselines, "mean_level": (mean_level,)},
        )


def judge(case: Case, pictures: "Sequence[Picture]") -> Mapping[str, float]:
    truth: DepthTruth = case.facts["depth"]
    fitted = aligned(pictures[0].mean(-1), truth.values, truth.cap)
    found = {name + ALIGNED: value for name, value in errors(fitted, truth.values).items()}
    if case.facts["one_range"]:
        read = np.minimum(depth.read(pictures[0], truth.near, truth.far), truth.cap)
        found |= errors(read, truth.values)
    return found


def measures_of(truth: DepthOf) -> list[Measure]:
    def of(suffix: str, how: str) -> list[Measure]:
        units = {"rmse": truth.unit}
        return [
            Measure(name + suffix, name.startswith("delta"), units.get(name, ""), f"{ABOUT[name]}; d: {how}")
            for name in NAMES
        ]

    return (of("", READ) if truth.one_range else []) + of(ALIGNED, FITTED)


def open_depth(context: Context, options: Options) -> tuple[Annotated, DepthOf]:
    """Raises `UserError` for data without depth, or with depth of another kind than the options say."""
    folder = Path(context.data).expanduser() if context.data is not None else None
    if options.layout == "nyuv2" or (
        options.layout == "auto" and folder is not None and folder.is_dir() and is_nyuv2(folder)
    ):
        if folder is None:
            raise UserError("layout=nyuv2 needs --data, the folder that holds rgb/ and depth/")
        found = NYUv2(folder, context.size, options.resize, options.eigen_crop, options.drawn)
        refuse_other_depth(found, found, [asked_about(found)])
        return found, found
    refuse_options(options, ("resize", "eigen_crop"), "nyuv2")
    data = open_items(context, "scene")
    if TASK.output not in data.channels:
        raise refuse(f"{data.name} has no {TASK.output} (channels: {', '.join(data.channels)})", TREE)
    if isinstance(data, SourceItems):
        truth = FilesDepth(data, context.size, options.drawn)
        refuse_other_depth(data, truth, truth.by_source(asked_about(data)))
        return data, truth
    assert isinstance(data, WorldItems)
    if options.drawn:
        raise UserError("near and far are the world's own; leave them out")
    return data, WorldDepth(data)


def asked_about(data: Annotated) -> list[int]:
    return [i for i in range(len(data)) if data.has(i, TASK.output) and data.may_ask(i)]


def make(context: Context, options: Options) -> DepthSuite:
    data, truth = open_depth(context, options)
    config = options.pairing(context)
    public = isinstance(data, NYUv2)
    number = context.num_cases or (sum(map(data.may_ask, range(len(data)))) if public else NUM_CASES)
    may_show = data.may_show if isinstance(data, NYUv2) else None
    cases = PairCases(data, [TASK], config, number, context.seed, False, context.encode, may_show)
    settings: dict[str, Any] = {
        **describe_pairs(data, TASK, config, context),
        **missing_controls([cases]),
        "truth": truth.about,
        "unit": truth.unit,
        "one_range": truth.one_range,
        "valid": "where the truth is known and at most the cap: what is drawn black, of nyuv2 at most 10 m",
        "alignment": FITTED,
        "published": "none: the paper of LVM gives no errors of depth",
    }
    if public:
        settings |= {
            "held_out": "the test list; pairs are of the other pictures",
            "resize": options.resize,
            "eigen_crop": options.eigen_crop,
        }
    return DepthSuite("depth", "Depth", measures_of(truth), cases, judge, settings, broken=cases.broken, truth=truth)
