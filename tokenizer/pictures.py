"""The pictures a tokenizer is trained on and judged by: read by several processes into one array, drawn by keys.

    pictures = read_pictures(["configs/data/source/world.yaml", "~/Pictures"], size=256, max_pictures=50_000)
    pictures.batch(seed, step, 64, crop=128)      # a function of its arguments: nothing to save, nothing to resume

Every rank holds the whole array (`shared_between_ranks`: once a machine) and takes its part of the global batch. Below:
sheets of pictures over their reconstructions.
"""

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from einops import rearrange
from PIL import Image

from lvm.runtime import UserError, atomic_path, atomic_write
from lvm.runtime.distributed import Distributed
from lvm.runtime.hashing import group_hash, hash64, held_out, seed_from, uniform
from lvm.runtime.machine import num_cores

if TYPE_CHECKING:
    from jaxtyping import UInt8

    from lvm.sources import Source

WORTH_PROCESSES = 200  # units; fewer are read here before a process has started


@dataclass(frozen=True)
class TrainingPictures:
    train: "UInt8[np.ndarray, 'n y x c']"
    held_out: "UInt8[np.ndarray, 'm y x c']"
    sizes: tuple[int, ...] = ()  # of the sources, whose pictures lie one after the other in `train`; (): one source
    weights: tuple[float, ...] = ()  # share of each source in a batch

    def batch(
        self,
        seed: int,
        step: int,
        size: int,
        part: tuple[int, int] = (0, 1),
        crop: int | None = None,
        flip: bool = False,
    ) -> "UInt8[np.ndarray, 'size/parts y x c']":
        """Part `part[0]` of `part[1]` of the global batch of `size` pictures, drawn with replacement.

        The pictures of all parts together, their crops and flips depend on (seed, step, size) alone.
        """
        number, parts = part
        each = size // parts
        places = np.arange(number * each, (number + 1) * each)
        rows = self._rows(hash64(seed, step, places), seed, step, places)
        order = np.argsort(rows, kind="stable")
        rows, places = rows[order], places[order]
        y, x = self.train.shape[1:3]
        if (crop is None or crop == y == x) and not flip:
            return self.train[rows]
        height, width = (y, x) if crop is None else (crop, crop)
        top, left, mirrored = (
            hash64(seed_from("crop", seed), step, places, axis) % np.uint64(n)
            for axis, n in enumerate((y - height + 1, x - width + 1, 2))
        )
        pictures = np.empty((each, height, width, self.train.shape[3]), np.uint8)
        for i, (row, a, b, mirror) in enumerate(zip(rows, top.astype(int), left.astype(int), mirrored)):
            piece = self.train[row, a : a + height, b : b + width]
            pictures[i] = piece[:, ::-1] if flip and mirror else piece
        return pictures

    def _rows(self, drawn: np.ndarray, seed: int, step: int, places: np.ndarray) -> np.ndarray:
        if len(self.sizes) < 2:
            return (drawn % np.uint64(len(self.train))).astype(np.int64)
        bounds = np.cumsum(np.asarray(self.weights) / sum(self.weights))
        chosen = np.searchsorted(bounds[:-1], uniform(seed_from("source", seed), step, places), side="right")
        sizes = np.asarray(self.sizes)
        starts = np.cumsum(sizes) - sizes
        return starts[chosen] + (drawn % sizes[chosen].astype(np.uint64)).astype(np.int64)

    def fingerprint(self) -> str:
        """Of the number of pictures, the sources' sizes and weights, and 64 pictures: what a resumed run must share."""
        digest = hashlib.sha256(repr((self.train.shape, self.held_out.shape, self.sizes, self.weights)).encode())
        for row in np.linspace(0, len(self.train) - 1, 64).astype(np.int64):
            digest.update(self.train[row].tobytes())
        return digest.hexdigest()


class OneAhead:
    """`function`, which computes its next value in a thread while the caller is busy with this one."""

    def __init__(self, function: Callable[..., np.ndarray]):
        self._function = function
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self._arguments: tuple[Any, ...] | None = None
        self._value: Future[np.ndarray] | None = None

    def __call__(self, arguments: tuple[Any, ...], following: tuple[Any, ...]) -> np.ndarray:
        """The value of `arguments`; `following` are likely the next ones (a wrong guess costs time alone)."""
        guessed = self._value is not None and self._arguments == arguments
        value = self._value.result() if guessed and self._value is not None else self._function(*arguments)
        self._arguments, self._value = following, self._pool.submit(self._function, *following)
        return value

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def read_pictures(
    where: str | Sequence[str],
    size: int,
    max_pictures: int,
    frames_per_clip: int = 4,
    held_out_per_mille: int = 20,
    weights: Sequence[float] | None = None,
    workers: int | None = None,
    say: Callable[[str], None] = print,
    unreadable_file: Path | None = None,
) -> TrainingPictures:
    """Up to `max_pictures` of .npy files (the end of each is held out) and of sources (held out by hash of the group).

    Of several sources each gives its weight's share of `max_pictures`. `workers` processes read; None: one a core.
    What cannot be read is a JSON line of `unreadable_file` (source, id, file, reason), which is absent where all can.
    Raises UserError for a source without pictures to train on, and for weights that do not fit.
    """
    sources = [where] if isinstance(where, str) else list(where)
    weights = [1.0] * len(sources) if weights is None else list(weights)
    if not sources or len(weights) != len(sources) or not all(w > 0 and math.isfinite(w) for w in weights):
        raise UserError(
            f"picture_weights {weights} do not fit {len(sources)} sources of pictures; one above 0 for each"
        )
    trains, rests = [], []
    unreadable: list[dict[str, str]] = []
    if unreadable_file is not None:
        unreadable_file.unlink(missing_ok=True)
    for source, weight in zip(sources, weights):
        most = max(1, round(max_pictures * weight / sum(weights)))
        if source.endswith(".npy"):
            train, rest = _from_array(Path(source).expanduser(), size, most, held_out_per_mille)
        else:
            train, rest, broken = _from_source(source, size, most, frames_per_clip, held_out_per_mille, workers)
            unreadable += broken
            if broken and unreadable_file is not None:
                lines = (json.dumps(line, sort_keys=True, ensure_ascii=False) + "\n" for line in unreadable)
                atomic_write(unreadable_file, "".join(lines))
            if broken:
                say(_told(source, broken, unreadable_file))
        if not len(train):
            raise UserError(f"{source} yields no pictures to train on")
        trains.append(train)
        rests.append(rest)
    if len(sources) == 1:
        return TrainingPictures(trains[0], rests[0])
    sizes = tuple(len(train) for train in trains)
    return TrainingPictures(_joined(trains, size), _in_turn(rests), sizes, tuple(weights))


def open_array(file: Path, size: int) -> "UInt8[np.ndarray, 'n size size 3']":
    """A .npy of pictures, memory-mapped. Raises UserError for anything else."""
    try:
        pictures = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as an array ({error})") from None
    if pictures.dtype != np.uint8 or pictures.shape[1:] != (size, size, 3):
        raise UserError(
            f"{file} holds {pictures.dtype} {list(pictures.shape)}; it must be uint8 [n, {size}, {size}, 3]"
        )
    return pictures


def open_pictures(where: str, overrides: Sequence[str] = ()) -> "Source":
    """A source by folder, YAML or name. Of a bare folder what lies in it: grey or noisy copies of its pictures are
    left out unless `overrides` ask for them."""
    from lvm.sources import open_source

    of_folder = ["derived=[]"] if Path(where).expanduser().is_dir() else []
    return open_source(where, [*of_folder, *overrides])


def _from_array(file: Path, size: int, max_pictures: int, per_mille: int) -> tuple[np.ndarray, np.ndarray]:
    pictures = open_array(file, size)
    num_held_out = len(pictures) * per_mille // 1000
    split = len(pictures) - num_held_out
    rest = pictures[split:]
    spread = np.linspace(0, len(rest) - 1, min(len(rest), 1024)).astype(np.int64)
    return np.ascontiguousarray(pictures[: min(split, max_pictures)]), rest[spread]


def _from_source(
    where: str,
    size: int,
    max_pictures: int,
    frames_per_clip: int,
    per_mille: int,
    workers: int | None,
) -> tuple[np.ndarray, np.ndarray, list[dict[str, str]]]:
    """Units in a fixed shuffled order, until enough pictures are together; and what could not be read."""
    from lvm.sources import BrokenItem
    from lvm.sources.reading import Read, read_units

    source = open_pictures(where)
    units = [int(unit) for unit in np.argsort(hash64(0, np.arange(len(source))))]
    if workers is None:
        workers = min(16, num_cores()) if len(units) >= WORTH_PROCESSES else 0
    train: list[np.ndarray] = []
    rest: list[np.ndarray] = []
    broken: list[dict[str, str]] = []
    together = 0
    reading = cast(Generator[Read, None, None], read_units(source, units, size, workers=workers))
    with closing(reading) as read:
        for unit, items in read:
            if isinstance(items, BrokenItem):
                broken.append({"source": where, "id": source.unit_id(unit), "file": items.file, "reason": items.reason})
                continue
            for item in items:
                kept = rest if held_out(np.asarray(group_hash(item.group), np.uint64), per_mille) else train
                for pictures in item.channels.values():
                    count = min(len(pictures), frames_per_clip)
                    kept.append(pictures[np.linspace(0, len(pictures) - 1, count).astype(np.int64)])
                    together += count
            if together >= max_pictures:
                break
    return _joined(train, size), _joined(rest, size), broken


def _told(where: str, broken: list[dict[str, str]], file: Path | None) -> str:
    first = f"the first is {broken[0]['file']}: {broken[0]['reason']}"
    named = "" if file is None else f"; all are named in {file}"
    return f"{where}: {len(broken)} units could not be read and are left out; {first}{named}"


def _joined(pieces: list[np.ndarray], size: int) -> "UInt8[np.ndarray, 'n y x c']":
    """One array of all, each piece given back once it is copied: they never lie in memory twice."""
    whole: np.ndarray = np.empty((sum(map(len, pieces)), size, size, 3), np.uint8)
    start = 0
    for piece in _emptied(pieces):
        whole[start : start + len(piece)] = piece
        start += len(piece)
    return whole


def _emptied(pieces: list[np.ndarray]) -> Iterator[np.ndarray]:
    pieces.reverse()
    while pieces:
        yield pieces.pop()


def _in_turn(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """One row of each array after the other, so that the first rows show every source."""
    keys = np.concatenate([np.arange(len(array)) for array in arrays])
    return np.concatenate(arrays)[np.argsort(keys, kind="stable")]


def shared_between_ranks(
    read: Callable[[], TrainingPictures], ranks: Distributed, local_rank: int, folder: Path | None = None
) -> TrainingPictures:
    """What `read` gives, read by the first rank of each machine and mapped by its others.

    The array lies in `folder` (default: /dev/shm, or the temporary folder where that is too small), without a name
    once all have mapped it. Every rank raises where reading fails.
    """
    if ranks.world_size == 1:
        return read()
    problem, place, offer = None, None, None
    if local_rank == 0:
        try:
            pictures = read()
            place = Path(tempfile.mkdtemp(prefix="tokenizer-pictures-", dir=folder or _roomy(pictures.train.nbytes)))
            np.save(place / "train.npy", pictures.train)
            np.save(place / "held_out.npy", pictures.held_out)
            offer = str(place), pictures.sizes, pictures.weights
            del pictures
        except Exception as error:
            problem = error
    try:
        ranks.together(problem)
        offers = ranks.gather(offer)
        # The machine's first rank is the nearest one, downwards, that offers something.
        where, sizes, weights = next(offers[rank] for rank in range(ranks.rank, -1, -1) if offers[rank] is not None)
        train, rest = np.load(Path(where) / "train.npy", mmap_mode="r"), np.load(Path(where) / "held_out.npy")
        ranks.barrier()
    finally:
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)
    return TrainingPictures(train, rest, sizes, weights)


def _roomy(num_bytes: int) -> str | None:
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > 1.1 * num_bytes else None


def sheet(
    pictures: "UInt8[np.ndarray, 'n y x c']",
    again: "UInt8[np.ndarray, 'n y x c']",
    columns: int = 16,
    rows: int = 6,
    zoom: int = 2,
) -> "UInt8[np.ndarray, 'h w c']":
    """Evenly spaced pictures, each above its reconstruction."""
    chosen = np.linspace(0, len(pictures) - 1, min(len(pictures), rows * columns)).astype(np.int64)
    pairs = np.concatenate([pictures[chosen], again[chosen]], axis=1)
    padding = np.zeros((-len(pairs) % columns, *pairs.shape[1:]), np.uint8)
    pairs = np.pad(np.concatenate([pairs, padding]), ((0, 0), (0, 3), (0, 1), (0, 0)), constant_values=255)
    pairs = pairs.repeat(zoom, axis=1).repeat(zoom, axis=2)
    return rearrange(pairs, "(r k) y x c -> (r y) (k x) c", k=columns)


def save_sheet(file: Path, pictures: "UInt8[np.ndarray, 'n y x c']", again: "UInt8[np.ndarray, 'n y x c']") -> None:
    """A PNG of `sheet`, complete or absent; large pictures fewer a sheet."""
    zoom = max(1, 96 // pictures.shape[1])
    columns = max(4, min(16, 2048 // (zoom * pictures.shape[2])))
    with atomic_path(file) as aside:
        Image.fromarray(sheet(pictures, again, columns, rows=min(6, columns), zoom=zoom)).save(aside, format="png")
