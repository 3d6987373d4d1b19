"""Ray casting on the CPU with numpy: a scene -> per-pixel surfaces, and those -> a shaded photo.

Each object is intersected only inside the rectangle its bounding box projects to, at twice the picture's resolution;
photos are averaged down, annotations sampled, so that labels stay exact.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.world.scene import FIGURE_COLOUR, GROUND_COLOURS, KIND_COLOURS, Camera, Scene, Thing

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Int8, UInt8

SUPERSAMPLING = 2
NEAR, FAR = 3.5, 16.0  # the range of depth pictures, in world units
NO_SURFACE, GROUND = -2, -1  # object ids beside 0, 1, ...
AMBIENT = 0.38
_SHADOW = (1.0, 1.0, 1.0, 0.8)  # of each kind, as a share of its bounding sphere


@dataclass
class Surfaces:
    """What each ray hits first, at `SUPERSAMPLING` times the picture's resolution. Arrays are [y, x, ...]."""

    depth: "Float32[np.ndarray, 'y x']"  # along the camera's forward axis; infinite where nothing is hit
    thing: "Int8[np.ndarray, 'y x']"  # index into scene.things + scene.figures, GROUND or NO_SURFACE
    normal: "Float32[np.ndarray, 'y x 3']"  # in world axes
    point: "Float32[np.ndarray, 'y x 3']"
    albedo: "Float32[np.ndarray, 'y x 3']"
    rows: "Float32[np.ndarray, 'y']"  # vertical position in [-1, 1], top is 1: for the sky


class Rays:
    """The rays of a square picture of `size` pixels and what each has met so far. Arrays as of `Surfaces`."""

    def __init__(self, camera: Camera, size: int) -> None:
        n = size * SUPERSAMPLING
        self.camera = camera
        self.position, forward, right, up = camera.frame()
        self.half = np.float32(np.tan(camera.field_of_view / 2))
        self.steps = (np.arange(n, dtype=np.float32) + 0.5) / n * 2 - 1
        across, down = (self.steps * self.half)[None, :, None], (self.steps * self.half)[:, None, None]
        self.directions = forward + across * right - down * up
        self.depth = np.full((n, n), np.inf, np.float32)
        self.thing = np.full((n, n), NO_SURFACE, np.int8)
        self.normal = np.zeros((n, n, 3), np.float32)

    def meet_ground(self) -> None:
        """First of all: it replaces what was met before."""
        down = self.directions[..., 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            self.depth = np.where(down < -1e-4, -self.position[2] / down, np.inf).astype(np.float32)
        hit = self.depth < 60.0
        self.depth[~hit] = np.inf
        self.thing[hit] = GROUND
        self.normal[hit, 2] = 1

    def meet(self, index: int, low: Any, high: Any, intersect: Callable[[Any], tuple[Any, Any]]) -> None:
        """Thing `index`, which lies between the corners `low` and `high`; `intersect` takes rays to distances and
        normals."""
        window = _window(low, high, self.camera, len(self.steps), float(self.half))
        if window is None:
            return
        t, normals = intersect(self.directions[window])
        nearer = t < self.depth[window]
        self.depth[window][nearer] = t[nearer]
        self.thing[window][nearer] = index
        self.normal[window][nearer] = normals[nearer]

    def points(self) -> "Float32[np.ndarray, 'y x 3']":
        """Where they met it; the camera's position for those that met nothing."""
        with np.errstate(invalid="ignore"):
            return self.position + self.directions * np.where(self.thing > NO_SURFACE, self.depth, 0)[..., None]


def cast(scene: Scene, size: int) -> Surfaces:
    """Intersect the rays of a square picture of `size` pixels with the scene."""
    rays = Rays(scene.camera, size)
    rays.meet_ground()
    for index, body in enumerate(scene.things):
        rays.meet(index, *_bounds(body), partial(intersect, body, rays.position))
    for index, figure in enumerate(scene.figures, len(scene.things)):
        for a, b, radius in figure.capsules():
            low, high = np.minimum(a, b) - radius, np.maximum(a, b) + radius
            rays.meet(index, low, high, partial(_capsule, a, b, np.float32(radius), rays.position))
    point = rays.points()
    return Surfaces(rays.depth, rays.thing, rays.normal, point, _albedo(scene, rays.thing, point), -rays.steps)


def _bounds(body: Thing) -> tuple[Any, Any]:
    """The least and the greatest corner of a box about the body."""
    reach = body.radius * (1.4143 if body.kind == 1 else 1.0)
    low = body.x - reach, body.y - reach, body.z
    return np.array(low), np.array([body.x + reach, body.y + reach, body.z + body.height])


def _window(low: Any, high: Any, camera: Camera, n: int, half: float) -> tuple[slice, slice] | None:
    """The pixels that may see into the box from `low` to `high`; None where it is out of the picture."""
    position, forward, right, up = camera.frame()
    corners = np.array(list(itertools.product(*zip(low, high))), np.float32) - position
    ahead = corners @ forward
    if ahead.min() < 0.1:
        return slice(0, n), slice(0, n)
    across = (corners @ right / ahead / half + 1) / 2 * n
    along = (1 - corners @ up / ahead / half) / 2 * n
    left, stop = max(int(across.min()) - 1, 0), min(int(across.max()) + 2, n)
    top, bottom = max(int(along.min()) - 1, 0), min(int(along.max()) + 2, n)
    return (slice(top, bottom), slice(left, stop)) if top < bottom and left < stop else None


def intersect(body: Thing, position: Any, rays: Any) -> tuple[Any, Any]:
    """Distance along each ray (infinite for a miss) and the unit normal there."""
    cos, sin = np.float32(np.cos(body.yaw)), np.float32(np.sin(body.yaw))
    origin = position - np.array([body.x, body.y, body.z], np.float32)
    ox, oy, oz = origin[0] * cos + origin[1] * sin, origin[1] * cos - origin[0] * sin, origin[2]
    dx, dy, dz = rays[..., 0] * cos + rays[..., 1] * sin, rays[..., 1] * cos - rays[..., 0] * sin, rays[..., 2]
    r, h = np.float32(body.radius), np.float32(body.height)
    with np.errstate(divide="ignore", invalid="ignore"):
        if body.kind == 0:
            t, normal = _sphere(ox, oy, oz - r, dx, dy, dz, r)
        elif body.kind == 1:
            t, normal = _box(ox, oy, oz, dx, dy, dz, r, h)
        else:
            t, normal = _round(ox, oy, oz, dx, dy, dz, r, h, np.float32(1.0 if body.kind == 2 else 0.0))
    t = np.where(np.isfinite(t) & (t > 0), t, np.float32(np.inf))
    nx, ny = normal[..., 0] * cos - normal[..., 1] * sin, normal[..., 0] * sin + normal[..., 1] * cos
    return t, np.stack([nx, ny, normal[..., 2]], -1)


def _sphere(ox: Any, oy: Any, oz: Any, dx: Any, dy: Any, dz: Any, r: Any) -> tuple[Any, Any]:
    a = dx * dx + dy * dy + dz * dz
    b = ox * dx + oy * dy + oz * dz
    t = (-b - np.sqrt(b * b - a * (ox * ox + oy * oy + oz * oz - r * r))) / a
    return t, np.stack([ox + t * dx, oy + t * dy, oz + t * dz], -1) / r


def _box(ox: Any, oy: Any, oz: Any, dx: Any, dy: Any, dz: Any, r: Any, h: Any) -> tuple[Any, Any]:
    enter, leave, axis = np.full_like(dx, -np.inf), np.full_like(dx, np.inf), np.zeros(dx.shape, np.int8)
    for index, (o, d, low, high) in enumerate(((ox, dx, -r, r), (oy, dy, -r, r), (oz, dz, 0 * h, h))):
        one, two = (low - o) / d, (high - o) / d
        first = np.minimum(one, two)
        axis[first > enter] = index
        enter, leave = np.maximum(enter, first), np.minimum(leave, np.maximum(one, two))
    normal = np.zeros(dx.shape + (3,), np.float32)
    for index, d in enumerate((dx, dy, dz)):
        normal[..., index] = np.where(axis == index, -np.sign(d), 0)
    return np.where(enter <= leave, enter, np.inf), normal


def _round(ox: Any, oy: Any, oz: Any, dx: Any, dy: Any, dz: Any, r: Any, h: Any, top: Any) -> tuple[Any, Any]:
    """Cylinder (`top` 1) or cone (`top` 0): the radius goes linearly from r at z = 0 to r * top at z = h."""
    slope = (top - 1) * r / h
    rim_o, rim_d = r + slope * oz, slope * dz
    a = dx * dx + dy * dy - rim_d * rim_d
    b = ox * dx + oy * dy - rim_o * rim_d
    c = ox * ox + oy * oy - rim_o * rim_o
    root = np.sqrt(b * b - a * c)
    side = np.full_like(dx, np.inf)
    for t in ((-b - root) / a, (-b + root) / a):
        z = oz + t * dz
        side = np.where((t > 0) & (z >= 0) & (z <= h) & (t < side), t, side)
    x, y = ox + side * dx, oy + side * dy
    normal = np.stack([x, y, -slope * (r + slope * (oz + side * dz))], -1)
    normal = normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-6)
    if oz < 0:  # seen from below: the bottom may be met first, never the lid
        level, rim, facing = np.float32(0), r, -1
    else:
        level, rim, facing = h, r * top, 1
    lid = (level - oz) / dz
    on_lid = (lid > 0) & ((ox + lid * dx) ** 2 + (oy + lid * dy) ** 2 <= rim**2) & (lid < side)
    normal[on_lid] = (0, 0, facing)
    return np.where(on_lid, lid, side), normal


def _capsule(a: Any, b: Any, r: Any, position: Any, rays: Any) -> tuple[Any, Any]:
    """Distance and normal of a cylinder from `a` to `b` with round ends."""
    axis, from_a = b - a, position - a
    length2 = axis @ axis
    axis_d, axis_o = rays @ axis, axis @ from_a
    d_d, d_o, o_o = np.einsum("yxi,yxi->yx", rays, rays), rays @ from_a, from_a @ from_a
    with np.errstate(divide="ignore", invalid="ignore"):
        t, along = np.full(d_d.shape, np.inf, np.float32), np.zeros(d_d.shape, np.float32)
        p = length2 * d_d - axis_d * axis_d
        q = length2 * d_o - axis_o * axis_d
        side = (-q - np.sqrt(q * q - p * (length2 * o_o - axis_o * axis_o - r * r * length2))) / p
        at = axis_o + side * axis_d
        on_side = (at > 0) & (at < length2)
        t[on_side], along[on_side] = side[on_side], at[on_side] / length2
        for end, place in ((a, 0.0), (b, 1.0)):
            from_end = position - end
            d_e = rays @ from_end
            cap = (-d_e - np.sqrt(d_e * d_e - d_d * (from_end @ from_end - r * r))) / d_d
            nearer = cap < t
            t[nearer], along[nearer] = cap[nearer], place
    t = np.where(np.isfinite(t) & (t > 0), t, np.float32(np.inf)).astype(np.float32)
    hit = np.isfinite(t)
    normal = np.zeros(rays.shape, np.float32)
    normal[hit] = (from_a + rays[hit] * t[hit, None] - along[hit, None] * axis) / r
    return t, normal


def _albedo(scene: Scene, thing: Any, point: Any) -> Any:
    ground = thing == GROUND
    cos, sin = np.cos(scene.texture_yaw), np.sin(scene.texture_yaw)
    x, y = point[..., 0][ground], point[..., 1][ground]
    u = (x * cos + y * sin) / scene.texture_scale
    v = (y * cos - x * sin) / scene.texture_scale
    if scene.texture == 1:
        second = (np.floor(u) + np.floor(v)) % 2
    elif scene.texture == 2:
        second = np.floor(2 * u) % 2
    elif scene.texture == 3:
        second = (((2 * u) % 2 - 1) ** 2 + ((2 * v) % 2 - 1) ** 2) < 0.4
    else:
        second = np.zeros_like(u)
    tones = GROUND_COLOURS[scene.texture] * np.float32(scene.ground_lightness)
    things = [KIND_COLOURS[body.kind] * np.float32(body.lightness) for body in scene.things]
    things += [FIGURE_COLOUR * np.float32(figure.lightness) for figure in scene.figures]
    colours = np.array([*things, *tones, (0, 0, 0)], np.float32)  # the last two rows stand for GROUND and NO_SURFACE
    index = np.where(thing == NO_SURFACE, len(colours) - 1, thing)
    index[ground] = len(things) + second.astype(np.int8)
    return colours.take(index, axis=0)


def shade(
    scene: Scene, surfaces: Surfaces, light: Any = None, tint: Any = (1.0, 1.0, 1.0)
) -> "UInt8[np.ndarray, 'y x 3']":
    """The photo at the picture's resolution, lit from `light` in the colour `tint`.

    Lambert and ambient light, soft shadows of bounding spheres, haze, a sky.
    """
    light = np.asarray(scene.light if light is None else light, np.float32)
    facing = np.maximum(surfaces.normal @ light, 0)
    ground = surfaces.thing == GROUND
    on_ground = np.ascontiguousarray(surfaces.point[ground].T)  # each axis in one piece, for speed
    lit = np.ones(on_ground.shape[1], np.float32)
    balls = [
        (body.x, body.y, body.z + 0.45 * body.height, 0.5 * (body.radius + body.height / 2) * _SHADOW[body.kind])
        for body in scene.things
    ] + [(figure.x, figure.y, 0.5 * figure.height, 0.22 * figure.height) for figure in scene.figures]
    for *middle, radius in balls:
        centre, reach = np.array(middle, np.float32), np.float32(radius)
        to_centre = centre[:, None] - on_ground
        along = light @ to_centre
        off = np.sqrt(np.maximum(np.einsum("ip,ip->p", to_centre, to_centre) - along * along, 0))
        lit = np.minimum(lit, np.clip((off / reach - 0.75) / 0.45, 0, 1) + (along < 0))
    facing[ground] *= np.minimum(lit, 1)
    colour = surfaces.albedo * (AMBIENT + (1.05 - AMBIENT) * facing)[..., None]
    sky = np.array(scene.sky, np.float32)
    haze = np.clip((surfaces.depth - 8) / 40, 0, 0.6)[..., None]
    colour = colour * (1 - haze) + sky * haze
    away = surfaces.thing == NO_SURFACE
    rising = np.broadcast_to(surfaces.rows[:, None], away.shape)[away]
    colour[away] = sky * (1.08 - 0.25 * rising[:, None])
    colour = halve(np.clip(colour * np.asarray(tint, np.float32), 0, 1))
    return np.rint(255 * colour**0.9).astype(np.uint8)


def halve(buffer: "Float[np.ndarray, 'Y X *c']") -> "Float[np.ndarray, 'y x *c']":
    """The mean of each SUPERSAMPLING x SUPERSAMPLING cell."""
    s = SUPERSAMPLING
    cells = [buffer[i::s, j::s] for i in range(s) for j in range(s)]
    return sum(cells[1:], cells[0]) / np.float32(s * s)


def sampled(buffer: Any) -> Any:
    """One value of each such cell: exact, for annotations."""
    return buffer[SUPERSAMPLING // 2 :: SUPERSAMPLING, SUPERSAMPLING // 2 :: SUPERSAMPLING]
