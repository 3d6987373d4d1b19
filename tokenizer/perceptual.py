"""Perceptual terms of training: LPIPS from local weight files, and one of fixed filters that needs no file.

    term = perceptual_term("filters")                                   # or ("lpips", ["vgg16.pth", "heads.pth"])
    term(reconstruction, pixels)                                        # float [n,3,y,x] in [0,1] -> float32 [n]

Terms are frozen modules without state of their own (no buffers in a state dict), computed in float32 whatever the
surrounding autocast; the gradient goes to the first argument. Nothing is downloaded.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tokenizer.load import read_tensors
from tokenizer.model import TokenizerError

if TYPE_CHECKING:
    from jaxtyping import Float

# Index in torchvision's vgg16().features -> channels in and out; a list ends where LPIPS reads (behind the ReLU).
VGG16 = (
    {0: (3, 64), 2: (64, 64)},
    {5: (64, 128), 7: (128, 128)},
    {10: (128, 256), 12: (256, 256), 14: (256, 256)},
    {17: (256, 512), 19: (512, 512), 21: (512, 512)},
    {24: (512, 512), 26: (512, 512), 28: (512, 512)},
)
PARTS = ("weight", "bias")
LPIPS_SHIFT, LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pixels in [-1,1]


def perceptual_term(name: str, files: Sequence[str | Path] = ()) -> nn.Module:
    """The term called `name` ("filters" or "lpips"); `files` are LPIPS's weights. Raises TokenizerError."""
    if name == "filters":
        return FilterBank()
    if name == "lpips":
        return LPIPS.from_files(files)
    raise TokenizerError(f"perceptual_name is {name!r}; use filters or lpips")


class LPIPS(nn.Module):
    """Learned perceptual similarity (Zhang et al. 2018, arXiv 1801.03924, version 0.1) on VGG16 features.

    Features behind the last ReLU of each of five levels, of length one at each place; squared differences weighted by a
    head for each channel, averaged over places, summed over levels. Pictures of at least 16 pixels a side.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict(
            {str(i): nn.Conv2d(*io, 3, padding=1) for level in VGG16 for i, io in level.items()}
        )
        self.heads = nn.ParameterList(torch.ones(1, list(level.values())[-1][1], 1, 1) for level in VGG16)
        self.requires_grad_(False)

    @classmethod
    def from_files(cls, files: Sequence[str | Path]) -> "LPIPS":
        """From VGG16's `features.N.{weight,bias}` (torchvision) and the heads' `lin{0..4}.model.1.weight` (lpips).

        In one file or more, .safetensors or a torch file of tensors alone; `classifier.*` is left out.

        Raises TokenizerError naming the first missing, foreign or misshapen tensor.
        """
        if not files:
            raise TokenizerError(
                "lpips needs its weights: loss.perceptual_files=[VGG16_FILE,HEADS_FILE]; "
                "perceptual_name=filters needs none"
            )
        net = cls()
        wanted = {f"features.{i}.{part}": net.features[i].get_parameter(part) for i in net.features for part in PARTS}
        wanted |= {f"lin{i}.model.1.weight": head for i, head in enumerate(net.heads)}
        named = ", ".join(str(file) for file in files)
        given: dict[str, Tensor] = {}
        for file in files:
            if not Path(file).is_file():
                raise TokenizerError(f"{file} is missing; loss.perceptual_files names the weights of lpips")
            for name, tensor in read_tensors(Path(file)).items():
                if name.startswith("classifier."):
                    continue
                if name not in wanted:
                    raise TokenizerError(
                        f"{file}: unknown tensor {name}; VGG16 features or the heads of lpips belong here"
                    )
                given[name] = tensor
        for name, parameter in wanted.items():
            if name not in given:
                raise TokenizerError(f"{name} is missing from {named}; give the VGG16 features and the heads of lpips")
            if given[name].shape != parameter.shape:
                raise TokenizerError(
                    f"{name} has shape {list(given[name].shape)} in {named}, lpips needs {list(parameter.shape)}"
                )
            parameter.copy_(given[name])
        return net

    def forward(self, x: "Float[Tensor, 'n 3 y x']", target: "Float[Tensor, 'n 3 y x']") -> "Float[Tensor, 'n']":
        with torch.autocast(x.device.type, enabled=False):
            distance = torch.zeros(len(x), device=x.device)
            for head, a, b in zip(self.heads, self._levels(x), self._levels(target)):
                distance = distance + (head * (unit_length(a) - unit_length(b)).square()).sum(1).mean((1, 2))
            return distance

    def _levels(self, pixels: "Float[Tensor, 'n 3 y x']") -> "list[Float[Tensor, 'n d y2 x2']]":
        shift, scale = (pixels.new_tensor(v).view(3, 1, 1) for v in (LPIPS_SHIFT, LPIPS_SCALE))
        h = (2 * pixels.float() - 1 - shift) / scale
        levels: list[Tensor] = []
        for level in VGG16:
            h = F.max_pool2d(h, 2) if levels else h
            for i in level:
                h = F.relu(self.features[str(i)](h))
            levels.append(h)
        return levels


def unit_length(features: "Float[Tensor, 'n d y x']") -> "Float[Tensor, 'n d y x']":
    # The epsilon stands inside the root: where all channels are 0, the gradient of |f| would be NaN.
    return features * (features.square().sum(1, keepdim=True) + 1e-10).rsqrt()


class FilterBank(nn.Module):
    """Differences of oriented filter responses and of their local energy, seen through contrast masking.

    Each opponent channel (luma and two of chroma) at up to four sizes, each half the former, goes through Gabor filters
    of four directions in even and odd phase, at every second place. Compared are (1) the responses, which say where an
    edge lies, and (2) their energy sqrt(even^2 + odd^2) averaged over 3 x 3 places, which says how much texture of
    which direction there is, wherever its phase: a blur loses it, a shifted texture keeps it. Both differences are
    divided by the target's contrast around the place plus the least visible one, so that an error weighs more on a calm
    ground than in a thicket. Mean absolute differences: 0 for equal pictures, about 0.3 for two photos. Flat colours
    are not compared at all: it needs a pixel loss beside it.

    The parts: Gabor energy (Adelson and Bergen 1985), oriented responses with divisive normalisation as a measure of
    picture quality (Teo and Heeger 1994; Laparra et al. 2016), local averages of energy as the statistics of a texture
    (Portilla and Simoncelli 2000). No weights, no seed; of what objects look like it knows nothing, unlike LPIPS.
    Pictures of 3 channels and at least 12 pixels a side.
    """

    gabor: Tensor
    opponent: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gabor", gabor_filters(), persistent=False)
        self.register_buffer("opponent", torch.tensor(OPPONENT), persistent=False)

    def forward(self, x: "Float[Tensor, 'n 3 y x']", target: "Float[Tensor, 'n 3 y x']") -> "Float[Tensor, 'n']":
        with torch.autocast(x.device.type, enabled=False):
            # The channels become pictures: one convolution from 1 channel to 8.
            a, b = (torch.einsum("oc,ncyx->noyx", self.opponent, p.float()).flatten(0, 1)[:, None] for p in (x, target))
            terms: list[Tensor] = []
            while len(terms) < MOST_SIZES and min(a.shape[2:]) >= LEAST_SIDE:
                terms.append(self._of_one_size(a, b))
                a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
            return rearrange(torch.stack(terms).mean(0), "(n c) -> n c", n=len(x)).mean(1)

    def _of_one_size(self, a: "Float[Tensor, 'm 1 y x']", b: "Float[Tensor, 'm 1 y x']") -> "Float[Tensor, 'm']":
        of_a, of_b = (F.conv2d(p, self.gabor, stride=2) for p in (a, b))
        energy_a, energy_b = energy(of_a), energy(of_b)
        texture_a, texture_b = F.avg_pool2d(energy_a, 3, 1), F.avg_pool2d(energy_b, 3, 1)
        around = F.avg_pool2d(energy_b, 3, 1, padding=1, count_include_pad=False)
        edges = masked((of_a - of_b).abs(), around)
        return 0.5 * (edges + masked((texture_a - texture_b).abs(), texture_b))


def masked(differences: "Float[Tensor, 'm f y x']", contrast: "Float[Tensor, 'm g y x']") -> "Float[Tensor, 'm']":
    """Mean difference where a contrast (averaged over directions) hides the smaller ones."""
    return (differences.mean(1) / (LEAST_CONTRAST + contrast.mean(1))).mean((1, 2))


MOST_SIZES = 4
LEAST_SIDE = 12  # of the smallest size
LEAST_CONTRAST = 0.02  # in pixels of [0,1]
# Luma, and blue and red against it, at about equal variance on photos.
OPPONENT = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))
NUM_DIRECTIONS, FILTER_SIDE, WAVELENGTH, ENVELOPE = 4, 7, 4.0, 1.6  # the last three in pixels


def gabor_filters() -> "Float[Tensor, '8 1 7 7']":
    """Even ones first, then odd ones, each of `NUM_DIRECTIONS`; mean 0, absolute values adding up to 1."""
    offsets = torch.arange(FILTER_SIDE, dtype=torch.float32) - FILTER_SIDE // 2
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    envelope = torch.exp(-(x.square() + y.square()) / (2 * ENVELOPE**2))
    filters = []
    for phase in (0.0, math.pi / 2):
        for i in range(NUM_DIRECTIONS):
            angle = math.pi * i / NUM_DIRECTIONS
            wave = torch.cos(2 * math.pi / WAVELENGTH * (x * math.cos(angle) + y * math.sin(angle)) - phase)
            gabor = envelope * (wave - (envelope * wave).sum() / envelope.sum())
            filters.append(gabor / gabor.abs().sum())
    return torch.stack(filters)[:, None]


def energy(responses: "Float[Tensor, 'm 2*f y x']") -> "Float[Tensor, 'm f y x']":
    even, odd = responses.chunk(2, dim=1)
    return (even.square() + odd.square() + 1e-8).sqrt()
