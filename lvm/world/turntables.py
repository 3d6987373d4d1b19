"""One object on black, seen from all sides: 24 views at 15 degrees, as Objaverse is rendered for LVM.

The light goes round with the camera, as if the object were turned.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.pictures import depth, keypoints, normals
from lvm.world.assembled import PART_COLOURS, Part, assemble, surface_points
from lvm.world.render import AMBIENT, Rays, halve, sampled
from lvm.world.scene import Camera

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, UInt8

TURNTABLE_CHANNELS = ("image", "depth", "normal", "mask", "keypoints")
NUM_VIEWS = 24
FIELD_OF_VIEW = 0.71  # holds the bounding sphere at the least radius, with a margin


@dataclass(frozen=True)
class Turntable:
    parts: tuple[Part, ...]
    points: tuple[tuple[float, float, float], ...]  # on its surface: the keypoints
    azimuth: float  # of view 0
    elevation: float  # of the camera in all views, in radians
    radius: float  # of the camera's way, in diameters of the object

    def camera(self, view: int) -> Camera:
        return Camera(
            azimuth=self.azimuth + 2 * np.pi * view / NUM_VIEWS,
            height=self.radius * np.sin(self.elevation),
            distance=self.radius * np.cos(self.elevation),
            target=(0.0, 0.0, 0.0),
            field_of_view=FIELD_OF_VIEW,
        )

    @property
    def depth_range(self) -> tuple[float, float]:
        """Near and far of its depth pictures; the object never reaches far, which is black."""
        return self.radius - 0.5, self.radius + 0.7


def sample_turntable(rng: np.random.Generator) -> Turntable:
    parts = assemble(rng, int(rng.integers(2, 6)))
    return Turntable(
        parts=parts,
        points=surface_points(rng, parts),
        azimuth=float(rng.uniform(-np.pi, np.pi)),
        elevation=float(np.radians(rng.uniform(-45, 45))),
        radius=float(rng.uniform(1.5, 2.2)),
    )


def views(
    turntable: Turntable, size: int, channels: Collection[str] = TURNTABLE_CHANNELS
) -> "dict[str, UInt8[np.ndarray, '24 y x 3']]":
    """Those of `channels` in all views."""
    drawn = [view_channels(turntable, view, size, channels) for view in range(NUM_VIEWS)]
    return {name: np.stack([pictures[name] for pictures in drawn]) for name in drawn[0]}


def view_channels(
    turntable: Turntable, view: int, size: int, channels: Collection[str] = TURNTABLE_CHANNELS
) -> "dict[str, UInt8[np.ndarray, 'y x 3']]":
    camera = turntable.camera(view)
    rays = Rays(camera, size)
    for index, part in enumerate(turntable.parts):
        rays.meet(index, *part.bounds(), partial(part.intersect, rays.position))
    photo = _shade(turntable, rays)
    shown = sampled(rays.thing) >= 0
    draw: dict[str, Callable[[], Any]] = {
        "image": lambda: photo,
        "depth": lambda: depth.draw(sampled(rays.depth), *turntable.depth_range),
        "normal": lambda: normals.draw(sampled(rays.normal) @ _in_camera(camera)),
        "mask": lambda: np.repeat(np.uint8(255) * shown[..., None], 3, axis=-1),
        "keypoints": lambda: keypoints.draw(photo, visible_points(turntable, view, size)),
    }
    return {name: drawn() for name, drawn in draw.items() if name in channels}


def visible_points(turntable: Turntable, view: int, size: int) -> "Float[np.ndarray, 'k 2']":
    """The keypoints in pixels (x, y); NaN where a part hides them."""
    camera = turntable.camera(view)
    position, forward, right, up = camera.frame()
    towards = np.array(turntable.points, np.float32) - position
    half, ahead = np.tan(camera.field_of_view / 2), towards @ forward
    places = np.stack([1 + towards @ right / ahead / half, 1 - towards @ up / ahead / half], 1) / 2 * size
    met = [part.intersect(position, towards[None])[0][0] for part in turntable.parts]  # 1 at the point itself
    return np.where((np.min(met, axis=0) > 0.99)[:, None], places, np.nan)


def _in_camera(camera: Camera) -> "Float32[np.ndarray, '3 3']":
    """Right, up and backward as columns."""
    _, forward, right, up = camera.frame()
    return np.stack([right, up, -forward], 1)


def _shade(turntable: Turntable, rays: Rays) -> "UInt8[np.ndarray, 'y x 3']":
    light = _in_camera(rays.camera) @ np.array([-0.45, 0.55, 0.70], np.float32)
    seen = rays.thing >= 0
    albedo = PART_COLOURS[[part.colour for part in turntable.parts]]
    facing = np.maximum(rays.normal[seen] @ light, 0)[:, None]
    colour = np.zeros((*seen.shape, 3), np.float32)
    colour[seen] = np.clip(albedo[rays.thing[seen]] * (AMBIENT + (1.1 - AMBIENT) * facing), 0, 1)
    return np.rint(255 * halve(colour) ** 0.9).astype(np.uint8)
