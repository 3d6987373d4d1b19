"""How a step's loss is computed on one rank and on many; the model knows nothing of it.

One rank    weights are cast to bf16 inside the loss function, and model, loss and casts are compiled as one graph
            (3x eager on a CPU for a net of 1M parameters).
More ranks  each block is compiled, then sharded: FSDP2 with the same casts, gradients reduced in float32.
Uncompiled, both give the same bits on one rank (a test says so). Master weights and moments are float32.

`parallelize` is the place where all of it is put on a model, in the order that works.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch._inductor.config as inductor
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from lvm.model import LVM, document_positions
from lvm.runtime import UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, Int

ANSWER_ROLE, PAD_ROLE = 1, 3
LossOn = Literal["all", "answers"]
Recomputation = Literal["none", "selective", "mlp", "full"]
# (tokens int64 [b, t + 1], role int8 [b, t + 1], targets of the whole step) -> loss, nll of those that count [b, t]
LossFunction = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ParallelConfig:
    """How ranks share the work and what is kept in memory; what is learnt differs by rounding alone."""

    shard: Literal["auto"] | int = "auto"  # ranks that share one copy of weights and moments; auto: all / replicate
    replicate: int = 1  # such copies (HSDP); the number of nodes where the network between them is slow
    # What the backward pass computes again: nothing, all but matrix products and attention, of these the MLP's as well
    # (of a 3b 15% more of the blocks' FLOPs, for half of what selective keeps), or whole blocks.
    activation_checkpointing: Recomputation = "none"
    recomputed_share: float = 1.0  # of the blocks, spread evenly, that compute again; the others keep what they need
    reshard_after_forward: bool = True  # false: blocks stay whole until the backward pass; faster, 2 N bytes a rank
    prefetch: int = 1  # blocks fetched while another computes; each holds its whole weights meanwhile
    reduce_every_micro_batch: bool = False  # true: gradients wait sharded for the step, else whole (4 N bytes a rank)

    def __post_init__(self) -> None:
        for name, least in (("replicate", 1), ("prefetch", 0), ("shard", 1)):
            value = getattr(self, name)
            if value != "auto" and value < least:
                raise UserError(f"trainer.parallel.{name} is {value}; use {least} or more")
        if not 0 <= self.recomputed_share <= 1:
            raise UserError(
                f"trainer.parallel.recomputed_share is {self.recomputed_share:g}; it is a share, from 0 to 1"
            )

    def recomputed(self, num_layers: int) -> list[int]:
        """Which blocks compute again in the backward pass."""
        return recomputed_layers(num_layers, self.activation_checkpointing, self.recomputed_share)


def recomputed_layers(num_layers: int, recomputation: Recomputation, share: float) -> list[int]:
    """round(share x `num_layers`) of the layers, evenly spread; none where nothing is recomputed."""
    number = 0 if recomputation == "none" else round(share * num_layers)
    return [i for i in range(num_layers) if (i + 1) * number // num_layers > i * number // num_layers]


def make_mesh(config: ParallelConfig, world_size: int, device_type: str) -> DeviceMesh | None:
    """Ranks as (replicate, shard), or (shard) where there is one copy; None for one rank. Raises `UserError`."""
    shard = max(1, world_size // config.replicate) if config.shard == "auto" else config.shard
    if config.replicate * shard != world_size:
        raise UserError(
            f"trainer.parallel.replicate {config.replicate} x shard {shard} is not the number of ranks, {world_size}; "
            "use trainer.parallel.replicate=1 trainer.parallel.shard=auto, or a replicate that divides it"
        )
    if world_size == 1:
        return None
    if config.replicate == 1:
        return init_device_mesh(device_type, (shard,), mesh_dim_names=("shard",))
    return init_device_mesh(device_type, (config.replicate, shard), mesh_dim_names=("replicate", "shard"))


def data_rank(mesh: DeviceMesh | None) -> int:
    """Which part of a step's windows is this rank's: its place in the mesh, never the launcher's number."""
    place = 0
    for size, coordinate in zip(mesh.shape, mesh.get_coordinate() or ()) if mesh is not None else ():
        place = place * size + coordinate
    return place


# What is put on the model.


def parallelize(model: LVM, config: ParallelConfig, dtype: torch.dtype, compile: bool, mesh: DeviceMesh | None) -> None:
    """Change `model` in place. The order: recomputation, then compilation, then sharding.

    A compiled block holds its recomputation, so that inductor sees both; FSDP's gathering stays outside of the graph.
    On one rank (`mesh` None) the loss as a whole is compiled, see `make_loss`. Blocks are sharded one by one, the root
    takes embedding, last norm and head, so at most two blocks and the root are whole at a time.
    """
    model.fused_loss = compile
    for i in config.recomputed(len(model.layers)):
        recompute_in_backward(model.layers[i], config.activation_checkpointing, dtype if mesh is None else None)
    if mesh is None:
        return
    if compile:
        # Inductor's own launcher of kernels holds Python's lock while a full queue makes it wait, as behind a slow
        # rank: this rank's watch could no longer say that it lives. Triton's lets go of the lock.
        inductor.use_static_cuda_launcher = False
        for block in model.layers:
            block.compile(dynamic=False)
    # Inputs stay as they are: the angles of the rotary positions are float32.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in model.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=config.reshard_after_forward)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(model, "nll")
    register_fsdp_forward_method(model, "loss")
    prefetch_blocks(list(model.layers), config.prefetch)


def recompute_in_backward(block: nn.Module, recomputation: Recomputation, cast: torch.dtype | None) -> None:
    """Keep less of this block's forward pass than it needs backward, see `ParallelConfig.activation_checkpointing`.

    full        its input alone
    selective   its matrix products and attention too
    mlp         the input of its MLP, and of its attention what selective keeps
    `cast`: the type of the weights inside, where FSDP does not see to it; they are cast again in the backward pass, and
    no bf16 copy is kept.
    """
    products = {"context_fn": partial(create_selective_checkpoint_contexts, _keep_products)}
    if recomputation == "mlp":
        attend, transform = _checkpointed(block, "attend", cast, products), _checkpointed(block, "transform", cast, {})
        block.forward = lambda x, *angles_and_mask: transform(attend(x, *angles_and_mask))  # type: ignore[assignment]
    else:
        options = products if recomputation == "selective" else {}
        block.forward = _checkpointed(block, "forward", cast, options)


def _checkpointed(
    block: nn.Module, method: str, cast: torch.dtype | None, options: dict[str, Any]
) -> Callable[..., Tensor]:
    plain = _PlainMethod(block, method)

    def run(*inputs: Any) -> Tensor:
        if cast is None or cast == torch.float32:
            return plain(*inputs)
        weights = {name: parameter.to(cast) for name, parameter in plain.weights()}
        return torch.func.functional_call(plain, weights, inputs)

    return lambda *inputs: checkpoint(run, *inputs, use_reentrant=False, **options)


class _PlainMethod(nn.Module):
    """A method of a block's own class, whatever its `forward` was replaced by, with the weights that it needs."""

    PARTS: ClassVar = {"forward": "", "attend": "block.attention", "transform": "block.mlp"}

    def __init__(self, block: nn.Module, method: str):
        super().__init__()
        self.block, self.method, self.part = block, getattr(type(block), method), self.PARTS[method]

    def forward(self, *inputs: Any) -> Tensor:
        return self.method(self.block, *inputs)

    def weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, weight) for name, weight in self.named_parameters() if name.startswith(self.part))


_aten = torch.ops.aten
_PRODUCTS = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.lvm.blockwise_attention.default,
    torch.ops.higher_order.flex_attention,
}


_PRODUCTS_OF_FLASH_ATTN = ("flash_attn::_flash_attn_forward", "flash_attn::_flash_attn_varlen_forward")


def _keep_products(_context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    keep = operation in _PRODUCTS or operation.name().startswith(_PRODUCTS_OF_FLASH_ATTN)
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def prefetch_blocks(blocks: list[Any], number: int) -> None:
    """Each block asks for the weights of the next ones, forward and backward, before it computes."""
    for i, block in enumerate(blocks if number else []):
        block.set_modules_to_forward_prefetch(blocks[i + 1 : i + 1 + number])
        block.set_modules_to_backward_prefetch(blocks[max(0, i - number) : i][::-1])


def place(model: LVM, device: torch.device) -> None:
    """Move the model, or its shards, to `device`. What is on the meta device gets memory there, and no values yet."""
    if not next(model.parameters()).is_meta:
        model.to(device)
        return
    model.to_empty(device=device)
    if model.config.tie_embeddings:  # to_empty makes two of the one
        model.head.weight = model.embed.weight


# The loss.


class _Loss(nn.Module):
    """`model.loss` as a forward, which `functional_call` can run with other weights."""

    def __init__(self, model: LVM, document_mask: bool):
        super().__init__()
        self.model, self.document_mask = model, document_mask

    def forward(
        self, tokens: "Int[Tensor, 'b t_plus_1']", counts: "Bool[Tensor, 'b t']"
    ) -> "tuple[Float32[Tensor, ''], Float32[Tensor, 'b t']]":
        documents = document_positions(tokens[:, :-1], self.model.config.bos) if self.document_mask else ()
        loss, nll = self.model.loss(tokens, counts.float(), *documents)
        return loss, torch.where(counts, nll, 0.0)

    def to_cast(self, recomputed: Sequence[int]) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that the loss casts: all but those of recomputed blocks, which cast their own."""
        elsewhere = tuple(f"model.layers.{i}." for i in recomputed)
        for name, parameter in self.named_parameters():
            if not name.startswith(elsewhere):
                yield name, parameter


def counted(role: "Int[Tensor, 'b t_plus_1']", loss_on: LossOn) -> "Bool[Tensor, 'b t']":
    """Which targets count, once each: all but PAD, BOS and EOS included (LVM), or the tokens of answers alone."""
    target = role[:, 1:]
    return target != PAD_ROLE if loss_on == "all" else target == ANSWER_ROLE


def make_loss(
    model: LVM,
    dtype: torch.dtype,
    document_mask: bool,
    compile: bool,
    loss_on: LossOn = "all",
    parallel: ParallelConfig = ParallelConfig(),
) -> LossFunction:
    """The loss of one micro-batch on one rank: its weighted nll over `targets`, the count of the whole step."""
    parallelize(model, parallel, dtype, compile, mesh=None)
    module = _Loss(model, document_mask)
    recomputed = parallel.recomputed(len(model.layers))

    def loss(tokens: Tensor, role: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        inputs = tokens, counted(role, loss_on)
        if dtype == torch.float32:
            loss, nll = module(*inputs)
        else:
            cast = {name: parameter.to(dtype) for name, parameter in module.to_cast(recomputed)}
            loss, nll = torch.func.functional_call(module, cast, inputs)
        return loss / targets, nll

    return torch.compile(loss, dynamic=False) if compile else loss


def make_sharded_loss(
    model: LVM,
    dtype: torch.dtype,
    document_mask: bool,
    compile: bool,
    loss_on: LossOn = "all",
    parallel: ParallelConfig = ParallelConfig(),
    mesh: DeviceMesh | None = None,
) -> LossFunction:
    """Shard `model` in place over `mesh` (None: over all ranks) and return its loss; make the optimiser after this.

    FSDP averages gradients over ranks while the loss is already over the targets of all of them: hence the factor.
    """
    world_size = dist.get_world_size()
    if mesh is None:
        mesh = init_device_mesh(next(model.parameters()).device.type, (world_size,), mesh_dim_names=("shard",))
    parallelize(model, parallel, dtype, compile, mesh)
    module = _Loss(model, document_mask)

    def loss(tokens: Tensor, role: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        loss, nll = module(tokens, counted(role, loss_on))
        return loss * (world_size / targets), nll

    return loss


def loss_on_mesh(
    model: LVM,
    device: torch.device,
    mesh: DeviceMesh | None,
    dtype: torch.dtype,
    document_mask: bool,
    compile: bool,
    loss_on: LossOn,
    parallel: ParallelConfig,
) -> LossFunction:
    """Spread `model` over the mesh, put it on `device`, and return its loss; `mesh` None is one rank.

    A model on the meta device is sharded there, so that no rank ever holds all of it, and has no values yet.
    """
    if mesh is None:
        place(model, device)
        return make_loss(model, dtype, document_mask, compile, loss_on, parallel)
    loss = make_sharded_loss(model, dtype, document_mask, compile, loss_on, parallel, mesh)
    place(model, device)
    return loss


def reduce_gradients_on(model: nn.Module, last_micro_batch: bool, every_micro_batch: bool = False) -> None:
    """Sharded models reduce gradients once a step, after its last micro-batch.

    With `every_micro_batch` shards are summed after each; copies (HSDP) still agree once a step.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last_micro_batch or every_micro_batch)
        model.set_requires_all_reduce(last_micro_batch)


def full(value: Tensor) -> Tensor:
    """A sharded scalar as a plain one, on every rank."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value
