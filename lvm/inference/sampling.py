"""Drawing codes: truncation, and Gumbel-max with noise that is a function of counters.

What is drawn depends on the logits, the key of the answer and the index in it alone: not on the batch or its order.
"""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lvm.runtime.errors import UserError
from lvm.runtime.hashing import hash64

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Int64, UInt64


LEAST_TEMPERATURE = 1e-6  # below it scores leave float32


@dataclass(frozen=True)
class Sampling:
    """How codes are drawn; applied in this order, as transformers does."""

    temperature: float = 1.0  # 0: the most likely code
    top_k: int | None = None  # only the k most likely codes
    top_p: float | None = None  # only the fewest codes that together have this probability (arXiv 1904.09751)

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or LEAST_TEMPERATURE <= self.temperature < float("inf")):
            least = f"{LEAST_TEMPERATURE:g}"
            raise UserError(f"temperature {self.temperature} must be 0 (greedy) or a number from {least} on")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k {self.top_k} must be at least 1; leave it out to keep all codes")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p {self.top_p} must be above 0 and at most 1")


GREEDY = Sampling(temperature=0.0)


def check_candidates(num_candidates: int, sampling: Sampling) -> None:
    if num_candidates < 1:
        raise UserError(f"num_candidates {num_candidates} must be at least 1")
    if sampling.temperature == 0 and num_candidates > 1:
        raise UserError(
            f"{num_candidates} candidates at temperature 0 would all be the same; draw 1, or take a temperature above 0"
        )


def prompt_hash(codes: "Int64[np.ndarray, 't']") -> int:
    """A number for a prompt: the first 8 bytes of sha256 over its codes as little-endian int64."""
    return int.from_bytes(hashlib.sha256(np.ascontiguousarray(codes, dtype="<i8").tobytes()).digest()[:8], "big")


def answer_keys(
    prompts: "list[Int64[np.ndarray, 't']]", num_candidates: int, seed: int
) -> "UInt64[np.ndarray, 'b candidates']":
    """The key of each answer's noise: (seed, hash of the prompt, candidate)."""
    if not 0 <= seed < 2**64:
        raise UserError(f"seed {seed} must lie in 0..2^64 - 1")
    hashes = np.array([prompt_hash(prompt) for prompt in prompts], dtype=np.uint64)
    return hash64(np.uint64(seed), hashes[:, None], np.arange(num_candidates)[None])


def signed(keys: "UInt64[np.ndarray, '*b']") -> "Int64[Tensor, '*b']":
    """The same 64 bits as torch's integers."""
    return torch.from_numpy(np.ascontiguousarray(keys).view(np.int64))


_SHIFTS = 30, 27, 31
_FACTORS = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix64(x: Tensor) -> Tensor:
    """`lvm.runtime.hashing.mix64` on the device: products and sums of int64 wrap as those of uint64 do."""
    for shift, factor in zip(_SHIFTS, _FACTORS):
        x = (x ^ _shift_right(x, shift)) * factor
    return x ^ _shift_right(x, _SHIFTS[2])


def gumbel(
    keys: "Int64[Tensor, 'b candidates']", index: "Int64[Tensor, 'b']", num_codes: int
) -> "Float32[Tensor, 'b candidates num_codes']":
    """Standard Gumbel noise of each code at `index` of each answer: `uniform(key, index, code)`, logged twice."""
    state = _mix64(keys + _GOLDEN)
    state = _mix64((index[:, None] ^ state) + _GOLDEN)
    codes = torch.arange(num_codes, device=keys.device)
    state = _mix64((codes ^ state[..., None]) + _GOLDEN)
    u = _shift_right(state, 11).double() * 2.0**-53
    return -(-u.clamp_(min=2.0**-54).log_()).log_().float()


def truncate(scores: "Float[Tensor, '*b v']", sampling: Sampling) -> "Float[Tensor, '*b v']":
    """-inf where top-k and then top-p exclude a code; ties at the k-th score all stay."""
    if sampling.top_k is not None and sampling.top_k < scores.shape[-1]:
        kth = scores.topk(sampling.top_k, dim=-1).values[..., -1:]
        scores = scores.masked_fill(scores < kth, float("-inf"))
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, codes = scores.sort(dim=-1, descending=True, stable=True)
        shares = ordered.softmax(-1)
        enough = shares.cumsum(-1) - shares >= sampling.top_p  # what comes before already has the probability
        scores = scores.masked_fill(torch.zeros_like(enough).scatter(-1, codes, enough), float("-inf"))
    return scores


def draw(
    logits: "Float[Tensor, 'b candidates v']",
    num_codes: int,
    sampling: Sampling,
    keys: "Int64[Tensor, 'b candidates']",
    index: "Int64[Tensor, 'b']",
) -> "tuple[Int64[Tensor, 'b candidates'], Float32[Tensor, 'b candidates']]":
    """A code below `num_codes` for each answer, and its log-probability under the full softmax at temperature 1."""
    logits = logits.float()
    scores = logits[..., :num_codes]
    if sampling.temperature > 0:
        scores = truncate(scores / sampling.temperature, sampling)
        scores = scores + gumbel(keys, index, num_codes)
    codes = scores.argmax(-1)
    chosen = logits.gather(-1, codes[..., None])[..., 0]
    return codes, chosen - logits.logsumexp(-1)
