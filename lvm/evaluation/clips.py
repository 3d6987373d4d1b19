"""Clips by number, and cases of them: some frames are shown, the frames that follow are asked for.

    right        the most frames, in order
    3, 7, ...    the last so many of them; the frames to follow are the same, so that differences are paired
    none         the last frame alone
    wrong_task   the earlier frames are another clip's, the last one is right
    shuffled     the earlier frames in another order, the last one is right

Clips are asked in keyed order, each once, and none whose group was trained on; of several items of one group (windows
of a long video) the first ones come before all second ones. Frames are counted by headers and lists of files: nothing
is decoded to find out what there is.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lvm.evaluation.annotated import WORLD, HeldOut, Remembered
from lvm.evaluation.cases import NONE, RIGHT, SHUFFLED, WRONG_TASK, Case, Shown
from lvm.evaluation.prompts import pick
from lvm.runtime import UserError
from lvm.runtime.hashing import group_hash, hash64
from lvm.sources.base import BrokenItem, Item, Source, writable
from lvm.sources.collection import CollectionSource
from lvm.sources.manifest import ManifestSource, look_up
from lvm.sources.pictures import PicturesSource
from lvm.sources.videos import VideosSource
from lvm.sources.world import WorldSource

if TYPE_CHECKING:
    from jaxtyping import UInt8

Kind = Literal["clip", "turntable"]

SHOWN = (1, 3, 7, 11, 15)  # frames, as in the paper's figure 7
MOST_KEPT = 24  # clips read last, whose frames are kept
PER_MILLE_LONG_ENOUGH = 500  # of the clips, for a number of frames to be asked
DRAWN = "drawn at this size"  # in place of a resize, where nothing is made smaller


@dataclass(frozen=True)
class Header:
    """What is known of a unit before its frames are read."""

    unit: int
    id: str
    group: str
    frames: int  # as promised; 1 of stills
    problem: str = ""  # why it cannot be read


def headers(source: Source) -> Iterator[Header]:
    """Of all units, in order. Sources of a kind that holds stills alone have none."""
    if isinstance(source, PicturesSource):
        for i, unit in enumerate(source.units):
            frames = len(unit.channels.get("image", ())) if unit.is_clip else 1
            yield Header(i, unit.id, unit.group, frames, unit.problem if unit.is_clip else "")
    elif isinstance(source, VideosSource):
        for i, window in enumerate(source.units):
            yield Header(i, window.id, window.video.id, window.count, window.video.problem)
    elif isinstance(source, ManifestSource):
        for i, line in enumerate(source.lines):
            if isinstance(line, dict):
                files, group = look_up(line, source.config.image), look_up(line, source.config.group)
                frames = len(files) if isinstance(files, list) else 1
                yield Header(i, source.ids[i], source.ids[i] if group is None else writable(str(group)), frames)
            else:
                yield Header(i, source.ids[i], source.ids[i], 0, line)
    elif isinstance(source, CollectionSource):
        start = 0
        for name, part in source.sources.items():
            for found in headers(part):
                yield replace(found, unit=start + found.unit, id=f"{name}/{found.id}", group=f"{name}/{found.group}")
            start += len(part)
    elif isinstance(source, WorldSource):
        for i in source.units("clip"):
            yield Header(i, source.unit_id(i), source.unit_id(i), source.config.num_frames)


def world_headers(world: WorldSource, kind: Kind) -> Iterator[Header]:
    if kind == "clip":
        return headers(world)
    frames = world.read(world.units(kind)[0], 16)[0].num_pictures
    return (Header(i, world.unit_id(i), world.unit_id(i), frames) for i in world.units(kind))


def resize_of(source: Source, how: str) -> dict[str, str]:
    """The settings that say which part of a picture is drawn, and how its pixels become fewer."""
    resize = getattr(source, "resize", "none")
    return {"resize": DRAWN} if resize == "none" else {"resize": resize, "filter": how}


def frames_alone(world: WorldSource) -> WorldSource:
    """The same world without annotations: they need not be drawn."""
    return WorldSource(replace(world.config, channels=("image",), clip_channels=("image",)))


class Clips:
    """Clips that may be asked about, in the order they are asked. Raises `UserError` where there is none."""

    def __init__(self, source: Source, size: int, kept_out: HeldOut, seed: int = 0, kind: Kind = "clip"):
        self.source, self.size, self.name = source, size, source.name
        if isinstance(source, WorldSource):
            self.name = f"world/{kind}"
            if not source.counts[kind]:
                raise UserError(f"the world has no {kind}s: num_{kind}s is 0; evaluate on {WORLD}")
            found = list(world_headers(source, kind))
            clips = found
            self.kept_out: Any = "test split"
            self._read_from: Source = frames_alone(source)
        else:
            if kind != "clip":
                raise UserError(f"kind={kind} is of the world; of {source.name} all clips are asked: leave kind out")
            self.kept_out, self._read_from = vars(kept_out), source
            found = [header for header in headers(source) if header.frames > 1 or header.problem]
            clips = [header for header in found if header.group in kept_out]
        if not any(header.frames > 1 for header in clips):
            if not any(header.frames > 1 for header in found):
                raise UserError(f"{self.name} has no clip; give a folder of videos, or one of frames/CLIP/*.jpg")
            raise UserError(f"none of the {len(found)} clips of {self.name} is held out; --held-out 1000 asks them all")
        self.clips = one_of_each_group_first([clips[i] for i in pick(len(clips), np.arange(len(clips)), (seed, 6))])
        self._kept = Remembered(MOST_KEPT)

    def __len__(self) -> int:
        return len(self.clips)

    def read(self, clip: Header) -> "tuple[UInt8[np.ndarray, 'n y x 3'], Item]":
        """Its frames, and the item for what else is said of it. Raises `BrokenItem`."""
        item: Item = self._kept(clip.unit, lambda: self._read_from.read(clip.unit, self.size)[0])
        return item.channels["image"], item

    def label(self, item: Item) -> str:
        """Its class; of the world how things move."""
        names = getattr(self.source, "labels", ())
        return names[item.label] if 0 <= item.label < len(names) else str(item.meta.get("motion", ""))

    def fingerprint(self) -> str:
        return f"{self.source.fingerprint()} {self.name} {self.kept_out} {self.size}"


def one_of_each_group_first(clips: Sequence[Header]) -> list[Header]:
    before: Counter[str] = Counter()
    ranks = []
    for clip in clips:
        ranks.append(before[clip.group])
        before[clip.group] += 1
    return [clips[i] for i in np.argsort(np.array(ranks, np.int64), kind="stable")]


@dataclass(frozen=True)
class Cut:
    """Which frames of a clip: `shown` (each a number of frames, the most last), then `frames` to follow."""

    shown: tuple[int, ...]
    frames: int
    stride: int

    @property
    def span(self) -> int:
        """Frames of a clip from the first shown to the last that follows."""
        return (self.shown[-1] + self.frames - 1) * self.stride + 1

    def places(self, available: int, *keys: int) -> "np.ndarray":
        """Numbers of the frames, from a keyed start."""
        start = int(hash64(*keys) % np.uint64(available - self.span + 1))
        return start + self.stride * np.arange(self.shown[-1] + self.frames)


def make_cut(clips: Clips, room: int, shown: Sequence[int], frames: int, stride: int) -> Cut:
    """Those numbers of `shown` that fit the model's context and at least half of the clips. Raises `UserError`."""
    wanted = sorted(set(shown))
    if not wanted or wanted[0] < 1 or frames < 1 or stride < 1:
        raise UserError(f"shown={list(shown)} frames={frames} stride={stride}: each must be at least 1")
    if wanted[0] + frames > room:
        raise UserError(f"the model's context holds {room} pictures; {wanted[0]} shown and {frames} to follow are more")
    long = [clip.frames for clip in clips.clips if not clip.problem]
    fits = [
        k
        for k in wanted
        if k + frames <= room
        and 1000 * sum(Cut((k,), frames, stride).span <= n for n in long) >= PER_MILLE_LONG_ENOUGH * len(long)
    ]
    if not fits:
        least = Cut((wanted[0],), frames, stride).span
        raise UserError(
            f"{clips.name}: most of its {len(long)} clips have fewer than {least} frames, the longest {max(long)}; "
            "lower stride, shown or frames, or let the source cut longer clips (frames, frames_per_item)"
        )
    return Cut(tuple(fits), frames, stride)


def in_another_order(number: int, *keys: int) -> list[int]:
    """A keyed permutation that is not the one before."""
    order: list[int] = pick(number, np.arange(number), keys).tolist()
    return order if order != sorted(order) else order[1:] + order[:1]


class ClipCases:
    """Cases of one task: clips that are long enough, each once."""

    def __init__(self, clips: Clips, cut: Cut, num_cases: int, seed: int, task: str, answered: bool):
        self.data, self.cut, self.task, self._seed, self._answered = clips, cut, task, seed, answered
        self._clips = [clip for clip in clips.clips if clip.problem or clip.frames >= cut.span]
        self.num_cases = min(num_cases, len(self._clips))

    def __len__(self) -> int:
        return self.num_cases

    def describe(self) -> dict[str, Any]:
        """Settings that all suites of clips have."""
        return {
            "data": self.data.name,
            "data_fingerprint": self.data.fingerprint(),
            "size": self.data.size,
            **resize_of(self.data.source, "bicubic"),
            "seed": self._seed,
            "held_out": self.data.kept_out,
            "clips": len(self.data),
            "clips_too_short": len(self.data) - len(self._clips),
            "shown": list(self.cut.shown),
            "frames": self.cut.frames,
            "stride": self.cut.stride,
            "start": "keyed by seed and clip, uniform over the frames a clip has",
            "answers": "greedy" if self._answered else "none are painted",
        }

    def case(self, i: int) -> Case:
        clip = self._clips[i]
        window, item = self.window(clip)
        most = self.cut.shown[-1]
        shown, truth = list(window[:most]), tuple(window[most:])
        return Case(
            id=clip.id,
            task=self.task,
            prompts=self.prompts(i, shown),
            truth=truth,
            tuple_size=1,
            label=self.data.label(item),
            baselines=baselines_of(shown, len(truth)) if self._answered else {},
            facts={"shown": shown},
        )

    def window(self, clip: Header) -> "tuple[UInt8[np.ndarray, 'n y x 3'], Item]":
        frames, item = self.data.read(clip)
        if len(frames) < self.cut.span:
            raise BrokenItem(clip.id, f"has {len(frames)} of {clip.frames} promised frames; {self.cut.span} are needed")
        return frames[self.cut.places(len(frames), self._seed, 7, group_hash(clip.id))], item

    def prompts(self, i: int, shown: "list[Any]") -> Mapping[str, Shown]:
        earlier, last, numbers = shown[:-1], shown[-1], self.cut.shown[:-1]
        found = {RIGHT: shown}
        found |= {str(k): shown[-k:] for k in reversed(numbers) if k > 1}
        other = self.earlier_of_another(i) if earlier else None
        if other is not None:
            found[WRONG_TASK] = [*other, last]
        if len(earlier) > 1:
            found[SHUFFLED] = [*(earlier[k] for k in in_another_order(len(earlier), self._seed, 8, i)), last]
        if earlier:
            found[NONE] = [last]
        return {name: Shown(tuple(pictures), self._answered) for name, pictures in found.items()}

    def earlier_of_another(self, i: int) -> "list[Any] | None":
        """Frames of a clip of another group, the first in keyed order that can be read; None where there is none."""
        for j in pick(len(self._clips), np.arange(len(self._clips)), (self._seed, 9, i)).tolist():
            if self._clips[j].group != self._clips[i].group and not self._clips[j].problem:
                try:
                    return list(self.window(self._clips[j])[0][: self.cut.shown[-1] - 1])
                except BrokenItem:
                    continue
        return None

    def condition_of(self) -> dict[str, str]:
        """Number of frames shown -> the condition that shows so many."""
        first, last = self.cut.shown[0], self.cut.shown[-1]
        names = {str(k): str(k) for k in self.cut.shown}
        return names | ({"1": NONE} if first == 1 else {}) | {str(last): RIGHT}


def baselines_of(shown: "Sequence[UInt8[np.ndarray, 'y x 3']]", frames: int) -> "dict[str, tuple[Any, ...]]":
    """Answers that need no model: the last frame again, each pixel going on as between the last two, the mean."""
    last = shown[-1].astype(np.int64)
    found = {"copy_last_frame": (shown[-1],) * frames}
    if len(shown) > 1:
        step = last - shown[-2]
        going_on = [np.clip(last + k * step, 0, 255).astype(np.uint8) for k in range(1, frames + 1)]
        found["linear_extrapolation"] = tuple(going_on)
        mean = np.rint(np.mean(shown, axis=0)).astype(np.uint8)
        found["mean_frame"] = (mean,) * frames
    return found
