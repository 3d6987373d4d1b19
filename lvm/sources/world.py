"""The world as a source of items: the unit is a scene under some of its latents, or a clip.

Scene i of a split is a function of (seed, split, i): nothing is kept or downloaded, any process can draw any of it.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lvm.runtime import UserError
from lvm.runtime.hashing import hash64, seed_from
from lvm.sources.base import Item
from lvm.world.annotate import CHANNELS, latent_channels, make_latents, steady_channels
from lvm.world.render import cast, shade
from lvm.world.scene import Scene, generator, sample_clip, sample_scene

if TYPE_CHECKING:
    from jaxtyping import UInt8

# Part of every fingerprint: raise it when the same parameters give other pixels.
WORLD_VERSION = 1


@dataclass(frozen=True)
class WorldConfig:
    seed: int = 0  # another seed is another world
    split: Literal["train", "test"] = "train"  # the two share no scene, clip or random draw
    num_scenes: int = 20_000
    num_clips: int = 2_000
    num_things: tuple[int, int] = (2, 6)  # objects in a scene, from and to
    num_figures: tuple[int, int] = (0, 0)  # people in it, from and to; they bring the channel `pose`
    num_frames: int = 16  # of a clip
    num_latents: int = 72  # palettes, line colours, lights, strengths; a sentence shares one
    channels: tuple[str, ...] = CHANNELS  # those that are drawn; `image` among them
    latents_per_scene: int = 2  # under how many of them a scene is drawn: the views 1 + latent of its item

    def __post_init__(self) -> None:
        if not 0 <= self.num_figures[0] <= self.num_figures[1] <= 6:
            raise UserError(f"num_figures {self.num_figures} must be from 0 to 6, the smaller first")
        unknown = [name for name in self.channels if name not in CHANNELS]
        if unknown or "image" not in self.channels:
            wrong = f"names {unknown[0]!r}" if unknown else "lacks image"
            raise UserError(f"channels of the world {wrong}; it draws {', '.join(CHANNELS)}, and image always")
        if not 1 <= self.num_things[0] <= self.num_things[1] <= 12:
            raise UserError(f"num_things {self.num_things} must be from 1 to 12, the smaller first")
        if not 1 <= self.latents_per_scene <= self.num_latents - self.num_latents // 10:
            raise UserError(
                f"latents_per_scene {self.latents_per_scene} must be from 1 to nine tenths of "
                f"num_latents {self.num_latents}"
            )


class WorldSource:
    """Units 0 .. num_scenes-1 are scenes, the rest clips; see `lvm.sources.base.Source`."""

    name = "world"

    def __init__(self, config: WorldConfig):
        self.config = config
        drawn = config.channels if config.num_figures[1] else set(config.channels) - {"pose"}
        self.channels = tuple(name for name in CHANNELS if name in drawn)
        self.latents = make_latents(config.seed, config.num_latents)
        self.num_trained_latents = config.num_latents - config.num_latents // 10

    def __len__(self) -> int:
        return self.config.num_scenes + self.config.num_clips

    def unit_id(self, i: int) -> str:
        kind, number = ("scene", i) if i < self.config.num_scenes else ("clip", i - self.config.num_scenes)
        return f"world-{self.config.seed}-{self.config.split}-{kind}-{number:07d}"

    def fingerprint(self) -> str:
        text = json.dumps({"version": WORLD_VERSION, **asdict(self.config)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def held_out_latents(self) -> range:
        """The last tenth: no training item is ever drawn under one of them."""
        return range(self.num_trained_latents, self.config.num_latents)

    def latents_of(self, i: int) -> list[int]:
        """The trained latents under which scene i is drawn: equally many scenes for each, chosen by hash."""
        start = hash64(seed_from(self.config.seed, self.config.split, "views"), i)
        step = self.num_trained_latents // self.config.latents_per_scene
        return sorted(
            (int(start % np.uint64(self.num_trained_latents)) + k * step) % self.num_trained_latents
            for k in range(self.config.latents_per_scene)
        )

    def scene(self, i: int) -> Scene:
        rng = generator(self.config.seed, self.config.split, "scene", i)
        return sample_scene(rng, self.config.num_things, num_figures=self.config.num_figures)

    def clip(self, number: int) -> tuple[str, list[Scene]]:
        rng = generator(self.config.seed, self.config.split, "clip", number)
        low, high = self.config.num_things
        return sample_clip(rng, self.config.num_frames, (max(1, low - 1), max(1, high - 1)))

    def draw(self, i: int, latents: "list[int]", size: int) -> "list[dict[str, UInt8[np.ndarray, 'y x 3']]]":
        """1 + len(latents) mappings: the steady channels of scene i, then its channels under each of `latents`."""
        scene, name = self.scene(i), self.unit_id(i)
        surfaces = cast(scene, size)
        steady = steady_channels(scene, surfaces)
        photo, wanted = steady["image"], self.channels
        drawn = [latent_channels(scene, surfaces, photo, self.latents[v], name, wanted) for v in latents]
        return [{channel: picture for channel, picture in steady.items() if channel in wanted}, *drawn]

    def read(self, i: int, size: int) -> "list[Item]":
        if not 0 <= i < len(self):
            raise IndexError(f"unit {i} of {len(self)}")
        name = self.unit_id(i)
        if i >= self.config.num_scenes:
            motion, scenes = self.clip(i - self.config.num_scenes)
            frames = np.stack([shade(scene, cast(scene, size)) for scene in scenes])
            meta: dict[str, Any] = {"motion": motion, "scene": asdict(scenes[0])}
            return [Item(id=name, group=name, view=0, label=-1, channels={"image": frames}, meta=meta)]
        latents = self.latents_of(i)
        meta = {"scene": asdict(self.scene(i))}
        views = [0] + [1 + v for v in latents]
        drawings = zip(views, self.draw(i, latents, size))
        return [
            Item(
                id=name,
                group=name,
                view=view,
                label=-1,
                channels={channel: picture[None] for channel, picture in drawn.items()},
                meta=meta if view == 0 else {},
            )
            for view, drawn in drawings
            if drawn
        ]
