"""Pictures of one thing of a named class on a ground, seen from anywhere: a single object, one on another, a person."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.world.figures import Figure, sample_figure
from lvm.world.scene import DEFAULT_LIGHT, KINDS, Camera, Scene, Thing, sample_scene

if TYPE_CHECKING:
    from jaxtyping import Float32

SPHERE, CUBE, CYLINDER, CONE = range(len(KINDS))
_STACKS = tuple((upper, lower) for upper in range(len(KINDS)) for lower in range(len(KINDS)) if upper != lower)
OBJECT_CLASSES = KINDS + tuple(f"{KINDS[upper]} on {KINDS[lower]}" for upper, lower in _STACKS) + ("person",)
PERSON = len(OBJECT_CLASSES) - 1
DISTRACTED = 0.3  # the share of pictures with a small second object


def sample_object(rng: np.random.Generator, label: int) -> Scene:
    """A scene about one thing of class `label`, which comes first in it; it fills about half of the picture."""
    camera = Camera(
        azimuth=float(rng.uniform(-np.pi, np.pi)),
        height=float(rng.uniform(1.5, 3.6)),
        distance=float(rng.uniform(5.2, 6.8)),
    )
    across = 2 * np.tan(camera.field_of_view / 2) * camera.distance  # of the picture, where the thing stands
    extent = float(rng.uniform(0.48, 0.72) * across)
    ground = sample_scene(rng, (1, 1))
    distractor = ground.things[0] if rng.uniform() < DISTRACTED else None
    things: tuple[Thing, ...] = ()
    figures: tuple[Figure, ...] = ()
    if label == PERSON:
        figure = replace(sample_figure(rng), x=0.0, y=0.0, height=0.95 * extent)
        figures, reach, height = (figure,), 0.35 * extent, 0.95 * extent
    else:
        things = _stand(rng, label)
        reach = max(body.radius * (1.41 if body.kind == CUBE else 1.0) for body in things)
        height = max(body.z + body.height for body in things)
        scale = extent / max(height, 2 * reach)
        things = tuple(_scaled(body, scale) for body in things)
        reach, height = scale * reach, scale * height
    room = (across - extent) / 2
    right, aside = rng.uniform(-0.6, 0.6, 2) * room
    camera = replace(
        camera,
        target=(
            float(right * np.cos(camera.azimuth)),
            float(right * np.sin(camera.azimuth)),
            float(max(0.3, 0.46 * height + 0.6 * aside)),
        ),
    )
    if distractor is not None:
        things += (_beside(rng, distractor, camera, reach, extent),)
    light = _turned(DEFAULT_LIGHT, camera.azimuth + float(rng.uniform(-0.9, 0.9)))  # from before the thing
    return replace(ground, things=things, figures=figures, camera=camera, light=light)


def bodies_of_class(scene: Scene, label: int) -> range:
    """The numbers that the thing of class `label` has among the scene's surfaces."""
    if label == PERSON:
        return range(len(scene.things), len(scene.things) + len(scene.figures))
    return range(1 if label < len(KINDS) else 2)


def _turned(vector: "Float32[np.ndarray, '3']", angle: float) -> tuple[float, float, float]:
    """About the vertical."""
    x, y, z = vector.tolist()
    return float(x * np.cos(angle) - y * np.sin(angle)), float(x * np.sin(angle) + y * np.cos(angle)), z


def _stand(rng: np.random.Generator, label: int) -> tuple[Thing, ...]:
    """The one or two bodies of a class, at the origin, of any size."""
    if label < len(KINDS):
        return (_body(rng, label, 1.0),)
    upper, lower = _STACKS[label - len(KINDS)]
    below = _body(rng, lower, 1.0)
    above = _body(rng, upper, float(rng.uniform(0.75, 0.95)))
    if lower == CONE:  # over its tip: a ball rests on it, the others are pierced
        sunk = above.radius * 0.3 if upper == SPHERE else 0.3 * below.height
    elif lower == SPHERE:
        sunk = 0.12 if upper == SPHERE else 0.22
    else:
        sunk = 0.1 * above.radius if upper == SPHERE else 0.0
    return below, replace(above, z=below.height - sunk)


def _body(rng: np.random.Generator, kind: int, radius: float) -> Thing:
    height = {SPHERE: 2.0, CUBE: 1.7, CYLINDER: rng.uniform(1.7, 2.4), CONE: rng.uniform(1.9, 2.6)}[kind] * radius
    return Thing(
        kind=kind,
        x=0.0,
        y=0.0,
        radius=radius * (0.85 if kind == CUBE else 1.0),
        height=float(height),
        yaw=float(rng.uniform(0, np.pi / 2)),
        lightness=float(rng.uniform(0.7, 1.2)),
    )


def _scaled(body: Thing, scale: float) -> Thing:
    return replace(body, radius=scale * body.radius, height=scale * body.height, z=scale * body.z)


def _beside(rng: np.random.Generator, body: Thing, camera: Camera, reach: float, extent: float) -> Thing:
    """A body made small and put at the side of what stands at the origin, or behind it."""
    body = _scaled(body, float(rng.uniform(0.09, 0.14)) * extent / body.radius)
    angle = camera.azimuth + rng.choice([-1, 1]) * rng.uniform(0.2, 0.45) * np.pi
    away: Any = reach + body.radius * float(rng.uniform(1.5, 3.5))
    return replace(body, x=float(-away * np.sin(angle)), y=float(away * np.cos(angle)))
