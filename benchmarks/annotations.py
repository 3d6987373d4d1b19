"""What annotations still say after a tokenizer: python -m benchmarks.annotations [tokenizer=NAME count=64 json=FILE]

Each annotation of test scenes of the world with people in them is drawn, encoded, decoded and read back, and what was
read is compared with what was annotated. `drawn` is the score without the tokenizer, which drawing and reading alone
lose. No model that answers in this tokenizer's codes can be expected to score higher than `decoded`.

Poses and keypoints come from scenes of one person; keypoints are red dots on the photo, any of them for any other.
Derived channels are compared by PSNR with their own picture.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.evaluation.annotations import (
    class_miou,
    depth_scores,
    instance_miou,
    iou,
    matched_iou,
    mean_degrees,
    pck,
)
from lvm.evaluation.measures import psnr, tolerant_f1
from lvm.evaluation.point_measures import matched
from lvm.evaluation.point_measures import pck as near
from lvm.pictures import boxes, depth, derive, edges, instances, keypoints, normals, segmentation, skeletons
from lvm.runtime import UserError, build, exit_with_one_line, write_json
from lvm.runtime.hashing import seed_from
from lvm.runtime.machine import git_commit, machine_description
from lvm.sources.world import WorldConfig, WorldSource
from lvm.world.annotate import (
    class_map,
    edge_strength,
    latent_channels,
    sampled,
    steady_channels,
    visible_boxes,
    visible_joints,
)
from lvm.world.figures import LIMBS
from lvm.world.render import FAR, NEAR, cast
from tokenizer import VQGAN, BulkEncoder

if TYPE_CHECKING:
    from jaxtyping import UInt8

LEAST_PIXELS = 16  # of a decoded box at 256 pixels; smaller specks are not read
PCK_SHARE = 0.1  # of the longer side of a person's box


@dataclass(frozen=True)
class Options:
    tokenizer: str = "photos-256px-f16-8192"  # a shipped one or a path
    count: int = 64  # scenes of each kind
    json: Path | None = None


@dataclass(frozen=True)
class Drawing:
    """One annotation as a picture; `score` reads a picture of the same size and compares with the annotation."""

    channel: str
    picture: "UInt8[np.ndarray, 'y x 3']"
    score: Callable[["UInt8[np.ndarray, 'y x 3']"], dict[str, float]]


def of_scene(source: WorldSource, i: int, size: int) -> list[Drawing]:
    """All but joints; the latent (palette, line colour, strength) is one of the source's, by turns."""
    scene, name, latent = source.scene(i), source.unit_id(i), source.latents[i % len(source.latents)]
    surfaces = cast(scene, size)
    steady = steady_channels(scene, surfaces)
    photo, black = steady["image"], np.zeros_like(steady["image"])
    latents = latent_channels(scene, surfaces, photo, latent, name)

    classes, things = class_map(scene, surfaces), np.maximum(sampled(surfaces.thing).astype(int) + 1, 0)
    colours = segmentation.PALETTE[: 1 + len(np.unique(things[things > 0]))]
    depths = np.where(sampled(surfaces.depth) < FAR, sampled(surfaces.depth), np.nan)
    _, forward, right, up = scene.camera.frame()
    vectors = sampled(surfaces.normal) @ np.stack([right, up, -forward], 1)
    lines = edge_strength(surfaces) > 0.5
    outlined = visible_boxes(scene, surfaces)
    apart = [box for n, box in enumerate(outlined) if not any(iou(box, other) for other in outlined[:n])]
    least = max(1, LEAST_PIXELS * size**2 // 256**2)

    thick, thin = max(2, round(size / 16)), max(2, round(size / 64))  # as the world draws them, and as detectors do

    def box_iou(width: int) -> Any:
        return lambda p: {"iou": matched_iou(boxes.read(p, latent.line, photo, width, least), outlined)}

    def psnr_of(picture: Any) -> Any:
        return lambda decoded: {"psnr": psnr(decoded, picture)}

    found = [
        Drawing(
            "segmentation",
            latents["segmentation"],
            lambda p: {"miou": class_miou(segmentation.read(p, latent.palette), classes)},
        ),
        Drawing(
            "instance",
            instances.draw(things, colours),
            lambda p: {"miou": instance_miou(instances.read(p, colours), things)},
        ),
        Drawing("depth", steady["depth"], lambda p: depth_scores(depth.read(p, NEAR, FAR), depths)),
        Drawing("normal", steady["normal"], lambda p: {"degrees": mean_degrees(normals.read(p), vectors)}),
        Drawing("edge", latents["edge"], lambda p: {"f1": tolerant_f1(edges.read(p, latent.line, (0, 0, 0)), lines)}),
        Drawing("box", latents["box"], box_iou(thick)),
        Drawing("box, thin", boxes.draw(photo, outlined, latent.line, thin), box_iou(thin)),
        Drawing(
            "box, filled",
            boxes.draw_filled(black, apart, range(1, len(apart) + 1)),
            lambda p: {"iou": matched_iou(boxes.read_filled(p, segmentation.PALETTE[:16], least=least)[0], apart)},
        ),
    ]
    plain = {"image": photo, "gray": steady["gray"], "relit": latents["relit"]}
    degraded = {
        name: derive.derive(name, photo, latent.strength, seed_from(source.unit_id(i), name))
        for name in derive.DEGRADATIONS
        if name != "gray"
    }
    return found + [Drawing(name, picture, psnr_of(picture)) for name, picture in (plain | degraded).items()]


def of_person(source: WorldSource, i: int, size: int) -> list[Drawing]:
    """The joints of the one person in a scene; none where too little is seen of it."""
    scene = source.scene(i)
    surfaces = cast(scene, size)
    people = visible_joints(scene, surfaces)
    if not people or np.isfinite(people[0]).all(1).sum() < 2:
        return []
    joints, photo = people[0], steady_channels(scene, surfaces)["image"]
    shown = joints[np.isfinite(joints).all(1)]
    reach = PCK_SHARE * float(np.ptp(shown, axis=0).max())
    return [
        Drawing(
            "pose",
            skeletons.draw(people, LIMBS, np.zeros_like(photo)),
            lambda p: {"pck": pck(skeletons.find(p, len(joints)), joints, reach)},
        ),
        Drawing(
            "keypoints",
            keypoints.draw(photo, shown),
            lambda p: {"pck": near(matched(keypoints.find(p, photo)[: len(shown)], shown), reach, 1.0)},
        ),
    ]


def measure(vq: VQGAN, count: int) -> dict[str, dict[str, dict[str, float]]]:
    """Channel -> metric -> {drawn, decoded}, means over `count` scenes with up to three people and `count` with one."""
    size, bulk = vq.config.resolution, BulkEncoder(vq, precision="exact", batch_size=32)
    crowds = WorldSource(WorldConfig(num_figures=(1, 3), split="test"))
    # few objects: among many there is seldom room for a person
    alone = WorldSource(WorldConfig(num_figures=(1, 1), num_things=(1, 2), split="test"))
    values: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for i in range(count):
        drawings = of_scene(crowds, i, size) + of_person(alone, i, size)
        decoded = bulk.decode(bulk.encode(np.stack([drawing.picture for drawing in drawings])))
        for drawing, picture in zip(drawings, decoded):
            before, after = drawing.score(drawing.picture), drawing.score(picture)
            for metric in before:
                pairs = values.setdefault(drawing.channel, {}).setdefault(metric, [])
                pairs.append((before[metric], after[metric]))
    return {
        channel: {
            metric: dict(zip(("drawn", "decoded"), np.nanmean(np.array(pairs), axis=0).tolist()))
            for metric, pairs in metrics.items()
        }
        for channel, metrics in values.items()
    }


def run(options: Options) -> dict[str, Any]:
    if options.count < 1:
        raise UserError(f"count {options.count} must be at least 1")
    vq = VQGAN.from_pretrained(options.tokenizer)
    scores = measure(vq, options.count)
    print(f"{options.tokenizer}, {options.count} scenes of {vq.config.resolution} pixels\n")
    print(f"{'channel':14s} {'metric':10s} {'drawn':>8s} {'decoded':>8s}")
    for channel, metrics in scores.items():
        for metric, pair in metrics.items():
            print(f"{channel:14s} {metric:10s} {pair['drawn']:8.3f} {pair['decoded']:8.3f}")
    report = {
        "tokenizer": options.tokenizer,
        "fingerprint": vq.fingerprint,
        "count": options.count,
        "channels": scores,
        "machine": machine_description(),
        "commit": git_commit(),
    }
    if options.json is not None:
        write_json(options.json, report)
    return report


def main() -> None:
    wrong = next((argument for argument in sys.argv[1:] if "=" not in argument), None)
    if wrong is not None:
        raise UserError(f"{wrong!r} is not key=value; e.g. count=16")
    values: dict[str, Any] = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if "count" in values:
        try:
            values["count"] = int(values["count"])
        except ValueError:
            raise UserError(f"count {values['count']!r} is no whole number") from None
    run(build(Options, values))


if __name__ == "__main__":
    exit_with_one_line(main)
