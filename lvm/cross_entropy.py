"""The head and its cross-entropy in pieces: logits never exist whole.

`next_token_nll` is one piece. `weighted_nll` is what training descends: its gradients are made in the forward pass,
piece by piece, so that no logits are computed a second time (as Liger Kernel does, arXiv 2410.10989). Both multiply by
the head padded to a multiple of 128 rows: 8292 rows of bf16 are not 16-byte aligned, which matrix units want.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Int

LOGITS_AT_ONCE = 2**22  # elements of logits that are held at one time


def padded_head(weight: "Float[Tensor, 'v d']") -> "Float[Tensor, 'padded d']":
    return F.pad(weight, (0, 0, 0, -len(weight) % 128))


def next_token_nll(
    x: "Float[Tensor, 'n d']", weight: "Float[Tensor, 'v d']", targets: "Int[Tensor, 'n']"
) -> "Float32[Tensor, 'n']":
    """-log softmax(x weight^T) of each target, in nats; softmax in float32."""
    logits = F.linear(x, padded_head(weight))[:, : len(weight)].float()
    return F.cross_entropy(logits, targets, reduction="none")


def weighted_nll(
    x: "Float[Tensor, 'n d']",
    weight: "Float[Tensor, 'v d']",
    targets: "Int[Tensor, 'n']",
    target_weights: "Float32[Tensor, 'n']",
    z_loss: float,
    rows: int,
) -> "tuple[Float32[Tensor, ''], Float32[Tensor, 'n']]":
    """sum of target_weights (nll + z_loss logsumexp^2), and each target's nll, which has no gradient.

    `rows` of logits are made at one time. z_loss is PaLM's (arXiv 2204.02311): it keeps the logits' logsumexp near 0.
    """
    with_gradients = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return _WeightedNLL.apply(x, weight, targets, target_weights, z_loss, rows, with_gradients)  # type: ignore


class _WeightedNLL(torch.autograd.Function):
    """Loss and gradients of x and weight from one pass; backward only multiplies them by the gradient of the loss."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        target_weights: Tensor,
        z_loss: float,
        rows: int,
        with_gradients: bool,
    ) -> tuple[Tensor, Tensor]:
        padded = padded_head(weight)
        column = torch.arange(len(padded), device=x.device)
        total = torch.zeros((), dtype=torch.float32, device=x.device)
        grad_weight = torch.zeros_like(padded, dtype=torch.float32)
        nlls, grads = [], []
        for xs, ts, ws in zip(x.split(rows), targets.split(rows), target_weights.split(rows)):
            logits = F.linear(xs, padded)
            logsumexp = logits[:, : len(weight)].float().logsumexp(-1)
            nll = logsumexp - logits.gather(1, ts[:, None])[:, 0].float()
            nlls.append(nll)
            total = total + (ws * (nll + z_loss * logsumexp.square())).sum()
            if with_gradients:
                softmax = torch.where(column < len(weight), (logits.float() - logsumexp[:, None]).exp(), 0.0)
                grad = softmax * (ws * (1 + 2 * z_loss * logsumexp))[:, None]
                grad = (grad - torch.where(column == ts[:, None], ws[:, None], 0.0)).to(x.dtype)
                grads.append(grad @ padded)
                grad_weight = grad_weight + (grad.T @ xs).float()
        if with_gradients:
            ctx.save_for_backward(torch.cat(grads), grad_weight[: len(weight)])
            ctx.weight_dtype = weight.dtype
        nll = torch.cat(nlls)
        ctx.mark_non_differentiable(nll)
        return total, nll

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight = ctx.saved_tensors
        grad_x = (grad_x.float() * grad_total).to(grad_x.dtype)  # a factor of 16 bits would change all gradients alike
        return grad_x, (grad_weight * grad_total).to(ctx.weight_dtype), None, None, None, None, None
