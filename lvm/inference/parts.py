"""Attention over keys that lie in several places: each part apart, then joined by their log-sum-exps.

softmax(q [k1 k2]^T) [v1 v2] is a mean of the two parts' results, weighed by the share of the whole sum of exponentials
that each part has (as in flash-decoding and Hydragen, arXiv 2402.05099). So keys that several rows share are read once,
their queries standing as rows before them, and nothing is copied to lie side by side.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float32

SCORES_AT_ONCE = 2**26  # elements of a piece of scores where they are computed whole


class Part(NamedTuple):
    y: "Float[Tensor, 'b h t k']"  # softmax over these keys alone
    lse: "Float32[Tensor, 'b h t']"  # log of the sum of the exponentials of the scores


def attend_part(
    q: "Float[Tensor, 'b h t k']",
    k: "Float[Tensor, 'b h s k']",
    v: "Float[Tensor, 'b h s k']",
    seen: "Bool[Tensor, 'b 1 1 s'] | None" = None,
    causal: bool = False,
) -> Part:
    """`seen`: which keys count. `causal`: token i of t sees the keys 0..i (t = s)."""
    if q.device.type == "cpu":
        mask = None if seen is None else _additive(seen, q)
        y, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, is_causal=causal, attn_mask=mask)
        return Part(y, lse)
    if seen is None and q.dtype in (torch.bfloat16, torch.float16):
        size, missing = q.shape[3], -q.shape[3] % 8  # heads of a multiple of 8 are what the kernel takes
        q, k, v = (F.pad(x, (0, missing)) if missing else x for x in (q, k, v))
        found = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, is_causal=causal, scale=size**-0.5)
        return Part(found[0][..., :size], found[1])
    return attend_whole(q, k, v, seen, causal)


def attend_folded(
    q: "Float[Tensor, 'b h t k']",
    keys_and_values: "Float[Tensor, '2 n g s k']",
    whole: str,
    folded: str,
    seen: "Bool[Tensor, 'n 1 1 s'] | None" = None,
    **sizes: int,
) -> Part:
    """All rows that share keys before them at once: `whole` -> `folded` are the axes of q but the last, for einops."""
    k, v = keys_and_values
    part = attend_part(rearrange(q, f"{whole} k -> {folded} k", **sizes), k, v, seen)
    y = rearrange(part.y, f"{folded} k -> {whole} k", **sizes)
    return Part(y, rearrange(part.lse, f"{folded} -> {whole}", **sizes))


def attend_whole(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None, causal: bool = False) -> Part:
    """The same with the scores in memory, piece by piece: for a single token a head they are few."""
    b, h, t, size = q.shape
    rows = max(1, SCORES_AT_ONCE // (b * h * k.shape[2]))
    pieces = []
    for start in range(0, t, rows):
        scores = products(q[:, :, start : start + rows] * size**-0.5, k)
        if seen is not None:
            scores = scores.masked_fill(~seen, float("-inf"))
        if causal:
            token = torch.arange(start, start + scores.shape[2], device=q.device)
            later = torch.arange(k.shape[2], device=q.device) > token[:, None]
            scores = scores.masked_fill(later, float("-inf"))
        lse = scores.logsumexp(-1)
        pieces.append(Part((scores - lse[..., None]).exp().to(v.dtype) @ v, lse))
    if len(pieces) == 1:
        return pieces[0]
    return Part(torch.cat([piece.y for piece in pieces], 2), torch.cat([piece.lse for piece in pieces], 2))


def products(q: "Float[Tensor, 'b h t k']", k: "Float[Tensor, 'b h s k']") -> "Float32[Tensor, 'b h t s']":
    """q k^T summed and kept in float32: parts are weighed by the exponentials of what is rounded here."""
    if not q.is_cuda or q.dtype == torch.float32:
        return q.float() @ k.float().transpose(-1, -2)
    b, h = q.shape[:2]
    scores = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).transpose(-1, -2), out_dtype=torch.float32)
    return scores.unflatten(0, (b, h))


def join(parts: Sequence[Part]) -> "Float[Tensor, 'b h t k']":
    """Attention over the keys of all parts together."""
    if len(parts) == 1:
        return parts[0].y
    weights = torch.stack([part.lse for part in parts]).softmax(0)  # parts b h t
    y = sum(weight[..., None] * part.y.float() for weight, part in zip(weights, parts))
    assert isinstance(y, Tensor)
    return y.to(parts[0].y.dtype)


def _additive(seen: Tensor, q: Tensor) -> Tensor:
    return torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill(~seen, float("-inf"))
