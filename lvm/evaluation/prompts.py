"""Evaluation data: visual sentences of five shown items and a query, with every channel of each, as pixels and codes.

One `PromptSet` serves all its tasks and all numbers of pairs: the targets are the same throughout, so that differences
are paired. Which items stand in it is a function of (source, seed); none of their groups was trained on.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.evaluation.tasks import Task, tasks_of
from lvm.runtime import UserError
from lvm.runtime.hashing import group_hash, hash64, held_out
from lvm.sources.base import BrokenItem, Item, Source
from lvm.sources.reading import read_units

if TYPE_CHECKING:
    from jaxtyping import Int, Int64, UInt8, UInt16

    from lvm.sources.world import WorldSource
    from tokenizer import VQGAN

NUM_PAIRS = 5  # shown before the query
NUM_FRAMES = 8  # of a clip, the target included
MAX_SHOWN = 64  # pictures kept of those that are not held out, for each set of channels: they only stand before queries


@dataclass(frozen=True)
class PromptSet:
    """n sentences of p = 6 items that share a view; the last is the query. Arrays are keyed by channel."""

    pixels: "dict[str, UInt8[np.ndarray, 'n p y x 3']]"
    codes: "dict[str, UInt16[np.ndarray, 'n p t']]"
    view: "Int64[np.ndarray, 'n']"  # of the sentence; view v > 0 of the world means latent v - 1
    ids: tuple[str, ...]  # of the queries
    tasks: tuple[Task, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_distinct(self) -> int:
        """Different queries; less than the number of targets where a small source was gone through more than once."""
        return len(set(self.ids))


@dataclass(frozen=True)
class ClipSet:
    """n clips of f frames; the last is the target."""

    pixels: "UInt8[np.ndarray, 'n f y x 3']"
    codes: "UInt16[np.ndarray, 'n f t']"
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)


def pick(number: int, among: "Int[np.ndarray, 'm']", keys: tuple[int, ...]) -> "Int[np.ndarray, 'number']":
    """`number` different members of `among` in an order keyed by `keys`."""
    return np.asarray(among)[np.argsort(hash64(*keys, np.asarray(among)), kind="stable")[:number]]


def choose_sentences(
    queries: "Int[np.ndarray, 'q']", shown: "Int[np.ndarray, 'm']", num_targets: int, seed: int
) -> "Int64[np.ndarray, 'n 6']":
    """Items of each sentence, the query last: queries in keyed order, gone through again (with other pairs) where there
    are fewer than `num_targets`; five other items each. Raises `UserError` with fewer than six items."""
    if len(queries) == 0 or len(set(shown.tolist()) - {int(queries[0])}) < NUM_PAIRS:
        raise UserError(
            f"{len(queries)} held-out pictures and {len(shown)} to show before them are too few to evaluate on; "
            f"at least 1 and {NUM_PAIRS + 1} are needed"
        )
    order = pick(len(queries), queries, (seed, 0))
    rows = []
    for target in range(num_targets):
        query = order[target % len(order)]
        rows.append([*pick(NUM_PAIRS, shown[shown != query], (seed, 1, target)), query])
    return np.array(rows, dtype=np.int64)


def assemble(
    sentences: "Int64[np.ndarray, 'n p']",
    view: "Int64[np.ndarray, 'n']",
    channels_of: "Callable[[int, int], dict[str, UInt8[np.ndarray, 'y x 3']]]",
    id_of: Callable[[int], str],
    vq: "VQGAN",
    tasks: Sequence[Task] | None = None,
) -> PromptSet:
    """Read (item, view) pictures with `channels_of` and encode them; the channels are those that every item has."""
    return _assemble(
        sentences, view, (channels_of(int(i), int(v)) for i, v in _cells(sentences, view)), id_of, vq, tasks
    )


def _cells(sentences: Any, view: Any) -> list[tuple[int, int]]:
    """(item, view) of every place, sentence by sentence."""
    return [(int(i), int(v)) for row, v in zip(sentences, view) for i in row]


def _assemble(
    sentences: Any,
    view: Any,
    drawn: "Iterable[dict[str, Any]]",
    id_of: Callable[[int], str],
    vq: "VQGAN",
    tasks: Sequence[Task] | None,
) -> PromptSet:
    places = list(drawn)
    names = [name for name in places[0] if all(name in place for place in places)]
    chosen = tuple(tasks_of(names) if tasks is None else tasks)
    # n p y x c; `pop` so that one copy of the pictures exists at a time
    shape = sentences.shape
    pixels = {name: np.stack([place.pop(name) for place in places]) for name in names}
    encoded = encode(vq, list(pixels.values()))
    codes = {name: stack.reshape(*shape, -1) for name, stack in zip(pixels, encoded)}
    pixels = {name: pictures.reshape(*shape, *pictures.shape[1:]) for name, pictures in pixels.items()}
    return PromptSet(pixels, codes, np.asarray(view), tuple(id_of(int(row[-1])) for row in sentences), chosen)


def encode(vq: "VQGAN", pictures: "Sequence[UInt8[np.ndarray, 'n y x 3']]") -> "list[UInt16[np.ndarray, 'n t']]":
    """Codes of several stacks of pictures."""
    from tokenizer import BulkEncoder  # here, so that processes that only read pictures do not load torch

    encoder = BulkEncoder(vq)
    return [encoder.encode(stack) for stack in pictures]


# The world: scenes of the split that no training item comes from.


@dataclass(frozen=True)
class Drawings:
    """The (scene, view) pictures of a list of places as a source, so that several processes draw them."""

    world: "WorldSource"
    places: tuple[tuple[int, int], ...]

    @property
    def name(self) -> str:
        return self.world.name

    @property
    def channels(self) -> tuple[str, ...]:
        return self.world.channels

    def __len__(self) -> int:
        return len(self.places)

    def unit_id(self, i: int) -> str:
        return self.world.unit_id(self.places[i][0])

    def read(self, i: int, size: int) -> list[Item]:
        scene, view = self.places[i]
        steady, drawn = self.world.draw(scene, [view - 1], size)
        channels = {name: picture[None] for name, picture in {**steady, **drawn}.items()}
        return [Item(id=self.unit_id(i), group=self.unit_id(i), view=view, label=-1, channels=channels)]

    def fingerprint(self) -> str:
        return self.world.fingerprint()


def world_prompts(
    world: "WorldSource",
    vq: "VQGAN",
    num_targets: int = 200,
    seed: int = 0,
    latents: Sequence[int] | None = None,
    workers: int = 2,
) -> PromptSet:
    """Sentences of scenes of a world of the test split, each under one of `latents` (default: those trained on)."""
    if world.config.split != "test":
        raise UserError(
            f"evaluation needs a world of split test, not {world.config.split}: its scenes were never trained on"
        )
    scenes = np.arange(world.config.num_scenes)
    sentences = choose_sentences(scenes, scenes, num_targets, seed)
    chosen = np.array(range(world.num_trained_latents) if latents is None else latents, dtype=np.int64)
    view = 1 + chosen[(hash64(seed, 2, np.arange(num_targets)) % np.uint64(len(chosen))).astype(np.int64)]
    drawings = Drawings(world, tuple(_cells(sentences, view)))
    drawn = (_pictures(items) for _, items in _read(drawings, range(len(drawings)), vq.config.resolution, workers))
    return _assemble(sentences, view, drawn, world.unit_id, vq, None)


def world_clips(
    world: "WorldSource",
    vq: "VQGAN",
    num_clips: int = 128,
    seed: int = 0,
    num_frames: int = NUM_FRAMES,
    workers: int = 2,
) -> ClipSet | None:
    """Clips of a world of the test split; None where it has none."""
    if world.config.num_clips == 0:
        return None
    units = world.config.num_scenes + pick(num_clips, np.arange(world.config.num_clips), (seed, 3))
    found = [items[0] for _, items in _read(world, units.tolist(), vq.config.resolution, workers)]
    return cut_clips(found, vq, num_frames, seed)


def cut_clips(items: Sequence[Item], vq: "VQGAN", num_frames: int, seed: int) -> ClipSet | None:
    """A run of `num_frames` frames of each clip that has so many, from a keyed start; None without any."""
    runs, ids = [], []
    for item in items:
        spare = item.num_pictures - num_frames
        if spare >= 0 and "image" in item.channels:
            start = int(hash64(seed, 4, group_hash(item.id))) % (spare + 1)
            runs.append(item.channels["image"][start : start + num_frames])
            ids.append(item.id)
    if not runs:
        return None
    pixels = np.stack(runs)
    (codes,) = encode(vq, [pixels.reshape(-1, *pixels.shape[2:])])  # n f y x c -> (n f) y x c
    return ClipSet(pixels, codes.reshape(*pixels.shape[:2], -1), tuple(ids))


# Folders and any other source: what is held out by group, as in training.


def source_prompts(
    source: Source,
    vq: "VQGAN",
    held_out_per_mille: int,
    num_targets: int = 200,
    seed: int = 0,
    num_frames: int = NUM_FRAMES,
    max_units: int = 4000,
    workers: int = 2,
    exclude_groups: Collection[str] = (),
    broken: list[str] | None = None,
) -> tuple[list[PromptSet], ClipSet | None]:
    """Sentences and clips of a source whose queries (and clips) are held out, and the pairs too where enough are: by
    their groups' hash, or by name as `exclude_groups`. Units that cannot be read are left out and added to `broken`.

    Pictures with different annotations make different sets: first one of all pictures, for the channels that all have,
    then one for each annotation that only some have; a task is in the first set that allows it. At most `max_units`
    units are read, in keyed order. Raises `UserError` where nothing is held out.
    """
    pictures: list[dict[int, Any]] = []
    names: list[str] = []
    is_held: list[bool] = []
    clips: list[Item] = []
    kept: Counter[tuple[Any, ...]] = Counter()
    order = pick(max_units, np.arange(len(source)), (seed, 5))
    for _, items in _read(source, order.tolist(), vq.config.resolution, workers, [] if broken is None else broken):
        hashed = np.asarray(group_hash(items[0].group), np.uint64)
        held = items[0].group in exclude_groups or bool(held_out(hashed, held_out_per_mille))
        if items[0].num_pictures > 1:
            clips.extend(items[:1] if held else [])
            continue
        kind = (held, *sorted({name for item in items for name in item.channels}))
        kept[kind] += 1
        if kept[kind] <= (num_targets + NUM_PAIRS if held else MAX_SHOWN):
            pictures.append(_views(items))
            names.append(items[0].id)
            is_held.append(held)
    sets: list[PromptSet] = []
    done: set[str] = set()
    queries = np.flatnonzero(is_held)
    offered = sorted({name for views in pictures for channels in views.values() for name in channels})
    for task in sorted(tasks_of(offered), key=lambda task: task.output != "image"):
        if task.name in done:
            continue
        holders = np.array([i for i, views in enumerate(pictures) if _has(views, task)], dtype=np.int64)
        asked = np.intersect1d(holders, queries)
        shown = asked if len(asked) > NUM_PAIRS else holders
        if len(asked) == 0 or len(shown) <= NUM_PAIRS:
            continue
        sentences = choose_sentences(asked, shown, num_targets, seed)
        view = np.array([_common_view([pictures[i] for i in row], seed, n) for n, row in enumerate(sentences)])
        drawn = ({**pictures[i][min(pictures[i])], **pictures[i][v]} for i, v in _cells(sentences, view))
        made = _assemble(sentences, view, drawn, lambda i: names[i], vq, None)
        new = tuple(t for t in made.tasks if t.name not in done)
        done.update(t.name for t in new)
        sets.append(PromptSet(made.pixels, made.codes, made.view, made.ids, new))
    found = cut_clips(clips, vq, num_frames, seed)
    if not sets and found is None:
        raise UserError(
            f"{source.name} has {len(queries)} held-out pictures and {len(clips)} held-out clips of {len(source)} "
            "units: nothing to evaluate on; hold out more (held_out_per_mille) or add pictures"
        )
    return sets, found


def _views(items: Sequence[Item]) -> dict[int, Any]:
    return {item.view: {name: frames[0] for name, frames in item.channels.items()} for item in items}


def _has(views: dict[int, Any], task: Task) -> bool:
    held = {name for channels in views.values() for name in channels}
    return task.input in held and task.output in held


def _common_view(items: Sequence[dict[int, Any]], seed: int, target: int) -> int:
    """A view that all six items are in, above 0 where there is one: the one column a sentence agrees on."""
    common = set(items[0]).intersection(*items[1:])
    above = sorted(common - {0}) or sorted(common)
    if not above:
        raise UserError("the pictures of this source share no view; give every picture the same views")
    return above[int(hash64(seed, 6, target)) % len(above)]


def _pictures(items: Sequence[Item]) -> dict[str, Any]:
    return {name: frames[0] for name, frames in items[0].channels.items()}


def _read(
    source: Any, units: Sequence[int], size: int, workers: int, broken: list[str] | None = None
) -> Iterator[tuple[int, list[Item]]]:
    """What cannot be read is added to `broken`; without such a list it raises `UserError`."""
    for unit, items in read_units(source, units, size, workers=workers):
        if isinstance(items, BrokenItem):
            if broken is None:
                raise UserError(f"{items}; mend or remove it")
            broken.append(str(items))
            continue
        yield unit, items
