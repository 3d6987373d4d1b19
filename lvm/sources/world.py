"""The world as a source of items: the unit is a scene under some of its latents, a clip, an object of a class, a
turntable or a puzzle.

Unit k of a kind and split is a function of (seed, split, kind, k): nothing is kept or downloaded, any process can draw
any of it.
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lvm.runtime import UserError
from lvm.runtime.hashing import hash64, seed_from
from lvm.sources.base import Item
from lvm.world import puzzle_pictures
from lvm.world.annotate import (
    CHANNELS,
    CLIP_CHANNELS,
    OBJECT_CHANNELS,
    latent_channels,
    make_latents,
    object_channels,
    steady_channels,
)
from lvm.world.objects import OBJECT_CLASSES, bodies_of_class, sample_object
from lvm.world.puzzles import RULE_SETS, Puzzle, sample_puzzle
from lvm.world.render import cast
from lvm.world.scene import Scene, generator, sample_clip, sample_scene
from lvm.world.turntables import TURNTABLE_CHANNELS, Turntable, sample_turntable, views

if TYPE_CHECKING:
    from jaxtyping import UInt8

# Part of every fingerprint: raise it when the same parameters give other pixels.
WORLD_VERSION = 1
KINDS = ("scene", "clip", "object", "turntable", "puzzle")  # of units, in their order


@dataclass(frozen=True)
class WorldConfig:
    seed: int = 0  # another seed is another world
    split: Literal["train", "test"] = "train"  # the two share no unit and no random draw
    num_scenes: int = 20_000
    num_clips: int = 2_000
    num_objects: int = 0  # pictures of one thing of a class: every 17th unit is of the same
    num_turntables: int = 0  # objects seen from 24 sides
    num_puzzles: int = 0  # matrices of nine panels; every 24th obeys the same rules
    num_things: tuple[int, int] = (2, 6)  # objects in a scene, from and to
    num_figures: tuple[int, int] = (0, 0)  # people in it, from and to; they bring the channel `pose`
    num_frames: int = 16  # of a clip
    num_latents: int = 72  # palettes, line colours, lights, strengths; a sentence shares one
    channels: tuple[str, ...] = CHANNELS  # those that are drawn, but of clips; `image` among them
    clip_channels: tuple[str, ...] = ("image",)  # of clips; `image` among them
    latents_per_scene: int = 2  # under how many of them a scene or object is drawn: the views 1 + latent of its item

    def __post_init__(self) -> None:
        for name in (f"num_{kind}s" for kind in KINDS):
            if getattr(self, name) < 0:
                raise UserError(f"{name} {getattr(self, name)} must be 0 or more")
        if self.num_frames < 1:
            raise UserError(f"num_frames {self.num_frames} must be 1 or more")
        if not 0 <= self.num_figures[0] <= self.num_figures[1] <= 6:
            raise UserError(f"num_figures {self.num_figures} must be from 0 to 6, the smaller first")
        for option, known in (("channels", CHANNELS), ("clip_channels", CLIP_CHANNELS)):
            named = getattr(self, option)
            unknown = [name for name in named if name not in known]
            if unknown or "image" not in named:
                wrong = f"names {unknown[0]!r}" if unknown else "lacks image"
                raise UserError(f"{option} of the world {wrong}; it draws {', '.join(known)}, and image always")
        if not 1 <= self.num_things[0] <= self.num_things[1] <= 12:
            raise UserError(f"num_things {self.num_things} must be from 1 to 12, the smaller first")
        if not 1 <= self.latents_per_scene <= self.num_latents - self.num_latents // 10:
            raise UserError(
                f"latents_per_scene {self.latents_per_scene} must be from 1 to nine tenths of "
                f"num_latents {self.num_latents}"
            )


class WorldSource:
    """Units are all scenes, then all clips, objects, turntables and puzzles; see `lvm.sources.base.Source`."""

    name = "world"

    def __init__(self, config: WorldConfig):
        self.config = config
        self.counts = dict(zip(KINDS, (getattr(config, f"num_{kind}s") for kind in KINDS)))
        drawn = {*config.channels} - self._absent_channels()
        if config.num_clips:
            drawn |= {*config.clip_channels}
        self.channels = tuple(name for name in CHANNELS if name in drawn)
        classes = config.num_objects or config.num_puzzles
        rules = (", ".join(f"{name} {rule}" for name, rule in rule_set.items()) for rule_set in RULE_SETS)
        self.labels: tuple[str, ...] = OBJECT_CLASSES + tuple(rules) if classes else ()
        self.latents = make_latents(config.seed, config.num_latents)
        self.num_trained_latents = config.num_latents - config.num_latents // 10

    def _absent_channels(self) -> set[str]:
        """Channels of which the world has no unit."""
        config = self.config
        absent = set() if config.num_figures[1] or config.num_objects else {"pose"}
        absent |= set() if config.num_turntables else {"mask", "keypoints"}
        absent |= set() if config.num_objects else {*OBJECT_CHANNELS}
        return absent | (set() if config.num_puzzles else {"solution"})

    def __len__(self) -> int:
        return sum(self.counts.values())

    def units(self, kind: str) -> range:
        """The units that are scenes, clips, ..."""
        start = sum(self.counts[before] for before in KINDS[: KINDS.index(kind)])
        return range(start, start + self.counts[kind])

    def kind_of(self, i: int) -> tuple[str, int]:
        """The kind of unit i and its number among those."""
        for kind in KINDS:
            if i in (units := self.units(kind)):
                return kind, i - units.start
        raise IndexError(f"unit {i} of {len(self)}")

    def unit_id(self, i: int) -> str:
        kind, number = self.kind_of(i)
        return f"world-{self.config.seed}-{self.config.split}-{kind}-{number:07d}"

    def fingerprint(self) -> str:
        """Options that came later are left out where they change nothing, so that older worlds keep theirs."""
        parameters = asdict(self.config)
        for name in ("num_objects", "num_turntables", "num_puzzles", "clip_channels"):
            if parameters[name] == WorldConfig.__dataclass_fields__[name].default:
                del parameters[name]
        absent = self._absent_channels() - {"pose"}
        parameters["channels"] = [name for name in self.config.channels if name not in absent]
        text = json.dumps({"version": WORLD_VERSION, **parameters}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def held_out_latents(self) -> range:
        """The last tenth: no training item is ever drawn under one of them."""
        return range(self.num_trained_latents, self.config.num_latents)

    def latents_of(self, i: int) -> list[int]:
        """The trained latents under which scene, clip or object i is drawn: equally many for each, chosen by hash. A
        clip has one."""
        kind, number = self.kind_of(i)
        names = ("views",) if kind == "scene" else ("views", kind)
        count = 1 if kind == "clip" else self.config.latents_per_scene
        start = hash64(seed_from(self.config.seed, self.config.split, *names), number)
        step = self.num_trained_latents // count
        return sorted(
            (int(start % np.uint64(self.num_trained_latents)) + k * step) % self.num_trained_latents
            for k in range(count)
        )

    def _generator(self, kind: str, number: int) -> np.random.Generator:
        return generator(self.config.seed, self.config.split, kind, number)

    def scene(self, i: int) -> Scene:
        """What is in unit i, a scene or an object."""
        kind, number = self.kind_of(i)
        rng = self._generator(kind, number)
        if kind == "object":
            return sample_object(rng, self.label(i))
        if kind != "scene":
            raise IndexError(f"unit {i} is a {kind}, not a scene or an object")
        return sample_scene(rng, self.config.num_things, num_figures=self.config.num_figures)

    def clip(self, number: int) -> tuple[str, list[Scene]]:
        low, high = self.config.num_things
        things = max(1, low - 1), max(1, high - 1)
        return sample_clip(self._generator("clip", number), self.config.num_frames, things)

    def turntable(self, number: int) -> Turntable:
        return sample_turntable(self._generator("turntable", number))

    def puzzle(self, number: int) -> Puzzle:
        return sample_puzzle(self._generator("puzzle", number), number % len(RULE_SETS))

    def label(self, i: int) -> int:
        """Index into `labels`: the class of an object, the rules of a puzzle; -1 of other units."""
        kind, number = self.kind_of(i)
        if kind == "object":
            return number % len(OBJECT_CLASSES)
        return len(OBJECT_CLASSES) + number % len(RULE_SETS) if kind == "puzzle" else -1

    def draw(
        self, i: int, latents: "list[int]", size: int, channels: Collection[str] | None = None
    ) -> "list[dict[str, UInt8[np.ndarray, 'y x 3']]]":
        """1 + len(latents) mappings: the steady channels of scene or object i, then its channels under each of
        `latents`; of them `channels` and the photo, or all."""
        scene = self.scene(i)
        wanted = [name for name in self.config.channels if name != "mask" and (name != "pose" or self._has_pose(scene))]
        wanted = [name for name in wanted if channels is None or name in channels]
        bodies = bodies_of_class(scene, self.label(i)) if self.label(i) >= 0 else ()
        return self._draw(scene, self.unit_id(i), latents, size, wanted, bodies)

    def _has_pose(self, scene: Scene) -> bool:
        return bool(scene.figures or self.config.num_figures[1])

    def _draw(
        self,
        scene: Scene,
        name: str,
        latents: "list[int]",
        size: int,
        wanted: Collection[str],
        bodies: Collection[int] = (),
    ) -> "list[dict[str, UInt8[np.ndarray, 'y x 3']]]":
        """`bodies` are what the channels of objects show; of other units there are none."""
        surfaces = cast(scene, size)
        steady = steady_channels(scene, surfaces, wanted)
        photo = steady["image"]
        if bodies:
            steady |= object_channels(surfaces, bodies, wanted)
        return [steady] + [latent_channels(scene, surfaces, photo, self.latents[v], name, wanted) for v in latents]

    # Items.

    def read(self, i: int, size: int) -> "list[Item]":
        kind, number = self.kind_of(i)
        if kind == "clip":
            return self._read_clip(i, number, size)
        if kind == "turntable":
            return self._read_turntable(i, number, size)
        if kind == "puzzle":
            return self._read_puzzle(i, number, size)
        latents = self.latents_of(i)
        drawn = self.draw(i, latents, size)
        views = [{name: picture[None] for name, picture in channels.items()} for channels in drawn]
        return self._views(i, latents, views, {"scene": asdict(self.scene(i))})

    def _read_clip(self, i: int, number: int, size: int) -> "list[Item]":
        motion, scenes = self.clip(number)
        wanted, name, latents = self.config.clip_channels, self.unit_id(i), self.latents_of(i)
        frames = [self._draw(scene, f"{name}-{k}", latents, size, wanted) for k, scene in enumerate(scenes)]
        views = [{name: np.stack([view[name] for view in drawn]) for name in drawn[0]} for drawn in zip(*frames)]
        return self._views(i, latents, views, {"motion": motion, "scene": asdict(scenes[0])})

    def _read_turntable(self, i: int, number: int, size: int) -> "list[Item]":
        turntable = self.turntable(number)
        pictures = views(turntable, size, [name for name in TURNTABLE_CHANNELS if name in self.config.channels])
        return [self._item(i, pictures, {"turntable": asdict(turntable)})]

    def _read_puzzle(self, i: int, number: int, size: int) -> "list[Item]":
        puzzle = self.puzzle(number)
        matrix = {"image": puzzle_pictures.matrix(puzzle, size)[None]}
        if "solution" in self.channels:
            matrix["solution"] = puzzle_pictures.matrix(puzzle, size, puzzle.panels[-1])[None]
        meta = {"puzzle": asdict(puzzle)}
        panels = {"image": puzzle_pictures.panels(puzzle, size)}
        return [self._item(i, matrix, meta), self._item(i, panels, {}, suffix="-panels")]

    def _views(self, i: int, latents: "list[int]", views: Any, meta: dict[str, Any]) -> "list[Item]":
        """View 0, and view 1 + latent for each that has channels."""
        numbered = zip([0] + [1 + v for v in latents], views)
        return [self._item(i, drawn, {} if view else meta, view) for view, drawn in numbered if drawn]

    def _item(self, i: int, channels: Any, meta: dict[str, Any], view: int = 0, suffix: str = "") -> Item:
        name = self.unit_id(i)
        return Item(id=name + suffix, group=name, view=view, label=self.label(i), channels=channels, meta=meta)
