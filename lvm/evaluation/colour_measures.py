"""How far colours are off: MSE of pixels normalised as for ImageNet, and LPIPS from local weights."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.evaluation.rows import StaysHere
from lvm.runtime import UserError

if TYPE_CHECKING:
    from jaxtyping import UInt8

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406])
IMAGENET_STD = np.array([0.229, 0.224, 0.225])


def normalised_mse(answer: "UInt8[np.ndarray, 'y x 3']", truth: "UInt8[np.ndarray, 'y x 3']") -> float:
    """Mean squared difference of (pixel / 255 - mean) / std, as visual prompting is scored (Bar et al. 2022): about 20
    times that of pixels in [0, 1]."""
    a, b = ((picture / 255.0 - IMAGENET_MEAN) / IMAGENET_STD for picture in (answer, truth))
    return float(np.square(a - b).mean())


class Lpips:
    """LPIPS 0.1 on VGG16 of single pictures, from files as tokenizer/perceptual.py reads them. Raises `UserError`."""

    def __init__(self, files: Sequence[str]) -> None:
        import torch

        from tokenizer.perceptual import LPIPS

        paths = [Path(file).expanduser() for file in files]
        for path in paths:
            if not path.is_file():
                raise UserError(f"lpips={','.join(files)}: {path} is no file; name VGG16's weights and the heads")
        self.fingerprint = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._net = LPIPS.from_files(paths).to(self._device).eval()

    def __reduce__(self) -> Any:
        raise StaysHere("LPIPS is computed where its weights are")

    def __call__(self, answer: "UInt8[np.ndarray, 'y x 3']", truth: "UInt8[np.ndarray, 'y x 3']") -> float:
        import torch

        pixels = torch.from_numpy(np.stack([answer, truth])).to(self._device).permute(0, 3, 1, 2) / 255
        with torch.no_grad():
            return float(self._net(pixels[:1], pixels[1:]))
