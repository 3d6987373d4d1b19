"""Scores of the frames of a clip that were painted, beside PSNR: pure functions of pictures uint8 [y, x, 3]."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from lvm.evaluation.measures import moving, moving_psnr, psnr
from tokenizer.evaluate import ssim as ssim_of_batch

if TYPE_CHECKING:
    from jaxtyping import UInt8

    from lvm.evaluation.cases import Picture


def ssim(answers: "UInt8[np.ndarray, 'n y x 3']", truths: "UInt8[np.ndarray, 'n y x 3']") -> "Sequence[float]":
    """Structural similarity of each picture (Wang et al. 2004) in float64: a Gaussian window of 11 pixels, sigma 1.5,
    data range 255, each channel by itself, the mean over the places where the window fits. scikit-image has it so with
    gaussian_weights; torchmetrics takes reflected borders into the mean."""
    a, b = (torch.from_numpy(pictures).permute(0, 3, 1, 2).double() / 255 for pictures in (answers, truths))
    found: Sequence[float] = ssim_of_batch(a, b).tolist()
    return found


def moving_iou(
    answer: "UInt8[np.ndarray, 'y x 3']", truth: "UInt8[np.ndarray, 'y x 3']", last: "UInt8[np.ndarray, 'y x 3']"
) -> float:
    """Intersection over union of the pixels that differ from the last frame in the answer and in the truth; NaN where
    nothing moves in the truth."""
    wanted, given = moving(truth, last), moving(answer, last)
    return float((wanted & given).sum() / (wanted | given).sum()) if wanted.any() else float("nan")


def frame_scores(
    answers: "Sequence[Picture]", truths: "Sequence[Picture]", last: "Picture"
) -> "dict[str, list[float]]":
    """By measure, a number for each frame; `last` is the last frame shown, whatever frame is judged."""
    pairs = list(zip(answers, truths, strict=True))
    return {
        "psnr": [psnr(answer, truth) for answer, truth in pairs],
        "ssim": list(ssim(np.stack(answers), np.stack(truths))),
        "moving_psnr": [moving_psnr(answer, truth, last) for answer, truth in pairs],
        "moving_iou": [moving_iou(answer, truth, last) for answer, truth in pairs],
    }


def mean_of_known(values: "Sequence[float]") -> float:
    """NaN where all are."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
