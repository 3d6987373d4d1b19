"""Causal attention by one of three implementations that compute the same; the model calls it, nothing of ours is here.

    name = choose_attention("auto", device, dtype, has_documents)
    mask = attention_mask(name, tokens.shape, device, documents)     # once a forward pass
    y = attend(q, k, v, mask)                                        # in each layer; q [b h t k], k and v [b g t k]

| name  | what it is                                | documents                            | needs             |
|-------|-------------------------------------------|--------------------------------------|-------------------|
| sdpa  | torch's scaled_dot_product_attention      | a boolean mask [b 1 t t]             | nothing           |
| flex  | FlexAttention (arXiv 2412.05496)          | blocks that see nothing are left out | a GPU             |
| flash | the flash-attn package (arXiv 2307.08691) | each a sequence of its own           | a GPU and 16 bits |
"""

import functools
import importlib.util
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

AttentionName = Literal["auto", "sdpa", "flex", "flash"]
FLASH_INSTALLED = importlib.util.find_spec("flash_attn") is not None


class AttentionError(ValueError):
    """An implementation that cannot run here; the message names what it lacks and the remedy."""

    user_error = True


class Spans(NamedTuple):
    """What flash-attn is told: where each document of the flattened batch starts, the end of the last one behind."""

    bounds: "Int[Tensor, 'documents_plus_1'] | None"  # int32; None: each row is one document
    longest: int  # no document is longer


Mask = Tensor | BlockMask | Spans | None


def choose_attention(
    name: AttentionName, device: torch.device, dtype: torch.dtype, has_documents: bool
) -> Literal["sdpa", "flex", "flash"]:
    """What `name` comes to for activations of this device and type. Raises `AttentionError` where it cannot run.

    `auto` on a GPU: flex for documents (its masks are made without waiting for the device, flash-attn's are not), else
    flash where it is installed and can multiply `dtype`. SDPA everywhere else.
    """
    on_gpu, half = device.type == "cuda", dtype in (torch.bfloat16, torch.float16)
    if name == "auto":
        if on_gpu and has_documents:
            return "flex"
        return "flash" if on_gpu and half and FLASH_INSTALLED else "sdpa"
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
    name: Literal["sdpa", "flex", "flash"],
    shape: tuple[int, int],
    device: torch.device,
    documents: "Int[Tensor, 'b t'] | None",
) -> Mask:
    """Which tokens see which, as `attend` wants it; `shape` is (b, t). The type of the result says by what."""
    if name == "sdpa":
        return None if documents is None else document_mask(documents)
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
