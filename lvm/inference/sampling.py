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
from lvm.runtime.hashing import hash64, uniform

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Int64, UInt64


@dataclass(frozen=True)
class Sampling:
    """How codes are drawn; applied in this order, as transformers does."""

    temperature: float = 1.0  # 0: the most likely code
    top_k: int | None = None  # only the k most likely codes
    top_p: float | None = None  # only the fewest codes that together have this probability (arXiv 1904.09751)

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature {self.temperature} must be 0 (greedy) or a positive number")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k {self.top_k} must be at least 1; leave it out to keep all codes")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p {self.top_p} must be above 0 and at most 1")


GREEDY = Sampling(temperature=0.0)


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


def gumbel(
    keys: "UInt64[np.ndarray, 'b candidates']", index: int, num_codes: int
) -> "Float32[np.ndarray, 'b candidates num_codes']":
    """Standard Gumbel noise of the code at `index` of each answer."""
    u = uniform(keys[..., None], index, np.arange(num_codes))
    return -np.log(-np.log(np.maximum(u, 2.0**-54))).astype(np.float32)


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
    keys: "UInt64[np.ndarray, 'b candidates']",
    index: int,
) -> "tuple[Int64[Tensor, 'b candidates'], Float32[Tensor, 'b candidates']]":
    """A code below `num_codes` for each answer, and its log-probability under the full softmax at temperature 1."""
    logits = logits.float()
    scores = logits[..., :num_codes]
    if sampling.temperature > 0:
        scores = truncate(scores / sampling.temperature, sampling)
        scores = scores + torch.from_numpy(gumbel(keys, index, num_codes)).to(scores.device)
    codes = scores.argmax(-1)
    chosen = logits.gather(-1, codes[..., None])[..., 0]
    return codes, chosen - logits.logsumexp(-1)
