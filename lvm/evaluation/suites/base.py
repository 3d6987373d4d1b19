"""What suites are made from: the data named on the command line, or the embedded world; and the base of pair suites."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lvm.evaluation.annotated import WORLD, Annotated, HeldOut, SourceItems, WorldItems
from lvm.evaluation.cases import Case, Measure, Published
from lvm.evaluation.clips import DRAWN, Clips, Kind, resize_of
from lvm.evaluation.datasets.keypoint_lines import MARGIN, KeypointLines
from lvm.evaluation.datasets.nyuv2 import NYUv2
from lvm.evaluation.pairing import THUMBNAIL, Choose, Encode, Order, PairCases, PairingConfig
from lvm.evaluation.parts import Joined
from lvm.evaluation.tasks import Task
from lvm.runtime import UserError
from lvm.sources import Source, open_source
from lvm.sources.world import WorldSource

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import UInt8

    from lvm.evaluation.cases import Picture

FILTERS = (
    "bicubic; files of segmentation, instance, box, pose and 16-bit depth the nearest pixel, of edge the maximum of "
    "each cell"
)
NEAREST_PAIR = f"by L2 of thumbnails, means of {THUMBNAIL} x {THUMBNAIL} parts of the picture"


@dataclass(frozen=True)
class Context:
    """What a suite is told beside its own options."""

    data: str | None  # folder, YAML or name of a source; None: the embedded world
    size: int  # pixels a side of every picture
    room: int  # pictures that fit the model's context, the answer included
    num_cases: int | None = None  # of each task; None: the suite's own number
    seed: int = 0
    kept_out: HeldOut = field(default_factory=HeldOut)
    encode: Encode | None = None  # pictures to codes
    decode: "Callable[[Any], UInt8[np.ndarray, 'n y x 3']] | None" = None  # codes [n, t] to pictures
    workers: int = 0  # processes that look through a source of files
    world: Mapping[str, Any] | None = None  # the world that the model was trained on, where it is known
    prompt_bos: bool = True  # whether the model's prompts begin with BOS

    def pairs(self, wanted: int | None, default: int = 5) -> int:
        """Pairs before a query: as asked for, or as many of `default` as fit. Raises `UserError`."""
        most = (self.room - 2) // 2
        if most < 1:
            raise UserError(f"the model's context holds {self.room} pictures; a pair, a query and its answer are 4")
        if wanted is not None and wanted > most:
            raise UserError(f"pairs={wanted} do not fit: the model's context holds {self.room} pictures, {most} pairs")
        return min(default, most) if wanted is None else wanted


def open_data(context: Context) -> Source:
    """The source; of a world the test split, of which nothing is trained on."""
    source = open_source(context.data if context.data is not None else context.world or WORLD)
    if isinstance(source, WorldSource):
        seed = source.config.seed if context.world or context.data is not None else context.seed
        return WorldSource(replace(source.config, split="test", seed=seed))
    return source


def open_items(context: Context, kind: str) -> Annotated:
    """Annotated pictures of the data: of a world the units of one kind. Raises `UserError`."""
    source = open_data(context)
    if isinstance(source, WorldSource):
        if not source.counts[kind]:
            raise UserError(f"the world has no {kind}s: num_{kind}s is 0; evaluate on {WORLD}")
        return WorldItems(source, kind, context.size)
    return SourceItems(source, context.size, context.kept_out, context.seed, context.workers)


def open_clips(context: Context, kind: Kind) -> Clips:
    """Clips of the data: of a world its clips or turntables. Raises `UserError`."""
    return Clips(open_data(context), context.size, context.kept_out, context.seed, kind)


@dataclass(frozen=True)
class PairOptions:
    """What all suites of pairs can be told; they add their own."""

    pairs: int | None = None  # before a query; null: 5, or as many as fit
    choose: Choose = "random"
    order: Order = "random"
    pool: int = 64
    ensemble: int = 1

    def pairing(self, context: Context) -> PairingConfig:
        return PairingConfig(context.pairs(self.pairs), self.pool, self.choose, self.order, self.ensemble)


Judge = Callable[["Case", "Sequence[Picture]"], Mapping[str, float]]


@dataclass
class PairSuite:
    """A suite of pair prompts: cases of some tasks, judged by one function."""

    name: str
    title: str
    measures: Sequence[Measure]
    cases: PairCases | Joined
    judged: Judge
    settings: Mapping[str, Any]
    published: Sequence[Published] = ()
    broken: Sequence[str] = ()  # files and reasons: what could not even be listed

    def __len__(self) -> int:
        return len(self.cases)

    def case(self, i: int) -> Case:
        return self.cases.case(i)

    def judge(self, case: Case, pictures: "Sequence[Picture]") -> Mapping[str, float]:
        return self.judged(case, pictures)

    def over_all(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        return {}


def describe_pairs(data: Annotated, task: Task | None, config: PairingConfig, context: Context) -> dict[str, Any]:
    """The settings that all pair suites have; those of a public layout say `resize` in their own words."""
    return {
        "data": data.name,
        "data_fingerprint": data.fingerprint(),
        "size": context.size,
        **how_drawn(data),
        "seed": context.seed,
        "held_out": vars(context.kept_out) if isinstance(data, SourceItems | KeypointLines) else "test split",
        "task": None if task is None else f"{task.input} -> {task.output}",
        **vars(config),
        "shuffled": "the input before itself" if config.pairs == 1 else "each input before the answer of the next pair",
        "nearest_pair": NEAREST_PAIR,
        "answers": "greedy",
    }


def how_drawn(data: Annotated) -> dict[str, str]:
    """What is drawn of a picture, and how its pixels become fewer."""
    if isinstance(data, SourceItems):
        return resize_of(data.source, FILTERS)
    if isinstance(data, KeypointLines):
        cut = f"the square about the object's box, {MARGIN:g} of its larger side added all round; black off the picture"
        return {"resize": cut, "filter": "bicubic"}
    if isinstance(data, NYUv2):  # `resize` is its suite's option
        return {"filter": "pictures bicubic, distances the nearest pixel"}
    return {"resize": DRAWN}
