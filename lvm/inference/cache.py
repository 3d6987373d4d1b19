"""The decoder run with its keys and values kept: prompts once, then one code of every answer at a time.

A prompt's keys and values are stored once, whatever the number of candidates: the candidates of a prompt are the token
axis of a step, so their queries stand as rows before the same keys. Attention has two parts, the shared prompt and the
candidate's own answer, under one softmax. The model file knows nothing of this.
"""

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from lvm.model import LVMConfig, rope_angles

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

    from lvm.model import LVM, Block

PREFILL_TOKENS = 2**13  # prompts go through the layers in pieces of about so many tokens


def cache_bytes(config: LVMConfig, prompt_tokens: int, answer_tokens: int, num_candidates: int, itemsize: int) -> int:
    """Bytes of keys and values that one prompt and its candidates take."""
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_size * itemsize
    return per_token * (prompt_tokens + answer_tokens * num_candidates)


class Cache:
    """Keys and values of b prompts, right-padded to the longest, and of `answer_tokens` codes of each candidate.

    prefill(tokens) -> the logits after each prompt; step(codes) -> those after each candidate's next code. Under
    autocast the blocks compute and keep keys in its type; logits are in that of the weights whatever it is.
    """

    def __init__(self, model: "LVM", lengths: "Int64[Tensor, 'b']", answer_tokens: int, num_candidates: int):
        config, weight = model.config, model.embed.weight
        self.model, self.lengths, self.num_fed = model, lengths, 0
        self.blocks = cast("list[Block]", list(model.layers))
        self.groups, self.head_size = config.num_kv_heads, config.head_size
        b, longest = len(lengths), int(lengths.max())

        device = weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype

        def empty(*shape: int) -> list[Tensor]:
            return [
                weight.new_empty(b, self.groups, *shape, self.head_size, dtype=dtype) for _ in range(config.num_layers)
            ]

        self.prompt_k, self.prompt_v = empty(longest), empty(longest)
        self.answer_k, self.answer_v = empty(num_candidates, answer_tokens), empty(num_candidates, answer_tokens)
        index = torch.arange(longest, device=lengths.device)
        padding = index >= lengths[:, None]
        self.padding = rearrange(padding, "b t -> b 1 1 t") if bool(padding.any()) else None

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return rope_angles(positions, self.head_size, self.model.config.rope_theta)

    def prefill(self, tokens: "Int64[Tensor, 'b t']") -> "Float[Tensor, 'b v']":
        """Feed the prompts; what stands behind a prompt's length is padding, which no kept query ever sees."""
        rows = max(1, PREFILL_TOKENS // tokens.shape[1])
        cos, sin = self.angles(torch.arange(tokens.shape[1], device=tokens.device))
        last = []
        for start in range(0, len(tokens), rows):
            piece = slice(start, start + rows)
            x = self.model.embed(tokens[piece])
            for number, block in enumerate(self.blocks):
                q, k, v = block.attention.project(block.attention_norm(x), cos, sin)
                self.prompt_k[number][piece], self.prompt_v[number][piece] = k, v
                y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=block.attention.grouped)
                x = x + block.attention.o(rearrange(y, "b h t k -> b t (h k)"))
                x = x + block.mlp(block.mlp_norm(x))
            ends = self.lengths[piece] - 1
            last.append(x[torch.arange(len(x), device=x.device), ends])
        return self.logits(torch.cat(last))

    def step(self, codes: "Int64[Tensor, 'b candidates']") -> "Float[Tensor, 'b candidates v']":
        """Feed the next code of every candidate, all candidates of a prompt at the same position."""
        cos, sin = self.angles((self.lengths + self.num_fed)[:, None])
        x = self.model.embed(codes)
        for number, block in enumerate(self.blocks):
            q, k, v = block.attention.project(block.attention_norm(x), cos, sin)
            self.answer_k[number][:, :, :, self.num_fed] = k
            self.answer_v[number][:, :, :, self.num_fed] = v
            x = x + block.attention.o(self.attend(number, q))
            x = x + block.mlp(block.mlp_norm(x))
        self.num_fed += 1
        return self.logits(x)

    def logits(self, x: "Float[Tensor, '*b d']") -> "Float[Tensor, '*b v']":
        with torch.autocast(x.device.type, enabled=False):
            return self.model.head(self.model.norm(x.to(self.model.norm.weight.dtype)))

    def attend(self, number: int, q: "Float[Tensor, 'b h candidates k']") -> "Float[Tensor, 'b candidates h_k']":
        """The candidates' queries before their prompt's keys (shared) and their own."""
        num_candidates, t = q.shape[2], self.prompt_k[number].shape[2]
        q = q * self.head_size**-0.5
        shared = rearrange(q, "b (g r) c k -> b g (c r) k", g=self.groups)  # r query heads read one head of keys
        own = rearrange(q, "b (g r) c k -> b g c r k", g=self.groups)
        own_k = self.answer_k[number][:, :, :, : self.num_fed + 1]
        own_v = self.answer_v[number][:, :, :, : self.num_fed + 1]

        before_prompt = shared @ self.prompt_k[number].transpose(-1, -2)
        if self.padding is not None:
            before_prompt = before_prompt.masked_fill(self.padding, float("-inf"))
        before_own = rearrange(own @ own_k.transpose(-1, -2), "b g c r i -> b g (c r) i")
        # One softmax over both parts; the same as joining two by their log-sum-exps, and the scores are small.
        weights = torch.cat([before_prompt, before_own], dim=-1).softmax(-1, dtype=torch.float32).to(q.dtype)
        of_own = rearrange(weights[..., t:], "b g (c r) i -> b g c r i", c=num_candidates) @ own_v
        y = weights[..., :t] @ self.prompt_v[number] + rearrange(of_own, "b g c r k -> b g (c r) k")
        return rearrange(y, "b g (c r) k -> b c (g r k)", c=num_candidates)
