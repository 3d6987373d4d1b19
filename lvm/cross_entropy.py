"""The head and its cross-entropy in pieces: logits never exist whole.

`next_token_nll` is one piece. `weighted_nll` is what training descends: its gradients are made in the forward pass,
piece by piece, so that no logits are computed a second time (as Liger Kernel does, arXiv 2410.10989). Both multiply by
the head padded to a multiple of 128 rows: 8292 rows of bf16 are not 16-byte aligned, which matrix units want.
"""

import functools
import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Int

# Elements of logits that are held at one time. A piece adds to the float32 gradient of the head, which a GPU does no
# faster than a product of a thousand rows.
LOGITS_AT_ONCE = {"cpu": 2**22, "cuda": 2**25}


def rows_at_once(vocab_size: int, device: torch.device) -> int:
    """Rows of logits that are held at one time; whole tiles of a product where there are many."""
    rows = max(1, LOGITS_AT_ONCE.get(device.type, LOGITS_AT_ONCE["cuda"]) // vocab_size)
    return rows - rows % 256 if rows >= 2048 else rows


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
    fused: bool = False,
) -> "tuple[Float32[Tensor, ''], Float32[Tensor, 'n']]":
    """sum of target_weights (nll + z_loss logsumexp^2), and each target's nll, which has no gradient.

    `rows` of logits are made at one time; what is done to them between products is compiled if `fused`. z_loss is
    PaLM's (arXiv 2204.02311): it keeps the logits' logsumexp near 0.
    """
    with_gradients = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    total, nll, _, _ = nll_and_gradients(x, weight, targets, target_weights, z_loss, rows, with_gradients, fused)
    return total, nll.detach()


@torch.library.custom_op("lvm::nll_and_gradients", mutates_args=())
def nll_and_gradients(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    target_weights: Tensor,
    z_loss: float,
    rows: int,
    with_gradients: bool,
    fused: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, nll, and the loss's gradients of x and weight (empty unless asked for), from one pass.

    An operator of torch, so that a compiled graph calls it: unrolled there, the more pieces the longer it compiled, and
    what they need was not freed before the next.
    """
    padded = padded_head(weight)
    total = torch.zeros((), dtype=torch.float32, device=x.device)
    nll = torch.empty(len(x), dtype=torch.float32, device=x.device)
    grad_x = torch.empty_like(x if with_gradients else x[:0])
    grad_weight = torch.zeros_like(padded if with_gradients else padded[:0], dtype=torch.float32)
    between = _compiled_between_products() if fused else _between_products
    for start in range(0, len(x), rows):
        piece = slice(start, start + rows)
        logits = F.linear(x[piece], padded)
        loss, nll[piece], grad = between(logits, targets[piece], target_weights[piece], len(weight), z_loss)
        total += loss
        if with_gradients:
            grad_x[piece] = grad @ padded
            grad_weight += grad.T @ x[piece]
    return total, nll, grad_x, grad_weight[: len(weight)]


def _between_products(
    logits: Tensor, targets: Tensor, target_weights: Tensor, vocabulary: int, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and nll of some rows, and the gradient of their logits; columns from `vocabulary` on are padding."""
    column = torch.arange(logits.shape[1], device=logits.device)
    wide = torch.where(column < vocabulary, logits.float(), -math.inf)
    logsumexp = wide.logsumexp(-1)
    nll = logsumexp - wide.gather(1, targets[:, None])[:, 0]
    loss = (target_weights * (nll + z_loss * logsumexp.square())).sum()
    softmax = (wide - logsumexp[:, None]).exp()
    grad = softmax * (target_weights * (1 + 2 * z_loss * logsumexp))[:, None]
    grad = grad - torch.where(column == targets[:, None], target_weights[:, None], 0.0)
    return loss, nll, grad.to(logits.dtype)


@functools.cache
def _compiled_between_products() -> Any:
    return torch.compile(_between_products)


@nll_and_gradients.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    target_weights: Tensor,
    z_loss: float,
    rows: int,
    with_gradients: bool,
    fused: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_x, grad_weight = (x, weight) if with_gradients else (x[:0], weight[:0])
    nll = x.new_empty(len(x), dtype=torch.float32)
    return nll.new_empty(()), nll, torch.empty_like(grad_x), torch.empty_like(grad_weight, dtype=torch.float32)


@register_flop_formula(torch.ops.lvm.nll_and_gradients)
def _flops(x: torch.Size, weight: torch.Size, *inputs: Any, **_: Any) -> int:
    with_gradients = inputs[4]
    return 2 * x[0] * x[1] * (weight[0] + -weight[0] % 128) * (3 if with_gradients else 1)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[2:])
    ctx.set_materialize_grads(False)  # zeros as large as the head, for outputs that are none of the loss
    ctx.weight_dtype = inputs[1].dtype


def _backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    grad_x, grad_weight = ctx.saved_tensors
    grad_x = (grad_x.float() * grad_total).to(grad_x.dtype)  # a factor of 16 bits would change all gradients alike
    return grad_x, (grad_weight * grad_total).to(ctx.weight_dtype), *[None] * 6


nll_and_gradients.register_autograd(_backward, setup_context=_keep)
