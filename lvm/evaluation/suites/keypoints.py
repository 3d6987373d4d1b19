"""keypoints: where an object's keypoints are, painted on it as red dots, or a person's joints, painted as a skeleton.

    world (no --data)       turntables with red dots (`keypoints`), people with a colour for each joint (`pose`)
    a source of files       channel `keypoints` (red dots on the picture), channel `pose` (skeletons of one person)
    FILE.jsonl              objects with boxes and keypoints, Pascal3D+ after a conversion (datasets/keypoint_lines.py)

Dots of one colour do not say which keypoint they are: those of the answer and of the truth are matched one to one.
Correct is within a tenth of the larger side of the object's bounding box (PCK@0.1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.evaluation import point_measures as pm
from lvm.evaluation.annotated import Annotated, SourceItems, WorldItems
from lvm.evaluation.cases import RIGHT, Case, Measure, Published
from lvm.evaluation.datasets.keypoint_lines import KeypointLines, refuse_matlab
from lvm.evaluation.pairing import PairCases, missing_controls
from lvm.evaluation.parts import Joined
from lvm.evaluation.suites.base import Context, PairOptions, describe_pairs, open_data
from lvm.evaluation.tasks import Task
from lvm.pictures import keypoints, skeletons
from lvm.runtime import UserError
from lvm.sources import Source
from lvm.sources.collection import CollectionSource
from lvm.sources.manifest import ManifestSource, as_people, look_up
from lvm.sources.world import WorldSource
from lvm.world.figures import JOINTS, LIMBS

if TYPE_CHECKING:
    from jaxtyping import Float

    from lvm.evaluation.cases import Picture

DOTS = Task("keypoints", "image", "keypoints", "Keypoints")
POSE = Task("pose", "image", "pose", "Joints")
CORRECT, ALSO = 0.1, 0.2  # of the box's larger side

MEASURES = (
    Measure(
        "pck_0.1",
        True,
        about="share of the true points within 0.1 of the larger side of the object's box; keypoints: the answer's "
        "clearest points, at most as many as are true, matched one to one by the least total distance, one without a "
        "match is wrong; pose: joint by joint",
    ),
    Measure("pck_0.2", True, about="the same within 0.2"),
    Measure(
        "distance",
        False,
        "box sides",
        "mean over true points, in the box's larger side; at most 1, which is also what a missed one counts",
    ),
    Measure(
        "precision",
        True,
        about="keypoints: share of all points of the answer that are correct at 0.1; of an answer without any left out",
    ),
    Measure("points", True, about="true points of the case, the same for every answer"),
)
CAVEAT = (
    "Pascal3D+, unseen in training; crops, pairs and how points were read are not published, the others were trained "
    "for it and name each keypoint. This model's: over all points of all pictures with red dots (over_points; the mean "
    "over classes is in mean_of_labels), matched without names, with BOS where its prompts have it"
)
PUBLISHED = tuple(
    Published(name, {"pck_0.1": score}, "section 4.2", CAVEAT)
    for name, score in (("LVM", 0.812), ("Stacked Hourglass", 0.680), ("MSS-Net", 0.689), ("StarMap", 0.786))
)


@dataclass(frozen=True)
class Options(PairOptions):
    only: tuple[str, ...] = ()  # keypoints, pose; empty: both, where the data have them
    same_label: bool = False  # pairs are of the query's class
    least: float = 0.15  # of the way from the query to red, for a dot of an answer
    joints: int = 0  # of a skeleton, where the source does not say
    limbs: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.least < 1:
            raise UserError(f"least {self.least} must lie between 0 and 1: a share of the way from the query to red")


@dataclass(frozen=True)
class Truth:
    points: "Float[np.ndarray, 'k 2']"  # a joint that is not shown is NaN
    reach: float  # the larger side of the box, in pixels


class KeypointSuite:
    name, title = "keypoints", "Keypoints"
    measures: Sequence[Measure] = MEASURES
    published: Sequence[Published] = PUBLISHED

    def __init__(self, context: Context, options: Options):
        config = options.pairing(context)
        found, self._skeleton = open_parts(context, options)
        number, alike = context.num_cases or 200, options.same_label
        self._cases = Joined(
            PairCases(data, [task], config, number, context.seed, alike, context.encode) for data, task in found
        )
        parts = self._cases.parts
        self._data = {task.name: data for data, task in found}
        self.broken = self._cases.broken
        self._least = options.least
        half = keypoints.default_half(context.size, context.size)
        data, fingerprints = zip(*((part.data.name, part.data.fingerprint()) for part in parts))
        self.settings = {
            **describe_pairs(parts[0].data, None, config, context),
            **missing_controls(parts),
            "data": list(data),
            "data_fingerprint": list(fingerprints),
            "tasks": [task.name for _, task in found],
            "same_label": alike,
            "correct_within": [CORRECT, ALSO],
            "keypoints_read": f"squares of {2 * half + 1} pixels that on the mean have gone {self._least} of the way "
            "from the query to red, the clearest first, none within a square of another",
            "keypoints_of_truth": "its coordinates; where they are not known, connected pieces of red of its untouched "
            "picture, centres of their boxes",
            "joints_read": "the place nearest to each joint's colour; the truth's from its untouched picture",
            "skeleton": None if self._skeleton is None else dict(zip(("joints", "limbs"), self._skeleton)),
            "box": "of the channel mask, of the line, or of what differs from the rim by "
            f"{pm.GROUND} in RGB; of joints, what bounds those that are shown",
        }

    def __len__(self) -> int:
        return len(self._cases)

    def case(self, i: int) -> Case:
        case = self._cases.case(i)
        return replace(case, facts={**case.facts, "truth": self._truth(case)})

    def _truth(self, case: Case) -> Truth:
        data, query = self._data[case.task], case.facts["item"]
        if isinstance(data, KeypointLines):
            return Truth(data.points(query), pm.larger_side(data.box(query)))
        shown = case.facts["query"]
        if case.task == POSE.name:
            assert self._skeleton is not None
            joints = skeletons.read(shown["pose"], *self._skeleton)
            known = joints[np.isfinite(joints).all(-1)]
            return Truth(joints, max(1.0, float(np.ptp(known, axis=0).max())) if len(known) else 1.0)
        inside = shown["mask"].max(-1) > 127 if "mask" in shown else pm.off_ground(shown["image"])
        box = pm.box_of(inside) or (0, 0, inside.shape[1], inside.shape[0])
        return Truth(keypoints.read(shown["keypoints"], photo=shown["image"]), pm.larger_side(box))

    def judge(self, case: Case, pictures: "Sequence[Picture]") -> Mapping[str, float]:
        truth: Truth = case.facts["truth"]
        if case.task == POSE.name:
            distances = pm.named(skeletons.find(pictures[0], len(truth.points)), truth.points)
            right = float("nan")
        else:
            found = keypoints.find(pictures[0], case.facts["query"]["image"], least=self._least)
            distances = pm.matched(found[: len(truth.points)], truth.points)
            of_all = pm.matched(found, truth.points)
            right = pm.precision(of_all, len(found), truth.reach, CORRECT)
        return {
            "pck_0.1": pm.pck(distances, truth.reach, CORRECT),
            "pck_0.2": pm.pck(distances, truth.reach, ALSO),
            "distance": pm.mean_distance(distances, truth.reach),
            "precision": right,
            "points": float(len(distances)),
        }

    def over_all(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """PCK over all points, as evaluations of keypoints count: of each class, and their mean."""
        by_label: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            by_label.setdefault(row["label"], []).append(row)
        of_label = {label: pooled(found) for label, found in by_label.items()}
        report: dict[str, Any] = {"over_points": pooled(rows)}
        if len(of_label) > 1:
            report["over_points_by_label"] = of_label
            report["mean_of_labels"] = {
                name: float(np.mean([found[name] for found in of_label.values() if name in found]))
                for name in report["over_points"]
            }
        return report

    def ours(self, tasks: Mapping[str, Any]) -> Mapping[str, float | None]:
        """Of the dots over all points: a mean over pictures counts those with few points for as much."""
        return {"pck_0.1": tasks.get(DOTS.name, {}).get("over_points", {}).get(RIGHT)}


def pooled(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """PCK@0.1 over the points of all rows, by condition and baseline."""
    given: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        scored = {name: found.get("scores") for name, found in row["conditions"].items()}
        for name, scores in {**scored, **row["baselines"]}.items():
            if scores and scores.get("pck_0.1") is not None:
                given.setdefault(name, []).append((scores["pck_0.1"], scores["points"]))
    found = {name: np.array(pairs) for name, pairs in given.items()}  # [cases, (share, points)]
    return {name: float(np.average(pairs[:, 0], weights=pairs[:, 1])) for name, pairs in found.items()}


# What the data hold.


def open_parts(context: Context, options: Options) -> "tuple[list[tuple[Annotated, Task]], tuple[int, int] | None]":
    """(pictures, task) of each part, and the numbers of joints and limbs of skeletons. Raises `UserError`."""
    for name in options.only:
        if name not in (DOTS.name, POSE.name):
            raise UserError(f"only has {name!r}; keypoints knows {DOTS.name} and {POSE.name}")
    wanted = [task for task in (DOTS, POSE) if task.name in (options.only or (DOTS.name, POSE.name))]
    path = Path(context.data or "").expanduser()
    if path.suffix == ".jsonl":
        return [(KeypointLines(path, context.size, context.kept_out), DOTS)], None
    if context.data is not None and path.is_dir():
        refuse_matlab(path)
    source = open_data(context)
    found: list[tuple[Annotated, Task]]
    if isinstance(source, WorldSource):
        found = world_parts(source, context.size, wanted)
    else:
        data = SourceItems(source, context.size, context.kept_out, context.seed, context.workers)
        found = [(data, task) for task in wanted if task.output in data.channels]
    if not found:
        raise UserError(
            f"{source.name} has no {' or '.join(task.output for task in wanted)} to ask about; it holds "
            f"{', '.join(source.channels)}. Give pictures with red dots in a folder keypoints (channels), skeletons, "
            "or a FILE.jsonl of boxes and keypoints"
        )
    if not any(task is POSE for _, task in found):
        return found, None
    skeleton = (options.joints, options.limbs) if options.joints else skeleton_of(source)
    if skeleton is None:
        raise UserError(f"{source.name} does not say how its skeletons are made; set joints=K limbs=L")
    return found, skeleton


def world_parts(world: WorldSource, size: int, wanted: Sequence[Task]) -> list[tuple[Annotated, Task]]:
    found: list[tuple[Annotated, Task]] = []
    if DOTS in wanted and world.counts["turntable"] and "keypoints" in world.channels:
        found.append((WorldItems(world, "turntable", size), DOTS))
    if POSE in wanted and world.counts["object"] and "pose" in world.channels:
        found.append((WorldItems(world, "object", size), POSE))
    return found


def skeleton_of(source: Source) -> tuple[int, int] | None:
    """How many joints and limbs its skeletons have; None if it does not say, or in several ways."""
    if isinstance(source, WorldSource):
        return len(JOINTS), len(LIMBS)
    if isinstance(source, ManifestSource) and source.config.keypoints:
        for line in source.lines:
            joints = look_up(line, source.config.keypoints) if not isinstance(line, str) else None
            people = as_people(joints, ()) if joints else []
            if people:
                return len(people[0]), len(source.config.limbs)
    if isinstance(source, CollectionSource):
        found = {skeleton for part in source.sources.values() if (skeleton := skeleton_of(part))}
        return found.pop() if len(found) == 1 else None
    return None


def make(context: Context, options: Options) -> KeypointSuite:
    return KeypointSuite(context, options)
