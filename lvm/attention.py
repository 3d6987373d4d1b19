"""Causal attention by one of four implementations that compute the same; the model calls it, nothing of ours is here.

    name = choose_attention("auto", device, dtype, has_documents)
    mask = attention_mask(name, tokens.shape, device, documents)     # once a forward pass
    y = attend(q, k, v, mask)                                        # in each layer; q [b h t k], k and v [b g t k]

| name   | what it is                                | documents                            | needs             |
|--------|-------------------------------------------|--------------------------------------|-------------------|
| sdpa   | torch's scaled_dot_product_attention      | a boolean mask [b 1 t t]             | nothing           |
| blocks | products and softmax, a few rows at once  | a boolean mask [b 1 t t]             | a CPU             |
| flex   | FlexAttention (arXiv 2412.05496)          | blocks that see nothing are left out | a GPU             |
| flash  | the flash-attn package (arXiv 2307.08691) | each a sequence of its own           | a GPU and 16 bits |

`blocks` is for training on CPUs that multiply bfloat16: there torch's fused kernel, which uses 16 bits in parts only,
takes half as long again forwards and backwards together, and most of what a causal mask hides is never computed. Its
scores are rounded to 16 bits before the softmax: relative errors of 0.3% where the fused kernel has 0.2%.
"""

import functools
import importlib.util
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils.flop_counter import register_flop_formula

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

AttentionName = Literal["auto", "sdpa", "blocks", "flex", "flash"]
Chosen = Literal["sdpa", "blocks", "flex", "flash"]
FLASH_INSTALLED = importlib.util.find_spec("flash_attn") is not None


class AttentionError(ValueError):
    """An implementation that cannot run here; the message names what it lacks and the remedy."""

    user_error = True


class Spans(NamedTuple):
    """What flash-attn is told: where each document of the flattened batch starts, the end of the last one behind."""

    bounds: "Int[Tensor, 'documents_plus_1'] | None"  # int32; None: each row is one document
    longest: int  # no document is longer


class Blocks(NamedTuple):
    """That attention goes by blocks of rows, and what of each document a row may see."""

    documents: "Bool[Tensor, 'b 1 t t'] | None"  # as `document_mask` has it; None: each row is one document


Mask = Tensor | BlockMask | Spans | Blocks | None


def choose_attention(name: AttentionName, device: torch.device, dtype: torch.dtype, has_documents: bool) -> Chosen:
    """What `name` comes to for activations of this device and type. Raises `AttentionError` where it cannot run.

    `auto` on a GPU: flex for documents (its masks are made without waiting for the device, flash-attn's are not), else
    flash where it is installed and can multiply `dtype`. Blocks for bfloat16 on a CPU. SDPA everywhere else.
    """
    on_gpu, half = device.type == "cuda", dtype in (torch.bfloat16, torch.float16)
    if name == "auto":
        if on_gpu and has_documents:
            return "flex"
        if device.type == "cpu" and dtype == torch.bfloat16:
            return "blocks"
        return "flash" if on_gpu and half and FLASH_INSTALLED else "sdpa"
    if name == "blocks" and device.type != "cpu":
        raise AttentionError(f"attention blocks is for a CPU, this is {device.type}; use attention=auto")
    if name == "flex" and not on_gpu:
        raise AttentionError("attention flex needs a GPU: it has no backward pass on a CPU; use attention=auto")
    if name == "flash":
        if not FLASH_INSTALLED:
            raise AttentionError("attention flash needs the package flash-attn; install it or use attention=auto")
        if not on_gpu or not half:
            what = str(dtype).removeprefix("torch.")
            raise AttentionError(
                f"attention flash needs bf16 or fp16 on a GPU, this is {what} on {device.type}; use attention=auto"
            )
    return name


def attention_mask(
    name: Chosen,
    shape: tuple[int, int],
    device: torch.device,
    documents: "Int[Tensor, 'b t'] | None",
) -> Mask:
    """Which tokens see which, as `attend` wants it; `shape` is (b, t). The type of the result says by what."""
    if name in ("sdpa", "blocks"):
        seen = None if documents is None else document_mask(documents)
        return seen if name == "sdpa" else Blocks(seen)
    if name == "flex":
        return _block_mask(shape, device, documents)
    return Spans(None if documents is None else document_bounds(documents), shape[1])


def attend(
    q: "Float[Tensor, 'b h t k']", k: "Float[Tensor, 'b g t k']", v: "Float[Tensor, 'b g t k']", mask: Mask
) -> "Float[Tensor, 'b h t k']":
    """softmax(q k^T / sqrt(k)) v over what each token may see; h / g heads of q share one of k and v."""
    grouped = q.shape[1] != k.shape[1]
    if isinstance(mask, BlockMask):
        return _flex(q.device)(q, k, v, block_mask=mask, enable_gqa=grouped)
    if isinstance(mask, Spans):
        return _flash(q, k, v, mask)
    if isinstance(mask, Blocks):
        if grouped:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        compiled = torch.compiler.is_compiling() and q.shape[2] <= SHORT
        return (_at_once if compiled else blockwise)(q, k, v, mask.documents)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)


def document_mask(documents: "Int[Tensor, 'b t']") -> "Bool[Tensor, 'b 1 t t']":
    """True where a query (row) may see a key (column): same document, not later."""
    same = documents[:, :, None] == documents[:, None, :]
    return same.tril()[:, None]


def document_bounds(documents: "Int[Tensor, 'b t']") -> "Int[Tensor, 'documents_plus_1']":
    """Where the documents of the flattened batch start, and its length; int32. Waits for the device once."""
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return F.pad(starts.flatten().nonzero()[:, 0], (0, 1), value=documents.numel()).int()


def _block_mask(shape: tuple[int, int], device: torch.device, documents: Tensor | None) -> BlockMask:
    def causal(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query >= key

    def same_document(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        assert documents is not None
        return (query >= key) & (documents[row, query] == documents[row, key])

    b, t = shape
    rule, rows = (causal, None) if documents is None else (same_document, b)
    return create_block_mask(rule, rows, None, t, t, device=str(device))


@functools.cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention, dynamic=False)


def _flex(device: torch.device) -> Any:
    """The fused kernel exists only compiled; inside a compiled graph, and on a CPU, the plain function does."""
    return flex_attention if device.type == "cpu" or torch.compiler.is_compiling() else _compiled_flex()


def _flash(q: Tensor, k: Tensor, v: Tensor, spans: Spans) -> Tensor:
    from flash_attn import flash_attn_func, flash_attn_varlen_func

    if spans.bounds is None:
        q, k, v = (rearrange(x, "b h t k -> b t h k") for x in (q, k, v))
        y = flash_attn_func(q, k, v, causal=True)
        return rearrange(y, "b t h k -> b h t k")
    b = len(q)
    q, k, v = (rearrange(x, "b h t k -> (b t) h k") for x in (q, k, v))
    y = flash_attn_varlen_func(q, k, v, spans.bounds, spans.bounds, spans.longest, spans.longest, causal=True)
    return rearrange(y, "(b t) h k -> b h t k", b=b)


# By blocks of rows: products and softmax alone.

SHORT = 512  # tokens up to which there is one block, which inductor compiles with what stands around it
ROWS = 256  # of a block, about: its weights [b h rows t] are all that exists of [b h t t] at one time


def _at_once(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Tensor:
    t = q.shape[2]
    seen = torch.ones(t, t, dtype=torch.bool, device=q.device).tril() if documents is None else documents
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    return scores.masked_fill(~seen, -math.inf).softmax(dim=-1) @ v


def _blocks_of(t: int) -> Iterator[tuple[int, int]]:
    """First row and the one behind the last of each block, all about as long."""
    rows = -(-t // max(1, round(t / ROWS)))
    for start in range(0, t, rows):
        yield start, min(t, start + rows)


def _block_weights(q: Tensor, k: Tensor, documents: Tensor | None, start: int, end: int) -> Tensor:
    """What rows start .. end-1 give to keys 0 .. end-1, [b h, rows, end]; recomputed backwards."""
    scores = torch.baddbmm(q.new_empty(()), q[:, start:end], k[:, :end].mT, beta=0, alpha=q.shape[-1] ** -0.5)
    if documents is None:
        later = torch.full((end - start, end - start), -math.inf, dtype=q.dtype).triu(1)
        scores[:, :, start:] += later  # masked_fill takes twice as long
    else:
        by_head = scores.view(len(documents), -1, end - start, end)
        by_head.masked_fill_(~documents[:, :, start:end, :end], -math.inf)
    return torch.softmax(scores, dim=-1)


@torch.library.custom_op("lvm::blockwise_attention", mutates_args=())
def blockwise(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None = None) -> Tensor:
    """Causal attention of [b h t k] on a CPU; `documents` as of `Blocks`. For backward the inputs alone are kept."""
    b, h, t, size = q.shape
    flat_q, flat_k, flat_v = (x.reshape(b * h, t, size) for x in (q, k, v))
    y = q.new_empty(b * h, t, size)  # not empty_like: of a batch of one it would take over the strides of a view
    for start, end in _blocks_of(t):
        y[:, start:end] = torch.bmm(_block_weights(flat_q, flat_k, documents, start, end), flat_v[:, :end])
    return y.view(b, h, t, size)


@torch.library.custom_op("lvm::blockwise_attention_backward", mutates_args=())
def _blockwise_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    b, h, t, size = q.shape
    dy, q, k, v = (x.reshape(b * h, t, size) for x in (dy, q, k, v))
    dq = q.new_empty(b * h, t, size)
    dk, dv = (q.new_zeros(b * h, t, size, dtype=torch.float32) for _ in range(2))
    scaled = functools.partial(torch.baddbmm, q.new_empty(()), beta=0, alpha=size**-0.5)
    for start, end in _blocks_of(t):
        weights, dy_rows = _block_weights(q, k, documents, start, end), dy[:, start:end]
        dv[:, :end] += torch.bmm(weights.mT, dy_rows)
        d_weights = torch.bmm(dy_rows, v[:, :end].mT)
        d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype)
        dq[:, start:end] = scaled(d_scores, k[:, :end])
        dk[:, :end] += scaled(d_scores.mT, q[:, start:end])
    dq, dk, dv = (x.to(q.dtype).view(b, h, t, size) for x in (dq, dk, dv))
    return dq, dk, dv


@blockwise.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None = None) -> Tensor:
    return q.new_empty(q.shape)


@_blockwise_backward.register_fake
def _(dy: Tensor, q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


@register_flop_formula(torch.ops.lvm.blockwise_attention)
def _flops(q: torch.Size, *_: Any, **__: Any) -> int:
    b, h, t, size = q
    return 2 * 2 * b * h * t * t * size  # all of attention, as torch counts its own


@register_flop_formula(torch.ops.lvm.blockwise_attention_backward)
def _flops_backward(dy: torch.Size, *_: Any, **__: Any) -> int:
    b, h, t, size = dy
    return 5 * 2 * b * h * t * t * size


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return *_blockwise_backward(dy, *ctx.saved_tensors), None


blockwise.register_autograd(_gradients, setup_context=_keep)
