"""How well a tokenizer reproduces pictures, and how much of its codebook it uses. Behind `lvm evaluate-tokenizer`."""

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

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
