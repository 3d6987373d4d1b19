"""Objects of two to five bodies stuck to each other, scaled to a bounding sphere of diameter 1 about the origin."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.world.render import intersect
from lvm.world.scene import KINDS, Thing

if TYPE_CHECKING:
    from jaxtyping import Float, Float32

MOST_POINTS = 6
SPHERE, CUBE, CYLINDER, CONE = range(len(KINDS))
# Linear RGB of parts, none of them near the red of keypoints.
PART_COLOURS = np.array(
    [
        [0.16, 0.36, 0.90],
        [0.14, 0.62, 0.26],
        [0.95, 0.74, 0.14],
        [0.52, 0.28, 0.70],
        [0.12, 0.68, 0.72],
        [0.82, 0.80, 0.76],
    ],
    np.float32,
)


@dataclass(frozen=True)
class Part:
    """A body whose base is at `base` and which extends along `up`."""

    kind: int  # index into KINDS
    base: tuple[float, float, float]
    up: tuple[float, float, float]  # unit vector
    yaw: float  # about `up`
    radius: float
    height: float
    colour: int  # index into PART_COLOURS

    @cached_property
    def axes(self) -> "Float32[np.ndarray, '3 3']":
        """The part's own x, y and z (its `up`) as columns."""
        z = np.array(self.up)
        level = np.cross([0.0, 1.0, 0.0] if abs(z[1]) < 0.9 else [1.0, 0.0, 0.0], z)
        level /= np.linalg.norm(level)
        x = np.cos(self.yaw) * level + np.sin(self.yaw) * np.cross(z, level)
        return np.stack([x, np.cross(z, x), z], 1).astype(np.float32)

    def place(self, points: Any) -> Any:
        """Points of its own frame in that of the object."""
        return np.array(self.base, np.float32) + np.asarray(points, np.float32) @ self.axes.T

    def intersect(self, position: Any, rays: Any) -> tuple[Any, Any]:
        """As `lvm.world.render.intersect`."""
        body = Thing(self.kind, 0.0, 0.0, self.radius, self.height, 0.0, 1.0)
        t, normal = intersect(body, (position - np.array(self.base, np.float32)) @ self.axes, rays @ self.axes)
        return t, normal @ self.axes.T

    def bounds(self) -> tuple[Any, Any]:
        """The least and the greatest corner of a box about it."""
        corners = self.place(_corners(self))
        return corners.min(0), corners.max(0)


def _corners(part: Part) -> "list[tuple[float, float, float]]":
    sides = -part.radius, part.radius
    return [(x, y, z) for x in sides for y in sides for z in (0.0, part.height)]


def assemble(rng: np.random.Generator, num_parts: int) -> tuple[Part, ...]:
    """A trunk and what sticks to it or to what sticks to it; never all on one vertical line."""
    while True:
        kind = int(rng.choice([SPHERE, CUBE, CYLINDER, CYLINDER]))
        parts = [_part(rng, kind, 1.0, (0.0, 0.0, 0.0), (0.0, 0.0, 1.0))]
        for _ in range(8 * num_parts):
            if len(parts) == num_parts:
                break
            parent = parts[int(rng.integers(len(parts)))] if rng.uniform() < 0.4 else parts[0]
            aside = len(parts) == 1 or rng.uniform() < 0.6
            part = _attached(rng, parent, aside)
            if part is not None and not any(_touch(part, other) for other in parts if other is not parent):
                parts.append(part)
        if len(parts) == num_parts:
            colours = rng.permutation(len(PART_COLOURS))[:num_parts].tolist()
            return _normalised([replace(part, colour=colour) for part, colour in zip(parts, colours)])


def _attached(rng: np.random.Generator, parent: Part, aside: bool) -> Part | None:
    """A smaller part on the side or the top of another; None where it has no room for one."""
    kind = int(rng.integers(len(KINDS)))
    radius = parent.radius * float(rng.uniform(0.5, 0.9))
    angle = float(rng.uniform(0, 2 * np.pi))
    if parent.kind == SPHERE:
        radius *= 0.8
        tilt = float(rng.uniform(-0.2, 0.8)) if aside else np.pi / 2
        out = np.array([np.cos(angle) * np.cos(tilt), np.sin(angle) * np.cos(tilt), np.sin(tilt)])
        start, sunk = parent.radius * out + [0, 0, parent.radius], _sag(parent.radius, radius)
    elif not aside:
        if parent.kind == CONE:
            return None
        out, start, sunk = np.array([0.0, 0.0, 1.0]), np.array([0.0, 0.0, parent.height]), 0.0
    elif parent.kind == CUBE:
        angle = np.pi / 2 * round(2 * angle / np.pi)
        out = np.array([np.cos(angle), np.sin(angle), 0.0])
        start, sunk = parent.radius * out + [0, 0, 0.5 * parent.height], 0.0
    else:
        wide = parent.radius * (0.7 if parent.kind == CONE else 1.0)
        radius = min(0.8 * radius, 0.4 * parent.height)
        share = 0.3 if parent.kind == CONE else float(rng.uniform(0.3, 0.7))
        level = min(max(share * parent.height, radius), parent.height - radius)
        out = np.array([np.cos(angle), np.sin(angle), 0.0])
        start, sunk = wide * out + [0, 0, level], _sag(wide, min(radius, 0.95 * wide))
    sunk += 0.15 * radius if kind == SPHERE else 0.01
    base, up = parent.place(start - sunk * out), parent.axes @ out
    yaw = 0.0 if aside else parent.yaw  # cubes stand straight
    return replace(_part(rng, kind, radius, tuple(base.tolist()), tuple(up.tolist())), yaw=yaw)


def _sag(radius: float, part: float) -> float:
    """How deep a disc of radius `part` must sink for its rim to meet a ball or pipe of `radius`."""
    return radius - float(np.sqrt(radius**2 - part**2))


def _part(rng: np.random.Generator, kind: int, radius: float, base: Any, up: Any) -> Part:
    height = {SPHERE: 2.0, CUBE: 1.7, CYLINDER: rng.uniform(1.4, 4.0), CONE: rng.uniform(1.8, 3.0)}[kind]
    return Part(
        kind=kind,
        base=base,
        up=up,
        yaw=float(rng.uniform(0, np.pi / 2)),
        radius=radius * (0.85 if kind == CUBE else 1.0),
        height=float(height) * radius,
        colour=0,
    )


def _touch(one: Part, other: Part) -> bool:
    """Whether parts that do not stick to each other share space, or nearly do."""
    return any((_depth_inside(a, b.place(_rim(b))) > -0.1 * b.radius).any() for a, b in ((one, other), (other, one)))


def _depth_inside(part: Part, points: Any) -> "Float[np.ndarray, 'k']":
    """How far points lie inside a part, roughly; negative outside."""
    own = (points - np.array(part.base, np.float32)) @ part.axes
    x, y, z = own.T
    if part.kind == SPHERE:
        return part.radius - np.sqrt(x * x + y * y + (z - part.radius) ** 2)
    if part.kind == CUBE:
        side = part.radius - np.maximum(abs(x), abs(y))
    elif part.kind == CYLINDER:
        side = part.radius - np.hypot(x, y)
    else:
        side = part.radius * np.clip(1 - z / part.height, 0, 1) - np.hypot(x, y)
    return np.minimum(side, np.minimum(z, part.height - z))


def _normalised(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The object in a bounding sphere of diameter 1 about the origin."""
    rims = np.concatenate([part.place(_rim(part)) for part in parts])
    centre = (rims.min(0) + rims.max(0)) / 2
    for _ in range(60):  # Badoiu and Clarkson: towards the farthest point, by less and less
        far = rims[np.linalg.norm(rims - centre, axis=1).argmax()]
        centre = centre + 0.05 * (far - centre)
    scale = 0.49 / float(np.linalg.norm(rims - centre, axis=1).max())
    moved = [(scale * (np.array(part.base) - centre)).tolist() for part in parts]
    return tuple(
        replace(part, base=(x, y, z), radius=scale * part.radius, height=scale * part.height)
        for part, (x, y, z) in zip(parts, moved)
    )


def _rim(part: Part) -> Any:
    """Points about the part: a sphere that holds them holds the part."""
    if part.kind == CUBE:
        return np.array([*_corners(part), (0.0, 0.0, part.height)])
    if part.kind == SPHERE:
        return part.radius * _BALL + [0, 0, part.radius]
    top = part.radius * _CIRCLE if part.kind == CYLINDER else np.zeros((1, 3))
    return np.concatenate([part.radius * _CIRCLE, top + [0, 0, part.height], [(0, 0, part.height)]])


_ANGLES = np.linspace(0, 2 * np.pi, 16, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES), 0 * _ANGLES], 1)
_BALL = np.concatenate([np.cos(t) * _CIRCLE + [0, 0, np.sin(t)] for t in np.linspace(-1.4, 1.4, 9)])


def surface_points(rng: np.random.Generator, parts: Sequence[Part]) -> tuple[tuple[float, float, float], ...]:
    """The ends of the parts and points of their sides, apart from each other and not inside a part."""
    ends = [part.place([0.0, 0.0, part.height]) for part in parts]
    sides = []
    for part in parts:
        wide = part.radius * (0.5 if part.kind == CONE else 1.0)
        for angle in np.pi / 2 * np.arange(4):
            sides.append(part.place([wide * np.cos(angle), wide * np.sin(angle), part.height / 2]))
    below = [parts[0].place([0.0, 0.0, 0.0])]
    chosen: list[Any] = []
    for point in [*ends, *(sides[k] for k in rng.permutation(len(sides))), *below]:
        outside = all(_depth_inside(part, point[None])[0] < 1e-3 for part in parts)
        if outside and all(np.linalg.norm(point - other) > 0.2 for other in chosen) and len(chosen) < MOST_POINTS:
            chosen.append(point)
    return tuple((float(x), float(y), float(z)) for x, y, z in chosen)
