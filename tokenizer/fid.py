"""Frechet distance between two sets of pictures (Heusel et al. 2017), on features of the Inception net everybody uses.

Inception v3 (Szegedy et al. 2015) as converted from TensorFlow's inception-2015-12-05, with the three places where that
conversion differs from the published net. The weights are a local file in the layout of pytorch-fid; none are shipped.

    net = load_inception("pt_inception-2015-12-05-6726825d.pth")
    ours, theirs = Moments(), Moments()
    ours.add(net(pixels)); theirs.add(net(again))           # float [n,3,y,x] in [0,1], any size
    frechet_distance(ours.mean, ours.covariance, theirs.mean, theirs.covariance)
"""

import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.model import TokenizerError

if TYPE_CHECKING:
    from jaxtyping import Float

FEATURES = 2048
SIDE = 299


def frechet_distance(
    mean_a: "Float[np.ndarray, 'd']",
    covariance_a: "Float[np.ndarray, 'd d']",
    mean_b: "Float[np.ndarray, 'd']",
    covariance_b: "Float[np.ndarray, 'd d']",
) -> float:
    """|ma - mb|^2 + tr(A + B - 2 (A B)^(1/2)) of two Gaussians, in float64.

    The trace of the root is taken of A^(1/2) B A^(1/2), which has the eigenvalues of A B and is symmetric: nothing
    becomes complex where fewer pictures than dimensions leave a covariance singular.
    """
    a, b = (torch.from_numpy(np.asarray(c, np.float64)) for c in (covariance_a, covariance_b))
    values, vectors = torch.linalg.eigh(a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ b @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    apart = np.square(np.asarray(mean_a, np.float64) - np.asarray(mean_b, np.float64)).sum()
    return max(0.0, float(apart) + float(a.trace() + b.trace() - 2 * cross))


class Moments:
    """Mean and covariance of rows that come in pieces (Chan, Golub, LeVeque 1979), in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = np.zeros(0)
        self._scatter = np.zeros((0, 0))

    def add(self, rows: "Float[Tensor, 'n d']") -> None:
        if not len(rows):
            return
        piece = rows.detach().cpu().double().numpy()
        if not self.count:
            self.mean, self._scatter = np.zeros(piece.shape[1]), np.zeros((piece.shape[1], piece.shape[1]))
        centre = piece.mean(0)
        apart, total = centre - self.mean, self.count + len(piece)
        deviations = piece - centre
        self._scatter += deviations.T @ deviations + np.outer(apart, apart) * (self.count * len(piece) / total)
        self.mean = self.mean + apart * (len(piece) / total)
        self.count = total

    @property
    def covariance(self) -> "Float[np.ndarray, 'd d']":
        """With n - 1 below the fraction, as numpy.cov."""
        if self.count < 2:
            raise TokenizerError(f"a covariance needs at least 2 pictures; there are {self.count}")
        return self._scatter / (self.count - 1)


# The net. Attribute names are the keys of the file.


class Conv(nn.Module):
    def __init__(self, width_in: int, width_out: int, kernel: tuple[int, int], stride: int = 1, pad: bool = True):
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if pad else 0
        self.conv = nn.Conv2d(width_in, width_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width_out, eps=1e-3)

    def forward(self, x: "Float[Tensor, 'n c y x']") -> "Float[Tensor, 'n d y2 x2']":
        return F.relu(self.bn(self.conv(x)))


def _mean_around(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)  # differs from the published net: zeros are not averaged


class MixedA(nn.Module):
    """35 x 35 positions: 1x1, 5x5, two 3x3, pooled."""

    def __init__(self, width: int, pooled: int):
        super().__init__()
        self.branch1x1 = Conv(width, 64, (1, 1))
        self.branch5x5_1, self.branch5x5_2 = Conv(width, 48, (1, 1)), Conv(48, 64, (5, 5))
        self.branch3x3dbl_1 = Conv(width, 64, (1, 1))
        self.branch3x3dbl_2, self.branch3x3dbl_3 = Conv(64, 96, (3, 3)), Conv(96, 96, (3, 3))
        self.branch_pool = Conv(width, pooled, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_mean_around(x))], 1)


class MixedB(nn.Module):
    """35 to 17 positions a side."""

    def __init__(self, width: int):
        super().__init__()
        self.branch3x3 = Conv(width, 384, (3, 3), 2, pad=False)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(width, 64, (1, 1)), Conv(64, 96, (3, 3))
        self.branch3x3dbl_3 = Conv(96, 96, (3, 3), 2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], 1)


class MixedC(nn.Module):
    """17 x 17 positions: lines of seven, across and along."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.branch1x1 = Conv(width, 192, (1, 1))
        self.branch7x7_1 = Conv(width, inner, (1, 1))
        self.branch7x7_2, self.branch7x7_3 = Conv(inner, inner, (1, 7)), Conv(inner, 192, (7, 1))
        self.branch7x7dbl_1 = Conv(width, inner, (1, 1))
        self.branch7x7dbl_2, self.branch7x7dbl_3 = Conv(inner, inner, (7, 1)), Conv(inner, inner, (1, 7))
        self.branch7x7dbl_4, self.branch7x7dbl_5 = Conv(inner, inner, (7, 1)), Conv(inner, 192, (1, 7))
        self.branch_pool = Conv(width, 192, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_mean_around(x))], 1)


class MixedD(nn.Module):
    """17 to 8 positions a side."""

    def __init__(self, width: int):
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(width, 192, (1, 1)), Conv(192, 320, (3, 3), 2, pad=False)
        self.branch7x7x3_1, self.branch7x7x3_2 = Conv(width, 192, (1, 1)), Conv(192, 192, (1, 7))
        self.branch7x7x3_3, self.branch7x7x3_4 = Conv(192, 192, (7, 1)), Conv(192, 192, (3, 3), 2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, F.max_pool2d(x, 3, 2)], 1)


class MixedE(nn.Module):
    """8 x 8 positions: 3x3 split in two. The last one pools by the maximum, which the published net does not."""

    def __init__(self, width: int, pools_maximum: bool):
        super().__init__()
        self.pools_maximum = pools_maximum
        self.branch1x1 = Conv(width, 320, (1, 1))
        self.branch3x3_1 = Conv(width, 384, (1, 1))
        self.branch3x3_2a, self.branch3x3_2b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(width, 448, (1, 1)), Conv(448, 384, (3, 3))
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch_pool = Conv(width, 192, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, 1, 1) if self.pools_maximum else _mean_around(x)
        branches = [
            self.branch1x1(x),
            self.branch3x3_2a(three),
            self.branch3x3_2b(three),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(pooled),
        ]
        return torch.cat(branches, 1)


class Inception(nn.Module):
    """Pictures in [0,1] of any size -> the 2048 numbers after the last pooling (pool3). Resized to 299 x 299."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, (3, 3), 2, pad=False)
        self.Conv2d_2a_3x3 = Conv(32, 32, (3, 3), pad=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = Conv(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = Conv(80, 192, (3, 3), pad=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = MixedA(192, 32), MixedA(256, 64), MixedA(288, 64)
        self.Mixed_6a = MixedB(288)
        self.Mixed_6b, self.Mixed_6c = MixedC(768, 128), MixedC(768, 160)
        self.Mixed_6d, self.Mixed_6e = MixedC(768, 160), MixedC(768, 192)
        self.Mixed_7a = MixedD(768)
        self.Mixed_7b, self.Mixed_7c = MixedE(1280, False), MixedE(2048, True)

    def forward(self, pixels: "Float[Tensor, 'n 3 y x']") -> "Float[Tensor, 'n 2048']":
        x = 2 * F.interpolate(pixels, size=(SIDE, SIDE), mode="bilinear", align_corners=False) - 1
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))


def load_inception(file: str | os.PathLike[str]) -> Inception:
    """The net with the weights of `file` (state dict, .pth), float32, in eval mode.

    Its classifier (`fc.*`, `AuxLogits.*`) is not used and may be absent. Raises TokenizerError, naming the first key
    that is missing or has another shape; never runs code from the file.
    """
    path = Path(file)
    if not path.is_file():
        raise TokenizerError(f"{path} does not exist; give the file of FID's Inception weights (pt_inception-*.pth)")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise TokenizerError(f"{path} cannot be read as a state dict of tensors ({reason})") from None
    if not isinstance(tensors, dict):
        raise TokenizerError(f"{path} holds a {type(tensors).__name__}, not a state dict of tensors")
    with torch.device("meta"):
        net = Inception()
    wanted = net.state_dict()
    for name, tensor in wanted.items():
        if name.endswith("num_batches_tracked"):  # counted in training only; absent from older files
            tensors[name] = torch.zeros((), dtype=torch.long)
        elif not isinstance(tensors.get(name), Tensor):
            raise TokenizerError(
                f"{path}: {name} {list(tensor.shape)} is missing; these are not FID's Inception weights"
            )
        elif tensors[name].shape != tensor.shape:
            found, asked = list(tensors[name].shape), list(tensor.shape)
            raise TokenizerError(f"{path}: {name} has shape {found}, FID's Inception has {asked}")
    foreign = [name for name in tensors if name not in wanted and not str(name).startswith(("fc.", "AuxLogits."))]
    if foreign:
        raise TokenizerError(f"{path}: {foreign[0]} is foreign; these are not FID's Inception weights")
    net.load_state_dict(
        {name: tensors[name].float() if tensors[name].is_floating_point() else tensors[name] for name in wanted},
        assign=True,
    )
    return net.eval().requires_grad_(False)
