"""How well a tokenizer reproduces pictures, and how much of its codebook it uses. Behind `lvm evaluate-tokenizer`.

Pictures stream through in batches; only sums, one number a picture and the examples of a sheet stay. What a decoded
annotation still says is judged by a callable that is handed in (`lvm.evaluation.annotations`).

    stream = PictureStream("~/Pictures", vq.config.resolution, max_pictures=2048)
    evaluate(vq, stream).scores["psnr"]
"""

import itertools
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from lvm.runtime import UserError
from lvm.runtime.hashing import group_hash, hash64, held_out
from tokenizer.bulk import BulkEncoder, Precision
from tokenizer.fid import Moments, frechet_distance
from tokenizer.model import VQGAN, TokenizerError
from tokenizer.pictures import open_array, open_pictures

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

SSIM_SIDE, SSIM_SIGMA = 11, 1.5
MAX_NAMED = 100  # unreadable files kept by name
NUMBERS_AT_ONCE = 2**27  # of one feature map at full resolution, which bounds the pictures of a batch


def squared_errors(
    pictures: "UInt8[np.ndarray, 'n y x c']", again: "UInt8[np.ndarray, 'n y x c']"
) -> "Float[np.ndarray, 'n']":
    """Mean squared error of each picture, pixels in [0,1]."""
    error = (pictures.astype(np.float32) - again.astype(np.float32)) / 255
    return np.square(error).mean(axis=(1, 2, 3))


def decibels(squared_error: float) -> float:
    """PSNR of a mean squared error; at most 100 dB, so that a perfect copy is a number."""
    return -10 * math.log10(max(squared_error, 1e-10))


def gaussian_means(length: int, like: Tensor) -> "Float[Tensor, 'm length']":
    """The means under a window at each place where it fits, as a matrix: one product along each axis is many times
    faster than a convolution of one channel."""
    offsets = torch.arange(SSIM_SIDE, dtype=like.dtype, device=like.device) - SSIM_SIDE // 2
    line = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    means = like.new_zeros(length - SSIM_SIDE + 1, length)
    for k, weight in enumerate(line / line.sum()):
        means.diagonal(k).fill_(weight)
    return means


def ssim(a: "Float[Tensor, 'n c y x']", b: "Float[Tensor, 'n c y x']") -> "Float[Tensor, 'n']":
    """Structural similarity of pictures in [0,1]: Wang et al. 2004, Gaussian window of 11 pixels, sigma 1.5, each
    channel by itself, only where the window fits."""
    rows, columns = (gaussian_means(length, a) for length in a.shape[2:])

    def blur(x: Tensor) -> Tensor:
        return rows @ x @ columns.T

    mean_a, mean_b = blur(a), blur(b)
    variance_a, variance_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    means = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return (means * (2 * covariance + c2) / (variance_a + variance_b + c2)).mean(dim=(1, 2, 3))


def thumbnails(pixels: "Float[Tensor, 'n c y x']", grid: tuple[int, int]) -> "Float[Tensor, 'n c y x']":
    """Pictures in [0,1] from one mean colour for each code, enlarged bicubically and rounded to 1/255: what a code must
    beat to say more than its colour."""
    small = F.adaptive_avg_pool2d(pixels, grid)
    # antialias changes nothing in enlarging but the cubic: a = -0.5, as in PIL
    large = F.interpolate(small, size=pixels.shape[2:], mode="bicubic", align_corners=False, antialias=True)
    return (large.clamp(0, 1) * 255).round() / 255


def usage_of(counts: "np.ndarray") -> tuple[float, float]:
    """Share of the codes that were chosen at all, and the exponential of the entropy of their shares."""
    shares = counts / max(1, counts.sum())
    entropy = -float(np.sum(shares * np.log(np.where(shares > 0, shares, 1.0))))
    return float((counts > 0).mean()), math.exp(entropy)


# What is judged.


@dataclass(frozen=True)
class Picture:
    """One picture to judge a tokenizer by, of its own size."""

    channel: str
    pixels: "UInt8[np.ndarray, 'y x c']"
    photo: "UInt8[np.ndarray, 'y x c'] | None" = None  # that an annotation belongs to


class PictureStream:
    """Up to `max_pictures` of a source, one after the other, as often as it is gone through; never all in memory.

    `where` is a folder, a source's YAML or name, or a .npy of uint8 [n, y, x, 3]. Units come in a fixed shuffled order,
    of a clip four frames. A folder is judged by what lies in it: its derived channels are left out unless `overrides`
    ask for them. `held_out_per_mille` above 0 takes only the groups that a training with this share never saw.
    Raises UserError for a source that cannot be opened, and when it yields no picture.
    """

    def __init__(
        self,
        where: str,
        size: int,
        max_pictures: int,
        overrides: Sequence[str] = (),
        frames_per_clip: int = 4,
        held_out_per_mille: int = 0,
        workers: int = 2,
    ) -> None:
        self.where, self.size, self.max_pictures = where, size, max_pictures
        self.frames_per_clip, self.held_out_per_mille, self.workers = frames_per_clip, held_out_per_mille, workers
        self.source: Any = None
        self.num_unreadable, self.unreadable = 0, list[str]()
        if where.endswith(".npy"):
            if overrides:
                raise UserError(f"{overrides[0]!r} is an option of a source; {where} is an array and has none")
            self._array = open_array(Path(where).expanduser(), size)
        else:
            self.source = open_pictures(where, overrides)

    @property
    def resize(self) -> str:
        """How pictures came to their size: squash, crop (the central square, then resized), or none."""
        return getattr(self.source, "resize", "none")

    def __iter__(self) -> Iterator[Picture]:
        self.num_unreadable, self.unreadable = 0, []
        found = self._of_array() if self.source is None else self._of_source()
        count = 0
        with closing(found):
            for picture in itertools.islice(found, self.max_pictures):
                count += 1
                yield picture
        if not count:
            which = " held-out" if self.held_out_per_mille else ""
            broken = f"; {self.num_unreadable} could not be read, as {self.unreadable[0]}" if self.unreadable else ""
            raise UserError(f"{self.where} yields no{which} pictures to judge the tokenizer by{broken}")

    def _of_array(self) -> Generator[Picture, None, None]:
        num_held_out = len(self._array) * self.held_out_per_mille // 1000
        for row in self._array[len(self._array) - num_held_out if self.held_out_per_mille else 0 :]:
            yield Picture("image", np.array(row))

    def _of_source(self) -> Generator[Picture, None, None]:
        from lvm.sources import BrokenItem, read_units

        units = [int(unit) for unit in np.argsort(hash64(0, np.arange(len(self.source))))]
        workers = self.workers if len(units) >= 100 else 0
        reads: Any = read_units(self.source, units, self.size, workers=workers, chunk_units=4)
        with closing(reads):
            for _, items in reads:
                if isinstance(items, BrokenItem):
                    self.num_unreadable += 1
                    if len(self.unreadable) < MAX_NAMED:
                        self.unreadable.append(str(items))
                    continue
                photos = {item.id: item.channels["image"] for item in items if "image" in item.channels}
                for item in items:
                    if self.held_out_per_mille and not held_out(
                        np.asarray(group_hash(item.group), np.uint64), self.held_out_per_mille
                    ):
                        continue
                    photo = photos.get(item.id)
                    for channel, pictures in item.channels.items():
                        count = min(len(pictures), self.frames_per_clip)
                        for frame in np.linspace(0, len(pictures) - 1, count).astype(np.int64):
                            of = None if photo is None or channel == "image" else photo[min(frame, len(photo) - 1)]
                            yield Picture(channel, pictures[frame], of)


# Judging.

Judge = Callable[[str, np.ndarray, np.ndarray, "np.ndarray | None"], Mapping[str, float]]


@dataclass(frozen=True)
class Evaluation:
    scores: dict[str, Any]  # plain JSON values
    examples: "dict[str, list[UInt8[np.ndarray, '3 y x c']]]"  # of each channel: picture, decoded, thumbnail


@dataclass
class _Row:
    """Sums of one channel, or of all."""

    pictures: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, values: Mapping[str, float]) -> None:
        self.pictures += 1
        for name, value in values.items():
            if math.isfinite(value):
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, Any]:
        return {name: total / self.counts[name] for name, total in self.sums.items()} | {"pictures": self.pictures}


class EvenSample:
    """At least `number` evenly spaced members of a stream of unknown length (or all), fewer than twice as many."""

    def __init__(self, number: int) -> None:
        self.number, self.kept = number, list[Any]()
        self._seen, self._step = 0, 1

    def wants(self) -> bool:
        """Whether the next member is to be given to `keep`; asked once a member."""
        self._seen += 1
        return self.number > 0 and (self._seen - 1) % self._step == 0

    def keep(self, member: Any) -> None:
        self.kept.append(member)
        if len(self.kept) == 2 * self.number:
            self.kept, self._step = self.kept[::2], 2 * self._step

    def chosen(self) -> list[Any]:
        places = np.linspace(0, len(self.kept) - 1, min(self.number, len(self.kept))).astype(np.int64)
        return [self.kept[place] for place in places]


def evaluate(
    vq: VQGAN,
    pictures: Iterable[Picture],
    *,
    device: torch.device | str | None = None,
    precision: Precision = "exact",
    batch_size: int | None = None,
    judge: Judge | None = None,
    lpips: "Callable[[Tensor, Tensor], Tensor] | None" = None,
    inception: "Callable[[Tensor], Tensor] | None" = None,
    examples: int = 0,
) -> Evaluation:
    """Scores of a tokenizer on pictures of its own size; reconstructions are rounded to uint8 first.

    psnr and thumbnail_psnr (dB, means over pictures), ssim, code_usage, code_perplexity, dead_codes, tokens, pictures,
    pictures_per_second (encoded and decoded; reading and scoring left out), and `channels`: the same means for each
    channel, with what `judge` says of each picture (channel, picture, decoded, photo) -> name: number.
    `lpips` (pictures, decoded in [0,1] -> [n]) adds lpips; `inception` (pictures -> [n, features]) adds rfid, taken of
    channel image alone. Means do not depend on `batch_size`. Raises TokenizerError without pictures.
    """
    if batch_size is None:
        y, x = (side * vq.config.factor for side in vq.config.code_grid)
        batch_size = max(1, min(64, NUMBERS_AT_ONCE // (vq.config.hidden_channels * y * x)))
    bulk = BulkEncoder(vq, device, batch_size=batch_size, precision=precision)
    if min(bulk.size) < SSIM_SIDE:
        raise TokenizerError(f"pictures of {bulk.size[0]} x {bulk.size[1]} pixels are too small for SSIM's {SSIM_SIDE}")
    counts = np.zeros(vq.config.num_embeddings, np.int64)
    overall, rows = _Row(), dict[str, _Row]()
    samples: dict[str, EvenSample] = {}
    of_pictures, of_decoded = Moments(), Moments()
    times: list[tuple[int, float]] = []
    stream = iter(pictures)
    while batch := list(itertools.islice(stream, batch_size)):
        originals = np.stack([picture.pixels for picture in batch])
        began = time.perf_counter()
        codes = bulk.encode(originals)
        decoded = bulk.decode(codes)
        times.append((len(batch), time.perf_counter() - began))
        counts += np.bincount(codes.reshape(-1), minlength=len(counts))
        with torch.inference_mode():
            a, b = (_to_pixels(array, bulk.device) for array in (originals, decoded))
            small = thumbnails(a, vq.config.code_grid)
            values: dict[str, list[float]] = {
                "psnr": [decibels(error) for error in (a - b).square().mean((1, 2, 3)).tolist()],
                "thumbnail_psnr": [decibels(error) for error in (a - small).square().mean((1, 2, 3)).tolist()],
                "ssim": ssim(a, b).tolist(),
            }
            if lpips is not None:
                values["lpips"] = lpips(a, b).reshape(-1).tolist()
            photos = [n for n, picture in enumerate(batch) if picture.channel == "image"]
            if inception is not None and photos:
                of_pictures.add(inception(a[photos]))
                of_decoded.add(inception(b[photos]))
        blurred = (rearrange(small, "n c y x -> n y x c") * 255).round().byte().cpu().numpy() if examples else decoded
        for n, picture in enumerate(batch):
            scores = {name: of[n] for name, of in values.items()}
            overall.add(scores)
            if judge is not None:
                scores |= judge(picture.channel, picture.pixels, decoded[n], picture.photo)
            rows.setdefault(picture.channel, _Row()).add(scores)
            sample = samples.setdefault(picture.channel, EvenSample(examples))
            if sample.wants():
                sample.keep(np.stack([picture.pixels, decoded[n], blurred[n]]))
    if not overall.pictures:
        raise TokenizerError("there are no pictures to judge the tokenizer by")
    usage, perplexity = usage_of(counts)
    timed = times[1:] or times  # the first batch also warms up
    found = overall.means() | {
        "code_usage": usage,
        "code_perplexity": perplexity,
        "dead_codes": int((counts == 0).sum()),
        "tokens": int(counts.sum()),
        "pictures_per_second": sum(n for n, _ in timed) / sum(seconds for _, seconds in timed),
        "channels": {channel: row.means() for channel, row in rows.items()},
    }
    if of_pictures.count > 1:
        found["rfid"] = frechet_distance(
            of_pictures.mean, of_pictures.covariance, of_decoded.mean, of_decoded.covariance
        )
        found["rfid_pictures"] = of_pictures.count
    return Evaluation(found, {channel: sample.chosen() for channel, sample in samples.items()})


def _to_pixels(pictures: "UInt8[np.ndarray, 'n y x c']", device: torch.device) -> "Float[Tensor, 'n c y x']":
    return rearrange(torch.from_numpy(pictures).to(device), "n y x c -> n c y x").float() / 255


def evaluate_tokenizer(vq: VQGAN, pictures: "UInt8[np.ndarray, 'n y x c']") -> dict[str, float]:
    """psnr, ssim, code_usage, code_perplexity and pictures of an array of pictures, in float32; see `evaluate`."""
    scores = evaluate(vq, (Picture("image", np.array(picture)) for picture in pictures)).scores
    return {name: scores[name] for name in ("psnr", "ssim", "code_usage", "code_perplexity", "pictures")}
