"""What a reconstruction is judged by in training: pixels, gradients and coarser copies, so that thin lines survive.

L1 alone decodes lines of one or two pixels to the ground they are drawn on: few pixels, little loss. Squared errors of
the picture and of its gradient make a missing line expensive.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class LossWeights:
    l1: float = 1.0  # mean absolute error of pixels in [0,1]
    l2: float = 2.0  # mean squared error
    gradient_l1: float = 0.5  # absolute error of differences between neighbours
    gradient_l2: float = 0.7  # squared error of them; twice as much once collapsed the codebook
    half_l1: float = 1.0  # absolute error of the picture at half size
    quarter_l1: float = 1.0  # and at a quarter
    codebook: float = 1.0  # the quantizer's own loss
    perceptual: float = 0.0  # of `perceptual_name`; 0 leaves it out
    perceptual_name: Literal["filters", "lpips"] = "filters"  # tokenizer/perceptual.py; lpips needs its weights
    perceptual_files: tuple[str, ...] = ()  # lpips: local files of the VGG16 features and the heads, or one of both
    adversarial: float = 0.0  # hinge loss of a patch discriminator times its adaptive weight (taming: 0.8); 0: none


def gradient_errors(error: "Float[Tensor, 'n c y x']") -> "tuple[Float[Tensor, ''], Float[Tensor, '']]":
    """Mean absolute and mean squared difference of neighbours, both directions added."""
    down, right = error.diff(dim=2), error.diff(dim=3)
    return down.abs().mean() + right.abs().mean(), down.square().mean() + right.square().mean()


def coarse_l1(error: "Float[Tensor, 'n c y x']", factor: int) -> "Float[Tensor, '']":
    return F.avg_pool2d(error, factor).abs().mean()


def reconstruction_loss(
    reconstruction: "Float[Tensor, 'n c y x']", pixels: "Float[Tensor, 'n c y x']", weights: LossWeights
) -> "tuple[Float[Tensor, ''], Float[Tensor, '']]":
    """The weighted sum of the pixel terms, and the mean squared error alone (for PSNR); float32.

    Not in it: `codebook`, `perceptual` and `adversarial`, which need more than the two pictures.
    """
    error = reconstruction.float() - pixels.float()
    squared = error.square().mean()
    gradient_l1, gradient_l2 = gradient_errors(error)
    loss = (
        weights.l1 * error.abs().mean()
        + weights.l2 * squared
        + weights.gradient_l1 * gradient_l1
        + weights.gradient_l2 * gradient_l2
        + weights.half_l1 * coarse_l1(error, 2)
        + weights.quarter_l1 * coarse_l1(error, 4)
    )
    return loss, squared.detach()


def psnr(squared_error: "Float[Tensor, '...']") -> "Float[Tensor, '...']":
    """dB, of a mean squared error of pixels in [0,1]."""
    return -10 * torch.log10(squared_error.clamp(min=1e-10))
