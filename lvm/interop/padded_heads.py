"""Wider heads, equal answers: a model whose head size an attention kernel lacks, padded with zeros to one that it has.

Each half of a head of q, k, v and o gets zeros behind it, so that the rotary pairs (i, i + k/2) stay pairs. Their
frequencies are theta^(-2i/k): with theta' = theta^(k'/k) those of the wider head k' are the same numbers, so any Llama
serves the folder as it is. q is multiplied by sqrt(k'/k), for scores are divided by sqrt(k') now. Pairs of zeros add
nothing to a score, and o does not read the zeros of v.
"""

import math
from dataclasses import replace

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from lvm.model import LVMConfig
from lvm.runtime import UserError


def pad_config(config: LVMConfig, head_size: int) -> LVMConfig:
    """The config of the wider model. Raises `UserError` where none gives equal answers."""
    if head_size < config.head_size or head_size % 2:
        raise UserError(f"head_size {head_size} must be even and at least the model's {config.head_size}")
    if config.qk_norm:
        raise UserError("a model with qk_norm takes the mean over a head, zeros too; it cannot be padded")
    return replace(config, head_size=head_size, rope_theta=config.rope_theta ** (head_size / config.head_size))


def pad_tensor(name: str, tensor: Tensor, config: LVMConfig, head_size: int) -> Tensor:
    """This tensor of `config`'s model, named as Hugging Face names it, for heads of `head_size`."""
    _, _, rest = name.partition("self_attn.")
    projection, _, kind = rest.partition("_proj.")
    if projection not in ("q", "k", "v", "o") or (projection, kind) == ("o", "bias"):
        return tensor
    if projection == "q":
        tensor = tensor * math.sqrt(head_size / config.head_size)
    rows = tensor.T if projection == "o" else tensor
    halves = rearrange(rows, "(h two half) ... -> h two half ...", two=2, half=config.head_size // 2)
    added = (head_size - config.head_size) // 2
    padded = F.pad(halves, [0, 0] * (halves.ndim - 3) + [0, added])
    padded = rearrange(padded, "h two half ... -> (h two half) ...")
    return padded.T if projection == "o" else padded
