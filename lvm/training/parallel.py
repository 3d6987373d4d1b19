"""How a step's loss is computed on one rank and on many; the model knows nothing of it.

One rank    weights are cast to bf16 inside the loss function, and model, loss and casts are compiled as one graph
            (3x eager on a CPU for a net of 1M parameters).
More ranks  each block is compiled, then sharded: FSDP2 with the same casts, gradients reduced in float32.
Uncompiled, both give the same bits on one rank (a test says so). Master weights and moments are float32.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.nn.attention import SDPBackend, sdpa_kernel

from lvm.model import LVM, document_positions

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, Int

ANSWER_ROLE, PAD_ROLE = 1, 3
LossOn = Literal["all", "answers"]
UNFUSED_ATTENTION = 1024  # tokens of a window up to which a CPU's compiled attention holds its t x t weights
# (tokens int64 [b, t + 1], role int8 [b, t + 1], targets of the whole step) -> loss, nll of those that count [b, t]
LossFunction = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class _NLL(nn.Module):
    """`model.nll` as a forward, which `functional_call` can run with other weights."""

    def __init__(self, model: LVM, document_mask: bool):
        super().__init__()
        self.model, self.document_mask = model, document_mask

    def forward(self, tokens: "Int[Tensor, 'b t_plus_1']") -> "Float32[Tensor, 'b t']":
        if not self.document_mask:
            return self.model.nll(tokens)
        return self.model.nll(tokens, *document_positions(tokens[:, :-1], self.model.config.bos))


def counted(role: "Int[Tensor, 'b t_plus_1']", loss_on: LossOn) -> "Bool[Tensor, 'b t']":
    """Which targets count, once each: all but PAD, BOS and EOS included (LVM), or the tokens of answers alone."""
    target = role[:, 1:]
    return target != PAD_ROLE if loss_on == "all" else target == ANSWER_ROLE


def attention_kernel(tokens: Tensor) -> AbstractContextManager[None]:
    """What compiled attention runs on: the fused kernels, but for short windows on a CPU.

    The fused kernel's backward pass is slow there: products and softmax that inductor compiles take 13% less of a step
    of the demo's net.
    """
    if tokens.device.type == "cpu" and tokens.shape[1] <= UNFUSED_ATTENTION:
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def make_loss(
    model: LVM, dtype: torch.dtype, document_mask: bool, compile: bool, loss_on: LossOn = "all"
) -> LossFunction:
    """The loss of one micro-batch on one rank: its weighted nll over `targets`, the count of the whole step."""
    module = _NLL(model, document_mask)

    def loss(tokens: Tensor, role: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with attention_kernel(tokens) if compile else nullcontext():
            if dtype == torch.float32:
                nll = module(tokens)
            else:
                cast = {name: parameter.to(dtype) for name, parameter in module.named_parameters()}
                nll = torch.func.functional_call(module, cast, (tokens,))
        nll = torch.where(counted(role, loss_on), nll, 0.0)
        return nll.sum() / targets, nll.detach()

    if compile and next(model.parameters()).device.type == "cpu":
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # CPUs obey it: else bf16 products become float32
    return torch.compile(loss, dynamic=False) if compile else loss


def make_sharded_loss(
    model: LVM, dtype: torch.dtype, document_mask: bool, compile: bool, loss_on: LossOn = "all"
) -> LossFunction:
    """Shard `model` in place over all ranks and return its loss; make the optimiser after this.

    FSDP averages gradients over ranks while the loss is already over the targets of all of them: hence the factor.
    """
    world_size = dist.get_world_size()
    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (world_size,), mesh_dim_names=("shard",))
    # Inputs stay as they are: the angles of the rotary positions are float32.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    if compile:
        for layer in model.layers:
            layer.compile(dynamic=False)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(model, "nll")
    module = _NLL(model, document_mask)

    def loss(tokens: Tensor, role: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        nll = torch.where(counted(role, loss_on), module(tokens), 0.0)
        return nll.sum() * (world_size / targets), nll.detach()

    return loss


def reduce_gradients_on(model: nn.Module, last_micro_batch: bool) -> None:
    """Sharded models reduce gradients once a step, after its last micro-batch."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last_micro_batch)


def full(value: Tensor) -> Tensor:
    """A sharded scalar as a plain one, on every rank."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value
