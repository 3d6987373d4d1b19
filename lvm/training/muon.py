"""Muon (Keller Jordan 2024): momentum, made orthogonal, for matrices. Bit for bit torch.optim.Muon, at half its time.

Matrices of one shape go through Newton-Schulz as one batch: a small net has dozens of them, and each is too small to
fill a core. Sharded gradients are gathered first, so every rank computes the same update of the whole matrix and keeps
its part; what is learnt does not depend on the mesh.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

if TYPE_CHECKING:
    from jaxtyping import BFloat16, Float

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic; after five rounds singular values lie in about 0.7 .. 1.2
ROUNDS = 5
ELEMENTS_AT_ONCE = 2**24  # of one batch: large matrices go one by one


class Muon(torch.optim.Optimizer):
    """The learning rate is AdamW's: updates are scaled to the size of its own (arXiv 2502.16982)."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float):
        super().__init__(list(parameters), {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for parameter in (p for group in self.param_groups for p in group["params"]):
            self.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            updates = []
            for p in parameters:
                kept = self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                updates.append(whole(p.grad.lerp(kept, group["momentum"]).bfloat16()))
            for i, direction in orthogonalised(updates):
                p = parameters[i]
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(sharded_like(direction, p), alpha=-group["lr"] * 0.2 * math.sqrt(max(p.shape)))


def orthogonalised(matrices: "Sequence[BFloat16[Tensor, 'r c']]") -> "Iterator[tuple[int, BFloat16[Tensor, 'r c']]]":
    """Each matrix's number and about U V^T of its U S V^T; those of one shape, lying or standing, in batches."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, matrix in enumerate(matrices):
        alike.setdefault(tuple(sorted(matrix.shape)), []).append(i)
    for (low, high), members in alike.items():
        size = max(1, ELEMENTS_AT_ONCE // (low * high))
        for some in (members[start : start + size] for start in range(0, len(members), size)):
            lying = torch.stack([m.T if m.shape[0] > m.shape[1] else m for m in (matrices[i] for i in some)])
            for i, result in zip(some, newton_schulz(lying)):
                yield i, result.T if matrices[i].shape[0] > matrices[i].shape[1] else result


def newton_schulz(x: "Float[Tensor, 'n r c']") -> "Float[Tensor, 'n r c']":
    """Drive all singular values of each matrix towards 1, by products alone; r <= c."""
    a, b, c = COEFFICIENTS
    x = x / torch.stack([matrix.norm() for matrix in x]).clamp(min=1e-7)[:, None, None]
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def whole(x: Tensor) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def sharded_like(x: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of a tensor that every rank has whole; nothing is sent."""
    if not isinstance(parameter, DTensor):
        return x
    mesh = parameter.device_mesh
    everywhere = DTensor.from_local(x, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(placements=parameter.placements)
