"""The pictures a tokenizer is trained on and judged by, from a .npy or any source into one array; and sheets."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from einops import rearrange
from PIL import Image

from lvm.runtime import UserError, atomic_path
from lvm.runtime.hashing import group_hash, hash64, held_out

if TYPE_CHECKING:
    from jaxtyping import UInt8


@dataclass(frozen=True)
class TrainingPictures:
    train: "UInt8[np.ndarray, 'n y x c']"
    held_out: "UInt8[np.ndarray, 'm y x c']"

    def batch(self, seed: int, step: int, size: int) -> "UInt8[np.ndarray, 'size y x c']":
        """Drawn with replacement, a function of (seed, step) alone."""
        rows = hash64(seed, step, np.arange(size)) % np.uint64(len(self.train))
        return self.train[np.sort(rows.astype(np.int64))]


def read_pictures(
    where: str, size: int, max_pictures: int, frames_per_clip: int = 4, held_out_per_mille: int = 20
) -> TrainingPictures:
    """Up to `max_pictures` of a .npy file (its end is held out) or of a source (by hash of the group)."""
    if where.endswith(".npy"):
        train, rest = _from_array(Path(where), size, max_pictures, held_out_per_mille)
    else:
        train, rest = _from_source(where, size, max_pictures, frames_per_clip, held_out_per_mille)
    if not len(train):
        raise UserError(f"{where} yields no pictures to train on")
    return TrainingPictures(train, rest)


def _from_array(file: Path, size: int, max_pictures: int, per_mille: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        pictures = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as an array ({error})") from None
    if pictures.dtype != np.uint8 or pictures.shape[1:] != (size, size, 3):
        raise UserError(
            f"{file} holds {pictures.dtype} {list(pictures.shape)}; it must be uint8 [n, {size}, {size}, 3]"
        )
    num_held_out = len(pictures) * per_mille // 1000
    split = len(pictures) - num_held_out
    rest = pictures[split:]
    spread = np.linspace(0, len(rest) - 1, min(len(rest), 1024)).astype(np.int64)
    return np.ascontiguousarray(pictures[: min(split, max_pictures)]), rest[spread]


def _from_source(
    where: str, size: int, max_pictures: int, frames_per_clip: int, per_mille: int
) -> tuple[np.ndarray, np.ndarray]:
    """Units in a fixed shuffled order, until enough pictures are together."""
    from lvm.sources import BrokenItem, open_source

    source = open_source(where)
    train: list[np.ndarray] = []
    rest: list[np.ndarray] = []
    together = 0
    for unit in np.argsort(hash64(0, np.arange(len(source)))):
        try:
            items = source.read(int(unit), size)
        except BrokenItem:
            continue
        for item in items:
            kept = rest if held_out(np.asarray(group_hash(item.group), np.uint64), per_mille) else train
            for pictures in item.channels.values():
                count = min(len(pictures), frames_per_clip)
                kept.append(pictures[np.linspace(0, len(pictures) - 1, count).astype(np.int64)])
                together += count
        if together >= max_pictures:
            break
    empty = np.zeros((0, size, size, 3), np.uint8)
    return np.concatenate([empty, *train]), np.concatenate([empty, *rest])


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
    zoom = max(1, 96 // pictures.shape[1])
    with atomic_path(file) as aside:
        Image.fromarray(sheet(pictures, again, zoom=zoom)).save(aside, format="png")
