"""How well a tokenizer reproduces pictures, and how much of its codebook it uses. Behind `lvm evaluate-tokenizer`.

Below the scores: the pictures a tokenizer is trained on and judged by, read into one array, and sheets of them.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from lvm.runtime import UserError, atomic_path
from lvm.runtime.hashing import group_hash, hash64, held_out
from tokenizer.bulk import BulkEncoder
from tokenizer.model import VQGAN, TokenizerError

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

PICTURES_AT_ONCE = 256
SSIM_SIDE, SSIM_SIGMA = 11, 1.5


def squared_errors(
    pictures: "UInt8[np.ndarray, 'n y x c']", again: "UInt8[np.ndarray, 'n y x c']"
) -> "Float[np.ndarray, 'n']":
    """Mean squared error of each picture, pixels in [0,1]."""
    error = (pictures.astype(np.float32) - again.astype(np.float32)) / 255
    return np.square(error).mean(axis=(1, 2, 3))


def decibels(squared_error: float) -> float:
    """PSNR of a mean squared error; at most 100 dB, so that a perfect copy is a number."""
    return -10 * math.log10(max(squared_error, 1e-10))


def ssim(a: "Float[Tensor, 'n c y x']", b: "Float[Tensor, 'n c y x']") -> "Float[Tensor, 'n']":
    """Structural similarity of pictures in [0,1]: Wang et al. 2004, Gaussian window of 11 pixels, sigma 1.5, each
    channel by itself, only where the window fits."""
    offsets = torch.arange(SSIM_SIDE, dtype=a.dtype, device=a.device) - SSIM_SIDE // 2
    line = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    line = line / line.sum()
    channels = a.shape[1]
    window = torch.outer(line, line).expand(channels, 1, SSIM_SIDE, SSIM_SIDE)

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(x, window, groups=channels)

    mean_a, mean_b = blur(a), blur(b)
    variance_a, variance_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    means = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return (means * (2 * covariance + c2) / (variance_a + variance_b + c2)).mean(dim=(1, 2, 3))


def usage_of(counts: "np.ndarray") -> tuple[float, float]:
    """Share of the codes that were chosen at all, and the exponential of the entropy of their shares."""
    shares = counts / max(1, counts.sum())
    entropy = -float(np.sum(shares * np.log(np.where(shares > 0, shares, 1.0))))
    return float((counts > 0).mean()), math.exp(entropy)


def evaluate_tokenizer(vq: VQGAN, pictures: "UInt8[np.ndarray, 'n y x c']") -> dict[str, float]:
    """PSNR (dB, the mean over pictures), SSIM, share of codes in use, perplexity of the codes, number of pictures.

    Pictures have the tokenizer's own size; float32 throughout; reconstructions are rounded to uint8 first.
    """
    if len(pictures) == 0:
        raise TokenizerError("there are no pictures to judge the tokenizer by")
    bulk = BulkEncoder(vq, precision="exact")
    if min(bulk.size) < SSIM_SIDE:
        raise TokenizerError(f"pictures of {bulk.size[0]} x {bulk.size[1]} pixels are too small for SSIM's {SSIM_SIDE}")
    counts = np.zeros(vq.config.num_embeddings, np.int64)
    psnrs: list[float] = []
    similarities: list[float] = []
    for start in range(0, len(pictures), PICTURES_AT_ONCE):
        piece = np.array(pictures[start : start + PICTURES_AT_ONCE])  # a copy: the array may be a read-only file
        codes = bulk.encode(piece)
        again = bulk.decode(codes)
        counts += np.bincount(codes.reshape(-1), minlength=len(counts))
        psnrs += [decibels(float(error)) for error in squared_errors(piece, again)]
        a, b = (rearrange(torch.from_numpy(p), "n y x c -> n c y x").float() / 255 for p in (piece, again))
        similarities += ssim(a, b).tolist()
    usage, perplexity = usage_of(counts)
    return {
        "psnr": float(np.mean(psnrs)),
        "ssim": float(np.mean(similarities)),
        "code_usage": usage,
        "code_perplexity": perplexity,
        "pictures": len(pictures),
    }


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
