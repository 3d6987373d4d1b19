"""detection: the box about an object of the pairs' class, as a filled white rectangle on black.

The protocol of Visual Prompting via Image Inpainting (Bar et al., NeurIPS 2022; amirbar/visual_prompting,
evaluate_detection), which table 1 of arXiv 2312.00785 reports: answers snapped to the nearer colour, the largest white
piece, the rectangle about it, its IoU with the true box. Data: VOC2012 (`datasets/voc_boxes.py`), any source with a
channel `object_box`, or the objects of the embedded world. The published code has no folds here: a split is a draw of
queries and pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lvm.evaluation.annotated import Annotated
from lvm.evaluation.cases import Case, Measure, Published
from lvm.evaluation.datasets.layout import refuse_options
from lvm.evaluation.datasets.voc import find_root
from lvm.evaluation.datasets.voc_boxes import CHANNEL, open_boxes
from lvm.evaluation.filled_boxes import HIT, box_scores
from lvm.evaluation.pairing import PairCases, check_classes, missing_controls
from lvm.evaluation.parts import Joined
from lvm.evaluation.suites.base import Context, PairOptions, PairSuite, describe_pairs, open_items
from lvm.evaluation.tasks import Task
from lvm.evaluation.two_colours import BLACK_WHITE, Recoloured, need_figure
from lvm.runtime import UserError

if TYPE_CHECKING:
    from lvm.evaluation.cases import Picture

EPISODES = 1000  # a split, where the data say no number
LARGEST = 0.2  # of VOC2012's pictures, that an object may fill
MEASURES = (
    Measure(
        "iou", True, "", "of the rectangle about the largest white piece (eight neighbours) and the true box; 0: none"
    ),
    Measure("hit", True, "", f"share of answers with an IoU of {HIT} or more"),
)
CAVEAT = (
    "printed in percent; VOC2012 val pictures with one object under a fifth of the picture, pairs of the train list; "
    "splits are no folds in the published code; which LVM and how many pairs its row has, and what its splits are, is "
    "not stated"
)
PUBLISHED = [
    Published(name, {f"split{k}": round(percent / 100, 4) for k, percent in enumerate(row, 1)}, "table 1", CAVEAT)
    for name, row in {
        "MAE (IN-1k)": (1.37, 1.98, 1.62, 1.62),
        "MAE-VQGAN (IN-1k)": (3.34, 3.21, 2.80, 2.80),
        "MAE (CVF)": (5.49, 4.98, 5.24, 5.84),
        "MAE-VQGAN (CVF)": (24.19, 25.20, 25.36, 25.23),
        "LVM": (48.25, 49.60, 50.08, 48.92),
    }.items()
]


@dataclass(frozen=True)
class Options(PairOptions):
    splits: int = 1  # draws of queries and pairs; 4: as many as the paper's table has
    largest: float = LARGEST  # share of a VOC2012 picture that its object stays under

    def __post_init__(self) -> None:
        if not 1 <= self.splits <= 100:
            raise UserError(f"splits {self.splits} must be from 1 to 100")
        if not 0 < self.largest <= 1:
            raise UserError(f"largest {self.largest:g} must be above 0 and at most 1, a share of the picture")


@dataclass
class DetectionSuite(PairSuite):
    def case(self, i: int) -> Case:
        return need_figure(super().case(i), BLACK_WHITE)


@dataclass(frozen=True)
class Boxes:
    data: Annotated
    episodes: int
    settings: dict[str, Any]
    may_show: Callable[[int], bool] | None = None
    broken: Sequence[str] = field(default_factory=tuple)


def open_boxed(context: Context, options: Options) -> Boxes:
    """Raises `UserError`."""
    if root := find_root(context.data):
        data, broken = open_boxes(root, context.size, options.largest)
        asked = sum(data.may_ask(i) for i in range(len(data)))
        told = {
            "held_out": "the val list",
            "pairs_from": "the train list, of the query's class",
            "pictures": f"with one object, under {options.largest:g} of the picture",
            "resize": "squashed to a square: pictures bicubic, the box's corners to the nearest pixel",
        }
        return Boxes(data, asked, told, lambda i: not data.may_ask(i), broken)
    refuse_options(options, ("largest",), "VOC2012")
    items = open_items(context, "object")
    if CHANNEL not in items.channels:
        raise UserError(
            f"{items.name} has no {CHANNEL}, filled white boxes on black (channels: {', '.join(items.channels)}; "
            f"`box` is outlined on the photo); give VOC2012, or pictures with `channels: {{FOLDER: {CHANNEL}}}`"
        )
    return Boxes(
        items,
        EPISODES,
        {"pairs_from": "other pictures of the query's class", "pictures": "all that have a box"},
        broken=getattr(items, "broken", ()),
    )


def make(context: Context, options: Options) -> DetectionSuite:
    config = options.pairing(context)
    boxes = open_boxed(context, options)
    number = context.num_cases or boxes.episodes
    task = Task("detection", "image", CHANNEL, "Detection")
    check_classes("detection", boxes.data, task, config, boxes.may_show)
    drawn = Recoloured(boxes.data, CHANNEL, BLACK_WHITE, mixed=True)
    parts = []
    for split in range(1, options.splits + 1):
        draw = Task(f"split{split}", "image", CHANNEL, f"Detection, draw {split}")
        parts.append(PairCases(drawn, [draw], config, number, context.seed, True, context.encode, boxes.may_show))
    told = {
        "splits": f"{options.splits} draws of queries and pairs",
        "episodes": number,
        "queries": len(parts[0].episodes[0].queries),
        "read_back": "the nearer of black and white (L2), the largest white piece of eight neighbours, its rectangle",
        "boxes": "what is more than half as bright as the brightest, once drawn",
        "unreadable": len(boxes.broken),
    }
    return DetectionSuite(
        name="detection",
        title="Detection",
        measures=MEASURES,
        cases=Joined(parts),
        judged=judge,
        settings=describe_pairs(boxes.data, task, config, context) | boxes.settings | told | missing_controls(parts),
        published=PUBLISHED,
        broken=boxes.broken,
    )


def judge(case: Case, pictures: "Sequence[Picture]") -> dict[str, float]:
    return box_scores(pictures[0], case.truth[0])
