"""pascal5i: an object of the pairs' class as a mask of two colours, in four folds of classes.

The protocol of Visual Prompting via Image Inpainting (Bar et al., NeurIPS 2022; amirbar/visual_prompting), which table
1 of arXiv 2312.00785 reports: 1,000 episodes a fold, queries and pairs of one class, answers snapped to the nearer
colour, IoU of each episode averaged. Data: Pascal-5i as shipped (`datasets/pascal5i.py`), any pictures with masks and
classes (images/CLASS/x.jpg with masks/CLASS/x.png), or the objects of the embedded world.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lvm.evaluation.annotated import Annotated, WorldItems
from lvm.evaluation.cases import Case, Measure, Published
from lvm.evaluation.datasets.layout import refuse_options
from lvm.evaluation.datasets.pascal5i import FOLDS, open_fold_masks, refuse_sbd
from lvm.evaluation.datasets.voc import find_root
from lvm.evaluation.pairing import PairCases, PairingConfig, check_classes, missing_controls
from lvm.evaluation.parts import Joined, Subset
from lvm.evaluation.suites.base import Context, PairOptions, PairSuite, describe_pairs, open_items
from lvm.evaluation.tasks import Task
from lvm.evaluation.two_colours import BLACK_WHITE, PALETTES, Colours, Recoloured, mask_scores, need_figure
from lvm.runtime import UserError

if TYPE_CHECKING:
    from lvm.evaluation.cases import Picture

EPISODES = 1000  # a fold
MASKS = ("object_mask", "mask", "segmentation")  # channels that may hold one
MEASURES = (
    Measure("iou", True, "", "of the figure's pixels in one episode after the snap; the mean is the published number"),
    Measure(
        "colour_blind_iou",
        True,
        "",
        "the better of the answer and its inverse (of this name the published code has iou again, once snapped)",
    ),
    Measure("accuracy", True, "", "share of pixels with the right one of the two colours"),
)
CAVEAT = (
    "printed in percent; VOC2012 folds, one pair in a 2x2 grid of 111 px cells for all but LVM; which LVM and how many "
    "pairs its row has is not stated; ours is comparable on Pascal-5i data alone"
)
PUBLISHED = [
    Published(name, {f"fold{fold}": round(percent / 100, 4) for fold, percent in enumerate(row)}, "table 1", CAVEAT)
    for name, row in {
        "MAE (IN-1k)": (1.92, 6.76, 3.85, 4.57),
        "MAE-VQGAN (IN-1k)": (2.22, 7.07, 5.48, 6.28),
        "MAE (CVF)": (17.42, 25.70, 18.64, 16.53),
        "MAE-VQGAN (CVF)": (27.83, 30.44, 26.15, 24.25),
        "LVM": (48.94, 51.29, 47.66, 50.82),
    }.items()
]


@dataclass(frozen=True)
class Options(PairOptions):
    fold: Literal["all", 0, 1, 2, 3] = "all"
    palette: Literal["black_white", "purple_yellow"] = "black_white"
    lists: str = ""  # folder of fold0.txt to fold3.txt (or splits/pascal/val below it); empty: in the data folder


@dataclass(frozen=True)
class Masks:
    data: Annotated
    channel: str
    folds: Mapping[str, list[int]]  # items by task
    drawn: str  # how masks are made
    held_out: str = ""  # of what is no source of files
    resize: str = ""  # of a public layout
    mixed: bool = False  # a resize mixes figure and ground


@dataclass
class Pascal5i(PairSuite):
    colours: Colours = BLACK_WHITE

    def case(self, i: int) -> Case:
        return need_figure(super().case(i), self.colours)

    def over_all(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        return class_miou(rows)


def class_miou(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{"class_miou": {condition or baseline: mean over classes}, "classes": {class: {"episodes", condition: IoU}}}: an
    IoU of a class is the sum of the intersections of its episodes over the sum of their unions."""
    sums: dict[str, dict[str, np.ndarray]] = {}
    episodes: dict[str, int] = {}
    for row in rows:
        label = row["label"]
        episodes[label] = episodes.get(label, 0) + 1
        scores = {name: found.get("scores") for name, found in row["conditions"].items()} | row["baselines"]
        for name, found in scores.items():
            if found:
                of_class = sums.setdefault(name, {})
                of_class[label] = of_class.get(label, np.zeros(2)) + [found["intersection"], found["union"]]
    ious = {name: {k: v[0] / v[1] for k, v in of.items() if v[1]} for name, of in sums.items()}
    return {
        "class_miou": {name: float(np.mean(list(of.values()))) for name, of in ious.items() if of},
        "classes": {
            label: {"episodes": number, **{name: float(of[label]) for name, of in ious.items() if label in of}}
            for label, number in sorted(episodes.items())
        },
    }


# Which pictures, and how their masks are made.


def open_masks(context: Context, options: Options) -> Masks:
    """Raises `UserError`."""
    if root := find_root(context.data):
        return pascal_masks(context, options, root)
    refuse_sbd(context.data)
    refuse_options(options, ("lists",), "VOC2012")
    data = open_items(context, "object")
    if isinstance(data, WorldItems):
        folds = by_fold(data, {label: n % FOLDS for n, label in enumerate(data.world.labels)})
        return Masks(data, "object_mask", folds, "drawn by the world; classes by their number mod 4", "test split")
    channel = next((name for name in MASKS if name in data.channels), None)
    if channel is None:
        raise UserError(
            f"{data.name} has no masks (channels: {', '.join(data.channels)}); expected images/CLASS/x.jpg with "
            "masks/CLASS/x.png beside, or VOC2012 with Pascal-5i's lists"
        )
    classes = sorted({label for i, label in enumerate(data.labels) if label and data.has(i, channel)})
    if not classes:
        raise UserError(f"{data.name} has masks but no classes; put pictures and masks into a folder for each class")
    runs = [run for run in np.array_split(np.array(classes), min(FOLDS, len(classes)))]
    folds = by_fold(data, {str(label): fold for fold, run in enumerate(runs) for label in run})
    mixed = channel != "segmentation"
    how = "bicubic, then what is more than half as bright as the brightest" if mixed else "nearest pixel"
    drawn = f"whatever is not black, resized: {how}; classes by name in four runs"
    return Masks(data, channel, folds, drawn, mixed=mixed)


def pascal_masks(context: Context, options: Options, root: Path) -> Masks:
    folds: list[int] = list(range(FOLDS)) if options.fold == "all" else [options.fold]
    data = open_fold_masks(root, str(context.data), options.lists, folds, context.size)
    items: dict[str, list[int]] = {f"fold{fold}": [] for fold in folds}
    for i, entry in enumerate(data.entries):
        items[f"fold{entry.annotation[0]}"].append(i)
    drawn = "other classes and void (255) are ground, as published"
    resize = "squashed to a square: pictures bicubic, masks bicubic and cut at half"
    return Masks(data, data.channels[-1], items, drawn, "the fold's val list, all of it", resize)


def by_fold(data: Annotated, fold_of: Mapping[str, int]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {f"fold{fold}": [] for fold in sorted(set(fold_of.values()))}
    for i, label in enumerate(data.labels):
        if label in fold_of:
            found[f"fold{fold_of[label]}"].append(i)
    return found


def make(context: Context, options: Options) -> Pascal5i:
    config = options.pairing(context)
    masks = open_masks(context, options)
    names = list(masks.folds) if options.fold == "all" else [f"fold{options.fold}"]
    for name in names:
        if not masks.folds.get(name):
            raise UserError(f"{name} of {masks.data.name} has no pictures; there are {', '.join(masks.folds)}")
    left_out = check_classes("pascal5i", masks.data, Task("pascal5i", "image", masks.channel, ""), config)
    asked = [name for name in names if any(masks.data.labels[i] not in left_out for i in masks.folds[name])]
    if not asked:
        raise UserError(f"no class of {names[0]} is left; use another fold, fewer pairs, or hold out more")
    colours = PALETTES[options.palette]
    drawn = Recoloured(masks.data, masks.channel, colours, masks.mixed)
    number = context.num_cases or EPISODES
    parts = []
    for name in asked:
        fold = Subset(drawn, masks.folds[name], f"{masks.data.name} {name}")
        task = Task(name, "image", masks.channel, f"Segmentation, {name}")
        part = PairCases(fold, [task], config, number, context.seed, True, context.encode)
        if number >= len(part.episodes[0].queries):
            part.episodes[0].queries.sort()  # gone through in the order of the list, as published
        parts.append(part)
    return Pascal5i(
        name="pascal5i",
        title="Few-shot segmentation",
        measures=MEASURES,
        cases=Joined(parts),
        judged=partial(judge, options.palette),
        settings=settings(masks, parts, options, config, context) | missing_controls(parts),
        published=PUBLISHED,
        broken=getattr(masks.data, "broken", ()),
        colours=colours,
    )


def judge(palette: str, case: Case, pictures: "Sequence[Picture]") -> dict[str, float]:
    colours = PALETTES[palette]
    return mask_scores(colours.read(pictures[0]), colours.read(case.truth[0]))


def settings(
    masks: Masks, parts: Sequence[PairCases], options: Options, config: PairingConfig, context: Context
) -> dict[str, Any]:
    task = Task("pascal5i", "image", masks.channel, "Segmentation")
    found = describe_pairs(masks.data, task, config, context)
    return found | {
        "held_out": masks.held_out or found["held_out"],
        **({"resize": masks.resize} if masks.resize else {}),
        "episodes": parts[0].num_cases,
        "classes": {part.tasks[0].name: counted(part) for part in parts},
        "masks": masks.drawn,
        "palette": options.palette,
        "colours": vars(PALETTES[options.palette]),
        "read_back": "the nearer of the two colours (L2), no colour shift",
        "queries": "in the order of the list where there are as many episodes as queries; else some in keyed order",
        "pairs_from": "other pictures of the query's class in its fold",
    }


def counted(part: PairCases) -> dict[str, str]:
    """Of each class: none of its pictures may be asked where too few others can stand before them."""
    labels = list(part.data.labels)
    asked = [labels[i] for i in part.episodes[0].queries]
    return {
        label: f"{asked.count(label)} of {labels.count(label)} pictures may be asked" for label in sorted(set(labels))
    }
