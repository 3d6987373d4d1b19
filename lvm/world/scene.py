"""What is in a picture of the world: cameras, objects, grounds, lights, drawn from (seed, index) alone.

Lengths are in world units (an object is about one across), the ground is z = 0, angles are radians.
Colour follows kind (spheres red, cubes blue, ...), so that a gray picture says what its colours were.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lvm.runtime.hashing import seed_from
from lvm.world.figures import Figure, sample_figure

KINDS = ("sphere", "cube", "cylinder", "cone")
CLASSES = ("background",) + KINDS + ("figure",)
TEXTURES = ("plain", "checker", "stripes", "dots")

# Linear RGB of each kind; a scene varies lightness only.
KIND_COLOURS = np.array([[0.86, 0.16, 0.14], [0.15, 0.33, 0.85], [0.16, 0.65, 0.22], [0.93, 0.70, 0.12]], np.float32)
FIGURE_COLOUR = np.array([0.55, 0.28, 0.62], np.float32)
# Two tones for each texture.
GROUND_COLOURS = np.array(
    [
        [[0.62, 0.55, 0.46], [0.62, 0.55, 0.46]],
        [[0.62, 0.64, 0.70], [0.46, 0.48, 0.55]],
        [[0.52, 0.60, 0.46], [0.40, 0.48, 0.35]],
        [[0.64, 0.54, 0.60], [0.50, 0.40, 0.47]],
    ],
    np.float32,
)
DEFAULT_LIGHT = np.array([-0.45, -0.55, 0.70], np.float32) / np.float32(np.linalg.norm([-0.45, -0.55, 0.70]))


@dataclass(frozen=True)
class Camera:
    azimuth: float = 0.0  # about the vertical; 0 looks along +y
    height: float = 2.6
    distance: float = 6.0  # from the point it looks at, along the ground
    target: tuple[float, float, float] = (0.0, 0.0, 0.75)
    field_of_view: float = 0.62  # the full angle, in both directions: pictures are square

    def frame(self) -> tuple[Any, Any, Any, Any]:
        """Position and the unit vectors forward, right, up."""
        target = np.array(self.target, np.float32)
        behind = np.array([np.sin(self.azimuth), -np.cos(self.azimuth), 0.0], np.float32) * np.float32(self.distance)
        position = target + behind + np.array([0, 0, self.height - self.target[2]], np.float32)
        forward = target - position
        forward /= np.linalg.norm(forward)
        right = np.array([np.cos(self.azimuth), np.sin(self.azimuth), 0.0], np.float32)
        return position, forward, right, np.cross(right, forward).astype(np.float32)


@dataclass(frozen=True)
class Thing:
    kind: int  # index into KINDS
    x: float
    y: float
    radius: float  # half its width
    height: float
    yaw: float
    lightness: float  # factor on the colour of its kind
    z: float = 0.0  # height of its lowest point above the ground


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]
    texture: int
    texture_scale: float
    texture_yaw: float
    ground_lightness: float
    sky: tuple[float, float, float]
    figures: tuple[Figure, ...] = ()
    camera: Camera = field(default_factory=Camera)
    light: tuple[float, float, float] = (float(DEFAULT_LIGHT[0]), float(DEFAULT_LIGHT[1]), float(DEFAULT_LIGHT[2]))


def generator(seed: int, *names: int | str) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(seed_from(seed, *names)))


def sample_scene(
    rng: np.random.Generator,
    num_things: tuple[int, int],
    size: tuple[float, float] = (0.5, 0.95),
    num_figures: tuple[int, int] = (0, 0),
) -> Scene:
    """A scene of between `num_things[0]` and `num_things[1]` objects that stand apart, and of people among them; later
    ones may be hidden."""
    wanted = int(rng.integers(num_things[0], num_things[1] + 1))
    things: list[Thing] = []
    for _ in range(40 * wanted):
        if len(things) == wanted:
            break
        thing = sample_thing(rng, size)
        if all(np.hypot(thing.x - o.x, thing.y - o.y) > 0.85 * (thing.radius + o.radius) for o in things):
            things.append(thing)
    texture = int(rng.integers(len(TEXTURES)))
    sky = np.array([0.55, 0.70, 0.92]) * rng.uniform(0.92, 1.06)
    scene = Scene(
        things=tuple(things),
        texture=texture,
        texture_scale=float(rng.uniform(1.5, 2.4)),
        texture_yaw=float(rng.uniform(0, np.pi)),
        ground_lightness=float(rng.uniform(0.85, 1.1)),
        sky=(float(sky[0]), float(sky[1]), float(sky[2])),
        camera=Camera(height=float(rng.uniform(2.3, 3.1))),
    )
    if not num_figures[1]:
        return scene
    figures: list[Figure] = []
    wanted = int(rng.integers(num_figures[0], num_figures[1] + 1))
    for _ in range(40 * wanted):
        if len(figures) == wanted:
            break
        figure = sample_figure(rng)
        places = [(o.x, o.y, o.radius) for o in things] + [(o.x, o.y, 0.25 * o.height) for o in figures]
        if all(np.hypot(figure.x - x, figure.y - y) > 0.25 * figure.height + reach for x, y, reach in places):
            figures.append(figure)
    return replace(scene, figures=tuple(figures))


def sample_thing(rng: np.random.Generator, size: tuple[float, float]) -> Thing:
    kind = int(rng.integers(len(KINDS)))
    radius = float(rng.uniform(*size))
    height = 2 * radius if kind in (0, 1) else radius * float(rng.uniform(2.0, 2.8))
    return Thing(
        kind=kind,
        x=float(rng.uniform(-1.5, 1.5)),
        y=float(rng.uniform(-1.4, 1.7)),
        radius=radius * (0.85 if kind == 1 else 1.0),
        height=height * (0.85 if kind == 1 else 1.0),
        yaw=float(rng.uniform(0, np.pi / 2)),
        lightness=float(rng.uniform(0.75, 1.15)),
    )


MOTIONS = ("slide", "orbit", "bounce", "cross", "pan")


def sample_clip(rng: np.random.Generator, num_frames: int, num_things: tuple[int, int]) -> tuple[str, list[Scene]]:
    """A motion and the scene at each frame. Objects move about a tenth of the picture a frame.

    slide: straight, turning back at the rim; orbit: about the centre; bounce: up and down; cross: one passes before
    another; pan: the camera goes round.
    """
    motion = MOTIONS[int(rng.integers(len(MOTIONS)))]
    still = sample_scene(rng, num_things, size=(0.45, 0.75))
    times = np.arange(num_frames)
    if motion == "pan":
        start, speed = rng.uniform(0, 2 * np.pi), rng.choice([-1, 1]) * rng.uniform(0.12, 0.22)
        return motion, [replace(still, camera=replace(still.camera, azimuth=float(start + speed * t))) for t in times]
    things = list(still.things)
    if motion == "cross":
        things = [replace(things[0], x=float(rng.uniform(-0.4, 0.4)), y=1.2)] + [sample_thing(rng, (0.45, 0.65))]
        things[1] = replace(things[1], y=-0.5)
    mover = len(things) - 1
    tracks = [[replace(thing) for _ in times] for thing in things]
    thing = things[mover]
    if motion in ("slide", "cross"):
        offset, speed = rng.uniform(-1.6, 1.6), rng.choice([-1, 1]) * rng.uniform(0.32, 0.5)
        swept = offset + 1.6 + speed * times
        xs = np.abs((swept % 6.4) - 3.2) - 1.6
        tracks[mover] = [replace(thing, x=float(x)) for x in xs]
    elif motion == "orbit":
        phase, speed = rng.uniform(0, 2 * np.pi), rng.choice([-1, 1]) * rng.uniform(0.3, 0.5)
        for i in range(len(things)):
            angles = phase + 2 * np.pi * i / len(things) + speed * times
            tracks[i] = [replace(things[i], x=float(1.3 * np.cos(a)), y=float(1.3 * np.sin(a))) for a in angles]
    elif motion == "bounce":
        phase, period, top = rng.uniform(0, 1), rng.uniform(6, 9), rng.uniform(1.1, 1.6)
        part = (phase + times / period) % 1
        tracks[mover] = [replace(thing, z=float(top * 4 * p * (1 - p))) for p in part]
    return motion, [replace(still, things=tuple(track[t] for track in tracks)) for t in times]
