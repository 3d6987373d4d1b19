"""The decoder run with its keys and values kept, each stored once however many continue from it.

What is kept is a tree of three levels. At each the queries of all that hang below stand as rows before the same keys,
and the levels are joined by their log-sum-exps (parts.py); nothing is copied.

    prefix   [slots, g, t, k]                    what several prompts begin with: the pairs that their queries share
    suffix   [slots rows, g, t, k]               the rest of each prompt
    answer   [slots rows, g, candidates, t, k]   the codes of each candidate

A slot without a prefix is any set of prompts. The model file knows nothing of this.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lvm.inference.parts import attend_folded, attend_part, join
from lvm.model import LVMConfig, apply_rope, rope_angles
from lvm.runtime.machine import mkl_is_slow

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float32, Int64

    from lvm.model import LVM, Block

RECOMPILE_LIMIT = 64  # graphs of a function, before torch runs it as it is
PREFILL_TOKENS = 2**13  # prompts go through the layers in pieces of about so many tokens
ONEDNN_ELEMENTS = 2**18  # of a weight from which on oneDNN's calls are worth their 20 us
LOGITS_AT_ONCE = 2**24  # elements, of answers that are scored


def bytes_per_token(config: LVMConfig, itemsize: int) -> int:
    """Of the keys and values of all layers."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_size * itemsize


def cache_dtype(model: "LVM") -> torch.dtype:
    weight = model.embed.weight
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def with_cast_products(block: "Block", dtype: torch.dtype) -> "Block":
    """A copy whose products have weights of `dtype`, as autocast makes them in each call; the same answers.

    A step reads every weight once: made anew in each, casts would move four times the bytes. Norms stay as they are.
    """
    block = copy.deepcopy(block)
    for layer in block.modules():
        if isinstance(layer, nn.Linear):
            layer.to(dtype)
    return block


def goes_by_onednn(weight: Tensor) -> bool:
    """Whether `product` takes oneDNN for it."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    return weight.numel() >= ONEDNN_ELEMENTS and mkl_is_slow()


def product(x: "Float[Tensor, '*b d']", weight: "Float[Tensor, 'n d']", bias: Tensor | None = None) -> Tensor:
    """F.linear without a gradient: of large float32 weights on a CPU by oneDNN, where MKL, which torch takes, is slow.

    On an EPYC of two cores a few rows before 640 x 640 and more take half the time; a small product takes longer.
    """
    if x.dtype == torch.float32 and goes_by_onednn(weight):
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return found
    return F.linear(x, weight, bias)


def with_fast_products(block: "Block") -> "Block":
    """A copy, on the same weights, that multiplies by `product`."""
    block = copy.deepcopy(block, {id(parameter): parameter for parameter in block.parameters()})
    for layer in block.modules():
        if isinstance(layer, nn.Linear):
            layer.forward = functools.partial(product, weight=layer.weight, bias=layer.bias)  # type: ignore[method-assign]
    return block


def before_attention(block: "Block", x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return block.attention.project(block.attention_norm(x), cos, sin)


def after_attention(block: "Block", x: Tensor, y: Tensor) -> Tensor:
    return block.transform(x + block.attention.o(y))


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Shared by all layers and numbers of tokens; a few graphs for each kind of model (one token or many, types)."""
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, RECOMPILE_LIMIT)
    return torch.compile(function, dynamic=True)


def nll_of(
    model: "LVM", hidden: "Float[Tensor, 'b t d']", targets: "Int64[Tensor, 'b t']"
) -> "Float32[np.ndarray, 'b t']":
    """Logits exist for some rows at a time, in float32."""
    weight = model.head.weight.float()
    rows = max(1, LOGITS_AT_ONCE // (targets.shape[1] * len(weight)))
    with torch.autocast(hidden.device.type, enabled=False):
        pieces = [
            F.cross_entropy(product(x.float(), weight).flatten(0, 1), y.flatten(), reduction="none").view(y.shape)
            for x, y in zip(hidden.split(rows), targets.split(rows))
        ]
    found: np.ndarray = torch.cat(pieces).cpu().numpy()
    return found


class Cache:
    """Keys and values of `slots` prefixes, `rows` suffixes behind each and `candidates` answers behind each suffix.

    Shapes are fixed when it is made; `fed`, the codes that each row's candidates have been fed, goes on with `step`. On
    a GPU a step looks at everything behind masks, so that it can be captured; on a CPU only at what is there. Under
    autocast the blocks compute and keep keys in its type; logits are in that of the weights whatever it is.
    """

    def __init__(
        self,
        model: "LVM",
        slots: int,
        rows: int,
        candidates: int,
        prefix_tokens: int,
        suffix_tokens: int,
        answer_tokens: int,
        compile: bool = False,
    ):
        config, weight = model.config, model.embed.weight
        self.model, self.rows, self.candidates = model, rows, candidates
        self.blocks = cast("list[Block]", list(model.layers))
        if weight.is_cuda and cache_dtype(model) != weight.dtype:
            self.blocks = [with_cast_products(block, cache_dtype(model)) for block in self.blocks]
        elif not compile and any(map(goes_by_onednn, model.layers[0].parameters())):
            self.blocks = [with_fast_products(block) for block in self.blocks]
        self.groups, self.head_size = config.num_kv_heads, config.head_size
        self.fixed = weight.is_cuda
        self._before = compiled(before_attention) if compile else before_attention
        self._after = compiled(after_attention) if compile else after_attention

        def keys_and_values(*shape: int) -> Tensor:
            # Zeros: what a mask hides is still multiplied, by nothing.
            return weight.new_zeros(config.num_layers, 2, *shape, self.head_size, dtype=cache_dtype(model))

        cells = slots * rows
        self.prefix = keys_and_values(slots, self.groups, prefix_tokens)
        self.suffix = keys_and_values(cells, self.groups, suffix_tokens)
        self.answer = keys_and_values(cells, self.groups, candidates, answer_tokens)
        # What the host knows without asking the device, and the same there. Who replays a captured step counts for it.
        self.prefix_lengths, self.suffix_lengths, self.fed = [0] * slots, [0] * cells, [0] * cells
        self._prefix_lengths = torch.zeros(slots, dtype=torch.int64, device=weight.device)
        self._suffix_lengths, self._fed = (self._prefix_lengths.new_zeros(cells) for _ in range(2))

    @property
    def nbytes(self) -> int:
        return self.prefix.nbytes + self.suffix.nbytes + self.answer.nbytes

    @property
    def counters(self) -> list[Tensor]:
        """What a step changes beside keys and values."""
        return [self._fed]

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return rope_angles(positions, self.head_size, self.model.config.rope_theta)

    def _layers(
        self, x: Tensor, cos: Tensor, sin: Tensor, attention: Callable[[int, Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        for number, block in enumerate(self.blocks):
            q, k, v = self._before(block, x, cos, sin)
            x = self._after(block, x, attention(number, q, k, v))
        return x

    def normed(self, x: "Float[Tensor, '*b d']") -> "Float[Tensor, '*b d']":
        with torch.autocast(x.device.type, enabled=False):
            return self.model.norm(x.to(self.model.norm.weight.dtype))

    def logits(self, x: "Float[Tensor, '*b d']") -> "Float[Tensor, '*b v']":
        with torch.autocast(x.device.type, enabled=False):
            return product(self.normed(x), self.model.head.weight)

    # Prompts.

    def feed_prefix(self, slot: int, tokens: "Int64[Tensor, 't']") -> None:
        """Fill a slot's prefix; the rows behind it are to be fed anew."""
        t = len(tokens)
        cos, sin = self._angles(torch.arange(t, device=tokens.device)[None])

        def attention(number: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.prefix[number, 0, slot, :, :t], self.prefix[number, 1, slot, :, :t] = k[0], v[0]
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
            return rearrange(y, "b h t k -> b t (h k)")

        if t:
            self._layers(self.model.embed(tokens[None]), cos, sin, attention)
        self.prefix_lengths[slot] = t
        self._prefix_lengths[slot] = t

    def copy_prefix(self, slot: int, other: int) -> None:
        self.prefix[:, :, other] = self.prefix[:, :, slot]
        self.prefix_lengths[other] = self.prefix_lengths[slot]
        self._prefix_lengths[other] = self.prefix_lengths[slot]

    def feed_rows(
        self, slot: int, cells: "Sequence[int]", tokens: "Int64[Tensor, 'cells t']", lengths: Sequence[int]
    ) -> "Float[Tensor, 'cells v']":
        """Feed the suffixes of these cells of a slot, right-padded; the logits after each."""
        return self.logits(self.rows_hidden(slot, cells, tokens, lengths, 1)[:, 0])

    def rows_hidden(
        self, slot: int, cells: "Sequence[int]", tokens: "Int64[Tensor, 'cells t']", lengths: Sequence[int], last: int
    ) -> "Float[Tensor, 'cells last d']":
        """The same; what the layers make of the last `last` tokens of each, before the norm."""
        where = torch.tensor(cells, device=tokens.device)
        counts = torch.tensor(lengths, device=tokens.device)
        prefix, t = self.prefix_lengths[slot], tokens.shape[1]
        rows = max(1, PREFILL_TOKENS // t)
        cos, sin = self._angles(prefix + torch.arange(t, device=tokens.device)[None])
        kept = []
        for start in range(0, len(tokens), rows):
            piece = slice(start, start + rows)

            def attention(number: int, q: Tensor, k: Tensor, v: Tensor, piece: slice = piece) -> Tensor:
                self.suffix[number, 0, where[piece], :, :t], self.suffix[number, 1, where[piece], :, :t] = k, v
                if not prefix:
                    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
                    return rearrange(y, "b h t k -> b t (h k)")
                return self._behind_prefix(number, slot, q, k, v)

            x = self._layers(self.model.embed(tokens[piece]), cos, sin, attention)
            ends = counts[piece, None] + torch.arange(-last, 0, device=x.device)
            kept.append(x[torch.arange(len(x), device=x.device)[:, None], ends])
        for cell, length in zip(cells, lengths):
            self.suffix_lengths[cell], self.fed[cell] = length, 0
        self._suffix_lengths[where], self._fed[where] = counts, 0
        return torch.cat(kept)

    def _behind_prefix(self, number: int, slot: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """All rows before the prefix of their slot, and each before its own keys."""
        heads = q.shape[1] // self.groups
        prefix = self.prefix[number, :, slot, None, :, : self.prefix_lengths[slot]]
        shared = attend_folded(q, prefix, "b (g r) t", "1 g (r b t)", r=heads, b=len(q))
        own_k, own_v = (x.repeat_interleave(heads, 1) if heads > 1 else x for x in (k, v))
        own = attend_part(q, own_k, own_v, causal=True)
        return rearrange(join([shared, own]), "b h t k -> b t (h k)")

    def behind_rows(
        self, slot: int, cells: Sequence[int], tokens: "Int64[Tensor, 'cells a t']"
    ) -> "Float[Tensor, 'cells a t d']":
        """What the layers make of some answers behind each of these prompts, before the norm. None of them is kept."""
        num_answers, t = tokens.shape[1:]
        prefix, rows = self.prefix_lengths[slot], max(1, PREFILL_TOKENS // (num_answers * t))
        found = []
        for start in range(0, len(cells), rows):
            piece = list(cells[start : start + rows])
            where = torch.tensor(piece, device=tokens.device)
            lengths = self._suffix_lengths[where, None]
            size = max(self.suffix_lengths[cell] for cell in piece)
            seen = None
            if min(self.suffix_lengths[cell] for cell in piece) < size:
                seen = rearrange(torch.arange(size, device=tokens.device) < lengths, "b s -> b 1 1 s")
            positions = prefix + lengths + torch.arange(t, device=tokens.device)
            cos, sin = self._angles(positions.repeat_interleave(num_answers, 0))
            attention = functools.partial(self._behind_row, slot, where, size, seen, num_answers)
            x = self._layers(self.model.embed(tokens[start : start + rows].flatten(0, 1)), cos, sin, attention)
            found.append(rearrange(x, "(n a) t d -> n a t d", a=num_answers))
        return torch.cat(found)

    def _behind_row(
        self,
        slot: int,
        where: "Int64[Tensor, 'n']",
        size: int,
        seen: "Bool[Tensor, 'n 1 1 s'] | None",
        num_answers: int,
        number: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
    ) -> Tensor:
        """Answers before the prefix of their slot, the suffix of their prompt, and their own keys."""
        heads, t = q.shape[1] // self.groups, q.shape[2]
        suffix = self.suffix[number][:, where, :, :size]
        own_k, own_v = (x.repeat_interleave(heads, 1) if heads > 1 else x for x in (k, v))
        parts = [
            attend_folded(q, suffix, "(n a) (g r) t", "n g (r a t)", seen, r=heads, a=num_answers, t=t),
            attend_part(q, own_k, own_v, causal=True),
        ]
        if shared := self.prefix_lengths[slot]:
            prefix = self.prefix[number, :, slot, None, :, :shared]
            parts.append(attend_folded(q, prefix, "b (g r) t", "1 g (r b t)", r=heads, b=len(q)))
        return rearrange(join(parts), "b h t k -> b t (h k)")

    def nll_behind_rows(
        self, slot: int, cells: Sequence[int], logits: "Float[Tensor, 'cells v']", tokens: "Int64[Tensor, 'cells a t']"
    ) -> "Float32[np.ndarray, 'cells a t']":
        """Nats of each token of some answers; `logits` are those after the prompts."""
        num_answers = tokens.shape[1]
        before = logits.float().repeat_interleave(num_answers, 0)
        first = F.cross_entropy(before, tokens[..., 0].flatten(), reduction="none").cpu().numpy()
        nll = [rearrange(first, "(n a) -> n a 1", a=num_answers)]
        if tokens.shape[2] > 1:
            hidden = self.normed(self.behind_rows(slot, cells, tokens[..., :-1]))
            rest = nll_of(self.model, hidden.flatten(0, 1), tokens[..., 1:].flatten(0, 1))
            nll.append(rearrange(rest, "(n a) t -> n a t", a=num_answers))
        return np.concatenate(nll, axis=2)

    def slide(self, first: int, gone: int) -> None:
        """Let `gone` tokens behind the first `first` go; what stood in suffixes and answers joins the prefixes.

        For one row and one candidate behind each slot, all as long. Keys and values stay as they were computed, seeing
        what is gone; keys are turned back by as many positions (a rotation, so only differences of positions matter).
        """
        assert self.rows == self.candidates == 1
        prefix, suffix, fed = self.prefix_lengths[0], self.suffix_lengths[0], self.fed[0]
        size = prefix - first - gone + suffix + fed
        cos, sin = self._angles(torch.tensor([-gone], device=self.prefix.device))
        for number in range(len(self.blocks)):
            k, v = (
                torch.cat(
                    [
                        self.prefix[number, i, :, :, first:prefix],
                        self.suffix[number, i, :, :, :suffix],
                        self.answer[number, i, :, :, 0, :fed],
                    ],
                    dim=2,
                )[:, :, gone:]
                for i in (0, 1)
            )
            self.prefix[number, 0, :, :, first : first + size] = apply_rope(k, cos, sin)
            self.prefix[number, 1, :, :, first : first + size] = v
        self.prefix_lengths = [first + size] * len(self.prefix_lengths)
        self._prefix_lengths.fill_(first + size)

    # Answers.

    def step(self, codes: "Int64[Tensor, 'cells candidates']") -> "Float[Tensor, 'cells candidates v']":
        """Feed the next code of every candidate of the first `len(codes)` cells (whole slots, if there are several)."""
        n = len(codes)
        positions = self._prefix_lengths.repeat_interleave(self.rows)[:n] + self._suffix_lengths[:n] + self._fed[:n]
        cos, sin = self._angles(positions[:, None])
        seen = self._seen(n)
        index, fed = torch.arange(n, device=codes.device), self._fed[:n]

        def attention(number: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.answer[number, 0, index, :, :, fed] = k
            self.answer[number, 1, index, :, :, fed] = v
            return self._before_all(number, q, seen)

        x = self._layers(self.model.embed(codes), cos, sin, attention)
        self._fed[:n] = (fed + 1).clamp(max=self.answer.shape[5] - 1)  # cells without a prompt go round idle
        self.count_step(n)
        return self.logits(x)

    def count_step(self, n: int) -> None:
        """What `step` does on the host: n cells have been fed one more."""
        self.fed[:n] = [min(count + 1, self.answer.shape[5] - 1) for count in self.fed[:n]]

    def _seen(self, n: int) -> "list[tuple[int, Bool[Tensor, 'b 1 1 s'] | None]]":
        """Of each level how many keys are read, and which of them count where rows differ."""
        slots = -(-n // self.rows)
        levels = []
        for capacity, lengths, known in (
            (self.prefix.shape[4], self._prefix_lengths[:slots], self.prefix_lengths[:slots]),
            (self.suffix.shape[4], self._suffix_lengths[:n], self.suffix_lengths[:n]),
            (self.answer.shape[5], self._fed[:n] + 1, [count + 1 for count in self.fed[:n]]),
        ):
            size = capacity if self.fixed else max(known)
            mask = None
            if self.fixed or min(known) < size:
                # A cell without a prompt, and a slot without a prefix, see one key of zeros: no row is empty.
                mask = rearrange(
                    torch.arange(size, device=lengths.device) < lengths[:, None].clamp(min=1), "b s -> b 1 1 s"
                )
            levels.append((size, mask))
        return levels

    def _before_all(
        self, number: int, q: "Float[Tensor, 'b h c k']", seen: "list[tuple[int, Tensor | None]]"
    ) -> "Float[Tensor, 'b c h_k']":
        """The candidates' queries before the prefix of their slot, the suffix of their row, and their own codes."""
        n, r = len(q), q.shape[1] // self.groups
        slots = -(-n // self.rows)
        (prefix, of_prefix), (suffix, of_suffix), (answer, of_answer) = seen
        parts = []
        if prefix:
            kept = self.prefix[number, :, :slots, :, :prefix]
            parts.append(attend_folded(q, kept, "(s m) (g r) c", "s g (r m c)", of_prefix, m=n // slots, r=r))
        kept = self.suffix[number, :, :n, :, :suffix]
        parts.append(attend_folded(q, kept, "b (g r) c", "b g (r c)", of_suffix, r=r))
        kept = self.answer[number, :, :n, :, :, :answer].flatten(2, 3)
        parts.append(attend_folded(q, kept, "b (g r) c", "b (g c) r", of_answer, g=self.groups))
        return rearrange(join(parts), "b h c k -> b c (h k)")
