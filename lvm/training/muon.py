"""Muon (Keller Jordan 2024): momentum, made orthogonal, for matrices. Bit for bit torch.optim.Muon, at half its time.

Matrices of one shape go through Newton-Schulz as one batch: a small net has dozens of them, and each is too small to
fill a core. Sharded matrices are dealt out: each rank is sent the parts of its own few, makes these orthogonal and
sends the parts back, so that R ranks do the work once and none holds more than a batch of whole matrices. What is
learnt does not depend on the mesh.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

if TYPE_CHECKING:
    from jaxtyping import BFloat16, Float

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic; after five rounds singular values lie in about 0.7 .. 1.2
ROUNDS = 5
ELEMENTS_AT_ONCE = 2**24  # of one batch: large matrices go one by one


class Muon(torch.optim.Optimizer):
    """The learning rate is AdamW's: updates are scaled to the size of its own (arXiv 2502.16982).

    As torch's fused AdamW it changes nothing where `found_inf`, a flag on the device, is set.
    """

    found_inf: Tensor | None = None

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
                momentum, gradient = _local(self.state[p]["momentum_buffer"]), _local(p.grad)
                kept = momentum.lerp(gradient, 1 - group["momentum"])
                updates.append(gradient.lerp(kept, group["momentum"]).bfloat16())
                self._replace(momentum, kept)
            sharded = any(isinstance(p, DTensor) for p in parameters)
            for i, direction in dealt_out(parameters, updates) if sharded else orthogonalised(updates):
                weight, longest = _local(parameters[i]), max(parameters[i].shape)
                smaller = weight * (1 - group["lr"] * group["weight_decay"])
                self._replace(weight, smaller.add_(direction, alpha=-group["lr"] * 0.2 * math.sqrt(longest)))

    def _replace(self, value: Tensor, new: Tensor) -> None:
        value.copy_(new if self.found_inf is None else torch.where(self.found_inf.bool(), value, new))


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


def dealt_out(
    parameters: "Sequence[nn.Parameter]", shards: "Sequence[BFloat16[Tensor, 'rows c']]"
) -> "Iterator[tuple[int, BFloat16[Tensor, 'rows c']]]":
    """As `orthogonalised`, of matrices of which each rank holds the rows that it holds of the parameter.

    Of a batch, matrix n belongs to rank n mod R. Every rank calls it with the same parameters in the same order.
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, parameter in enumerate(parameters):
        alike.setdefault(tuple(parameter.shape), []).append(i)
    for (height, width), members in alike.items():
        first = parameters[members[0]]
        assert isinstance(first, DTensor)  # FSDP shards all of a model's parameters, or none
        axis = next(axis for axis, placement in enumerate(first.placements) if placement == Shard(0))
        group = first.device_mesh.get_group(axis)
        ranks, rank = dist.get_world_size(group), dist.get_rank(group)
        most = -(-height // ranks)  # rows of a rank, as torch.chunk cuts them
        rows = [min(most, max(0, height - r * most)) for r in range(ranks)]
        at_once = ranks * max(1, ELEMENTS_AT_ONCE // (height * width))
        for some in (members[start : start + at_once] for start in range(0, len(members), at_once)):
            by_owner = [i for owner in range(ranks) for i in some[owner::ranks]]
            to_owners = [len(some[owner::ranks]) * rows[rank] * width for owner in range(ranks)]
            own = len(some[rank::ranks])
            from_others = [own * rows[other] * width for other in range(ranks)]
            parts = torch.cat([shards[i].reshape(-1) for i in by_owner])
            received = exchange(parts, to_owners, from_others, group)
            pieces = [piece.view(own, r, width) for piece, r in zip(received.split(from_others), rows)]
            whole = torch.cat(pieces, dim=1)
            results = [result for _, result in orthogonalised(list(whole))]
            cut = torch.stack(results).split(rows, dim=1) if results else [whole] * ranks
            returned = exchange(torch.cat([piece.reshape(-1) for piece in cut]), from_others, to_owners, group)
            yield from zip(by_owner, returned.view(len(some), rows[rank], width))


def _local(x: Tensor) -> Tensor:
    return x.to_local() if isinstance(x, DTensor) else x


def exchange(parts: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
    """Send the first `sent[0]` elements to rank 0 and so on; what all ranks send here, in their order."""
    result = parts.new_empty(sum(received))
    size = parts.element_size()  # as bytes: gloo does not know every type
    dist.all_to_all_single(
        result.view(torch.uint8), parts.view(torch.uint8), [n * size for n in received], [n * size for n in sent], group
    )
    return result
