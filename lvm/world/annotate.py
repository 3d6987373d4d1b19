"""Exact annotations of a rendered scene, and the latents that a whole sentence shares."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.pictures import boxes, depth, derive, edges, normals, pieces, segmentation, skeletons
from lvm.runtime.hashing import seed_from
from lvm.world.figures import LIMBS
from lvm.world.render import FAR, NEAR, SUPERSAMPLING, Surfaces, halve, sampled, shade
from lvm.world.scene import CLASSES, KINDS, Scene, generator

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64, UInt8

STEADY_CHANNELS = ("image", "depth", "normal", "gray")  # the same under every latent: stored once, in view 0
LATENT_CHANNELS = ("segmentation", "edge", "box", "relit", "masked", "noisy", "dark")
# Steady too: pose where there are people, mask and keypoints of turntables (mask also of clips), solution of puzzles.
OBJECT_CHANNELS = ("object_mask", "object_box")  # of what a picture of a class shows, white on black
CHANNELS = STEADY_CHANNELS + LATENT_CHANNELS + ("pose", "mask", "keypoints", "solution") + OBJECT_CHANNELS
CLIP_CHANNELS = STEADY_CHANNELS + ("mask",) + LATENT_CHANNELS

_COLOURS = np.array(
    [
        [0, 0, 0],
        [255, 255, 255],
        [230, 30, 30],
        [30, 180, 40],
        [40, 70, 235],
        [250, 220, 30],
        [240, 60, 220],
        [40, 215, 225],
    ],
    np.uint8,
)
_TINTS = np.array([[1.15, 0.8, 0.5], [0.55, 0.85, 1.2], [1.1, 0.6, 1.1], [0.65, 1.1, 0.6]], np.float32)
_LINES = _COLOURS[[1, 5, 6, 7]]  # bright ones: seen on the photo and on black


@dataclass(frozen=True)
class Latent:
    """What the pairs of a sentence tell and its query does not."""

    number: int
    palette: "UInt8[np.ndarray, 'k 3']"  # the colour of each class
    line: "UInt8[np.ndarray, '3']"  # of edges and boxes
    light: "Float32[np.ndarray, '3']"  # unit vector to the light of `relit`
    tint: "Float32[np.ndarray, '3']"  # its colour
    strength: float  # of the degradations, in [0, 1]


def make_latents(seed: int, num_latents: int) -> list[Latent]:
    """Latent v of a world: no two share a palette."""
    rng = generator(seed, "latents")
    latents: list[Latent] = []
    taken: set[tuple[int, ...]] = set()
    while len(latents) < num_latents:
        order = rng.permutation(len(_COLOURS))[: len(CLASSES)]
        angle, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.6)
        line, tint = int(rng.integers(len(_LINES))), int(rng.integers(len(_TINTS)))
        strength = float(rng.uniform())
        shown = tuple(order[: 1 + len(KINDS)])
        if shown in taken:
            continue
        taken.add(shown)
        light = np.array([np.cos(angle), np.sin(angle), 0.0]) * np.sqrt(1 - height**2) + [0, 0, height]
        latents.append(
            Latent(len(latents), _COLOURS[order], _LINES[line], light.astype(np.float32), _TINTS[tint], strength)
        )
    return latents


def steady_channels(
    scene: Scene, surfaces: Surfaces, channels: Collection[str] = (*STEADY_CHANNELS, "pose")
) -> dict[str, "UInt8[np.ndarray, 'y x 3']"]:
    """Those of `channels` that are the same under every latent, and the photo as `image`."""
    photo = shade(scene, surfaces)
    _, forward, right, up = scene.camera.frame()
    in_camera = np.stack([right, up, -forward], 1)
    draw: dict[str, Callable[[], Any]] = {
        "image": lambda: photo,
        "depth": lambda: depth.draw(sampled(surfaces.depth), NEAR, FAR),
        "normal": lambda: normals.draw(sampled(surfaces.normal) @ in_camera),
        "gray": lambda: derive.gray(photo),
        "pose": lambda: skeletons.draw(visible_joints(scene, surfaces), LIMBS, np.zeros_like(photo)),
        "mask": lambda: segmentation.draw((sampled(surfaces.thing) >= 0).astype(np.int64), _COLOURS[:2]),
    }
    return {channel: drawn() for channel, drawn in draw.items() if channel in {"image", *channels}}


def latent_channels(
    scene: Scene,
    surfaces: Surfaces,
    photo: "UInt8[np.ndarray, 'y x 3']",
    latent: Latent,
    name: str,
    channels: Collection[str] = LATENT_CHANNELS,
) -> dict[str, "UInt8[np.ndarray, 'y x 3']"]:
    """Those of `channels` that depend on the latent; `name` (of the scene) keys holes and noise."""
    size = len(photo)
    seed = seed_from(name, latent.number)
    draw: dict[str, Callable[[], Any]] = {
        "segmentation": lambda: segmentation.draw(class_map(scene, surfaces), latent.palette),
        "edge": lambda: edges.draw(edge_strength(surfaces), latent.line),
        "box": lambda: boxes.draw(photo, visible_boxes(scene, surfaces), latent.line, max(2, round(size / 16))),
        "relit": lambda: shade(scene, surfaces, latent.light, latent.tint),
        "masked": lambda: derive.masked(photo, latent.strength, seed),
        "noisy": lambda: derive.noisy(photo, latent.strength, seed),
        "dark": lambda: derive.dark(photo, latent.strength),
    }
    return {channel: drawn() for channel, drawn in draw.items() if channel in channels}


def object_channels(
    surfaces: Surfaces, bodies: Collection[int], channels: Collection[str] = OBJECT_CHANNELS
) -> dict[str, "UInt8[np.ndarray, 'y x 3']"]:
    """What is seen of these bodies of a scene, white on black: its mask, and the box about it, filled."""
    seen = np.isin(sampled(surfaces.thing), list(bodies))
    ground = np.zeros((*seen.shape, 3), np.uint8)
    draw: dict[str, Callable[[], Any]] = {
        "object_mask": lambda: segmentation.draw(seen.astype(np.int64), _COLOURS[:2]),
        "object_box": lambda: boxes.draw_filled(ground, pieces.bounds(seen).values(), [1], _COLOURS[:2]),
    }
    return {channel: drawn() for channel, drawn in draw.items() if channel in channels}


def class_map(scene: Scene, surfaces: Surfaces) -> "Int64[np.ndarray, 'y x']":
    """0 background, 1 + kind for objects, the last class for people."""
    kinds = [1 + body.kind for body in scene.things] + [len(CLASSES) - 1] * len(scene.figures)
    of_thing = np.array(kinds + [0, 0])  # ids -1 and -2 index the end
    return of_thing[sampled(surfaces.thing)]


def visible_boxes(scene: Scene, surfaces: Surfaces, least: float = 0.004) -> list[tuple[int, int, int, int]]:
    """Boxes round what is seen of each object, (left, top, right, bottom); none for slivers under `least` of it."""
    ids = sampled(surfaces.thing)
    found = []
    for index in range(len(scene.things) + len(scene.figures)):
        ys, xs = np.nonzero(ids == index)
        if len(ys) >= max(4, least * ids.size):
            found.append((int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1))
    return found


def visible_joints(scene: Scene, surfaces: Surfaces) -> "list[Float32[np.ndarray, '14 2']]":
    """The joints of each person in pixels (x, y); NaN where out of the picture or behind something else."""
    position, forward, right, up = scene.camera.frame()
    half, n = np.tan(scene.camera.field_of_view / 2), len(surfaces.thing)
    people = []
    for index, figure in enumerate(scene.figures, len(scene.things)):
        towards = figure.joints() - position
        ahead = towards @ forward
        places: Any = np.stack([1 + towards @ right / ahead / half, 1 - towards @ up / ahead / half], 1) / 2 * n
        inside = ((places >= 0) & (places < n)).all(1)
        columns, rows = np.where(inside[:, None], places, 0).astype(np.int64).T
        hidden = (surfaces.thing[rows, columns] != index) & (surfaces.depth[rows, columns] < ahead)
        places[~inside | hidden] = np.nan
        people.append((places / SUPERSAMPLING).astype(np.float32))
    return people


def edge_strength(surfaces: Surfaces) -> "Float32[np.ndarray, 'y x']":
    """Outlines and creases, about 2 px wide at 48 px and in proportion above."""
    ids, normal = surfaces.thing, surfaces.normal
    mark = np.zeros(ids.shape, bool)
    for here, there in (
        ((slice(None, -1),), (slice(1, None),)),
        ((slice(None), slice(None, -1)), (slice(None), slice(1, None))),
    ):
        outline = ids[here] != ids[there]
        crease = (ids[here] >= 0) & ((normal[here] * normal[there]).sum(-1) < 0.6)
        mark[here] |= outline | crease
    size = len(ids) // SUPERSAMPLING
    for _ in range(max(1, round(size * SUPERSAMPLING / 64))):
        grown = mark.copy()
        grown[1:] |= mark[:-1]
        grown[:-1] |= mark[1:]
        grown[:, 1:] |= mark[:, :-1]
        grown[:, :-1] |= mark[:, 1:]
        mark = grown
    return halve(mark.astype(np.float32))
