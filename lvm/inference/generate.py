"""Answers to prompts of codes.

g = generate(model, prompt, num_tokens=256, num_candidates=4, temperature=1.0, seed=0)
g.tokens        # int64 [b, candidates, num_tokens]
g.log_probs     # float32, the same shape
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lvm.inference.engine import Request, answer_requests
from lvm.inference.sampling import Sampling, answer_keys, check_candidates
from lvm.runtime.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64, UInt64

    from lvm.model import LVM, LVMConfig


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
    the other prompts, their order or the number of candidates. Raises `UserError` for ids that are no codes, several
    candidates at temperature 0, and more fed positions than `config.max_position` (the last code is never fed).
    """
    prompts = as_prompts(prompt, model.config)
    sampling = Sampling(temperature, top_k, top_p)
    check_candidates(num_candidates, sampling)
    keys = answer_keys(prompts, num_candidates, seed)
    requests = make_requests(model.config, prompts, keys, num_tokens)
    tokens = np.empty((len(requests), num_candidates, num_tokens), np.int64)
    log_probs = np.empty(tokens.shape, np.float32)
    for number, *answer in answer_requests(model, requests, sampling):
        tokens[number], log_probs[number] = answer
    device = model.embed.weight.device
    return Generation(torch.from_numpy(tokens).to(device), torch.from_numpy(log_probs).to(device))


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


def make_requests(
    config: "LVMConfig",
    prompts: "list[Int64[np.ndarray, 't']]",
    keys: "UInt64[np.ndarray, 'b candidates']",
    num_tokens: int,
    first_index: int = 0,
) -> list[Request]:
    """What the engine is given: BOS before each prompt where the model wants it, lengths checked."""
    if num_tokens < 1:
        raise UserError(f"num_tokens {num_tokens} must be at least 1")
    bos = np.array([config.bos] if config.prompt_bos else [], dtype=np.int64)
    requests = [
        Request(np.concatenate([bos, codes]), key, int(num_tokens), first_index) for codes, key in zip(prompts, keys)
    ]
    longest = max(requests, key=lambda request: request.size, default=None)
    if longest is not None and longest.size > config.max_position:
        raise UserError(
            f"a prompt of {len(longest.tokens)} tokens and {longest.num_tokens} to answer feed {longest.size} "
            f"positions, beyond the model's context of {config.max_position}; shorten the prompt"
        )
    return requests
