"""Answers to prompts of codes: `generate`, and the batching that keeps it within bounded memory.

g = generate(model, prompt, num_tokens=256, num_candidates=4, temperature=1.0, seed=0)
g.tokens        # int64 [b, candidates, num_tokens]
g.log_probs     # float32, the same shape
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lvm.inference.cache import Cache, cache_bytes
from lvm.inference.sampling import Sampling, answer_keys, draw
from lvm.runtime.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64, UInt64

    from lvm.model import LVM, LVMConfig

CPU_CACHE_BYTES = 2**28  # keys and values of the prompts that are answered together
SCORES_AT_ONCE = 2**22  # elements of the noise or logits of one step


@dataclass(frozen=True)
class Generation:
    tokens: "Int64[Tensor, 'b candidates t']"
    log_probs: "Float32[Tensor, 'b candidates t']"  # nats, of the full softmax at temperature 1 before any truncation


def generate(
    model: "LVM",
    prompt: "Int64[Tensor, 'b t'] | Sequence[Int64[Tensor, 't']]",
    num_tokens: int,
    num_candidates: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> Generation:
    """Continue each prompt by `num_tokens` codes, `num_candidates` times.

    Prompts hold codes only; BOS is put before them if `config.prompt_bos`. Only codes are drawn. Temperature 0 takes
    the most likely code. An answer depends on (seed, prompt, candidate, position) alone, up to float32 ties: not on
    the other prompts, their order or the number of candidates. Raises `UserError` for ids that are no codes and for
    more fed positions than `config.max_position` (the last code is never fed).
    """
    prompts = as_prompts(prompt, model.config)
    if num_candidates < 1:
        raise UserError(f"num_candidates {num_candidates} must be at least 1")
    keys = answer_keys(prompts, num_candidates, seed)
    return generate_keyed(model, prompts, keys, num_tokens, Sampling(temperature, top_k, top_p))


def as_prompts(
    prompt: "Int64[Tensor, 'b t'] | Sequence[Int64[Tensor, 't']]", config: "LVMConfig"
) -> "list[Int64[np.ndarray, 't']]":
    """The prompts as checked arrays of codes."""
    prompts = [np.asarray(row.cpu() if isinstance(row, Tensor) else row) for row in prompt]
    for number, codes in enumerate(prompts):
        if codes.ndim != 1 or (codes.size and codes.dtype.kind not in "iu"):
            raise UserError(f"prompt {number} is {codes.dtype} {list(codes.shape)}; it must be a row of integer codes")
        if codes.size and (codes.min() < 0 or codes.max() >= config.num_codes):
            bad = codes.min() if codes.min() < 0 else codes.max()
            raise UserError(f"prompt {number} holds {bad}, which is no code; codes are 0..{config.num_codes - 1}")
        if not codes.size and not config.prompt_bos:
            raise UserError(f"prompt {number} is empty, and this model is prompted without BOS; give at least one code")
    return [codes.astype(np.int64) for codes in prompts]


def generate_keyed(
    model: "LVM",
    prompts: "list[Int64[np.ndarray, 't']]",
    keys: "UInt64[np.ndarray, 'b candidates']",
    num_tokens: int,
    sampling: Sampling,
    first_index: int = 0,
) -> Generation:
    """`generate` with the keys of the noise given; the first code drawn is number `first_index` of its answer."""
    config, device = model.config, model.embed.weight.device
    if num_tokens < 1:
        raise UserError(f"num_tokens {num_tokens} must be at least 1")
    bos = [config.bos] if config.prompt_bos else []
    lengths = np.array([len(bos) + len(codes) for codes in prompts], dtype=np.int64)
    fed = int(lengths.max(initial=0)) + num_tokens - 1
    if fed > config.max_position:
        raise UserError(
            f"a prompt of {fed - num_tokens + 1} tokens and {num_tokens} to answer feed {fed} positions, "
            f"beyond the model's context of {config.max_position}; shorten the prompt"
        )
    shape = (len(prompts), keys.shape[1], num_tokens)
    tokens = torch.empty(shape, dtype=torch.int64, device=device)
    log_probs = torch.empty(shape, dtype=torch.float32, device=device)
    for rows in batches(model, lengths, num_tokens, keys.shape[1]):
        padded = np.zeros((len(rows), lengths[rows].max()), dtype=np.int64)
        for line, row in zip(padded, rows):
            line[: lengths[row]] = [*bos, *prompts[row]]
        answer = answer_batch(model, padded, lengths[rows], keys[rows], num_tokens, sampling, first_index)
        where = torch.from_numpy(rows).to(device)
        tokens[where], log_probs[where] = answer
    return Generation(tokens, log_probs)


def batches(
    model: "LVM", lengths: "Int64[np.ndarray, 'b']", num_tokens: int, num_candidates: int
) -> "Iterator[Int64[np.ndarray, 'rows']]":
    """Numbers of the prompts to answer together, longest first, so that lengths are alike and memory is bounded."""
    weight = model.embed.weight
    budget = torch.cuda.mem_get_info(weight.device)[0] // 2 if weight.is_cuda else CPU_CACHE_BYTES
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        each = cache_bytes(model.config, longest, num_tokens - 1, num_candidates, weight.element_size())
        rows = max(1, min(budget // max(each, 1), SCORES_AT_ONCE // (num_candidates * model.config.vocab_size)))
        yield order[start : start + rows]
        start += rows


@torch.inference_mode()
def answer_batch(
    model: "LVM",
    padded: "Int64[np.ndarray, 'b t']",
    lengths: "Int64[np.ndarray, 'b']",
    keys: "UInt64[np.ndarray, 'b candidates']",
    num_tokens: int,
    sampling: Sampling,
    first_index: int,
) -> "tuple[Int64[Tensor, 'b candidates t'], Float32[Tensor, 'b candidates t']]":
    device = model.embed.weight.device
    num_candidates = keys.shape[1]
    cache = Cache(model, torch.from_numpy(lengths).to(device), num_tokens - 1, num_candidates)
    logits = cache.prefill(torch.from_numpy(padded).to(device))[:, None].expand(-1, num_candidates, -1)
    codes: list[Tensor] = []
    log_probs: list[Tensor] = []
    for i in range(num_tokens):
        if i:
            logits = cache.step(codes[-1])
        drawn, log_prob = draw(logits, model.config.num_codes, sampling, keys, first_index + i)
        codes.append(drawn)
        log_probs.append(log_prob)
    return torch.stack(codes, dim=-1), torch.stack(log_probs, dim=-1)
