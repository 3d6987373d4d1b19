"""A sentence continued beyond the context on the keys that are there, instead of feeding the window anew.

Each move of the window costs nothing but a rotation. What is kept was computed with what has left in sight, so answers
differ from those of a window fed anew; `benchmarks/long_context.py` measures by how much. BOS stays first, as the sink
that attention needs (StreamingLLM, arXiv 2309.17453).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lvm.inference.cache import Cache, bytes_per_token, cache_dtype
from lvm.inference.engine import default_cache_bytes
from lvm.inference.rollout import Continuation, Prompt, move_window
from lvm.inference.sampling import Sampling, draw, signed

if TYPE_CHECKING:
    from jaxtyping import Int64, UInt64

    from lvm.model import LVM


@torch.inference_mode()
def continue_on_old_keys(
    model: "LVM",
    prompt: Prompt,
    pictures_per_window: int,
    keys: "UInt64[np.ndarray, 'candidates']",
    sampling: Sampling,
    progress: Callable[[int], None] = lambda pictures: None,
    cache_bytes: int | None = None,
) -> Continuation:
    """What follows the prompt; for each candidate a window and what is drawn of it, whatever the number of pictures.

    Candidates go on together as far as `cache_bytes` allows.
    """
    room = pictures_per_window - 1
    shown = prompt.codes[move_window(len(prompt.codes), room, prompt.tuple_size) :]
    drawn = min(prompt.num_pictures, max(pictures_per_window - len(shown), prompt.tuple_size))  # at most, at a time
    t = shown.shape[1]
    shape = (int(model.config.prompt_bos) + pictures_per_window * t, 1, drawn * t)  # of prefix, suffix and answer
    each = bytes_per_token(model.config, cache_dtype(model).itemsize) * sum(shape)
    together = max(1, (cache_bytes or default_cache_bytes(model)) // each)
    parts = [
        _continue(model, prompt, shown, pictures_per_window, keys[start : start + together], sampling, shape, progress)
        for start in range(0, len(keys), together)
    ]
    return Continuation(
        np.concatenate([part.tokens for part in parts]), np.concatenate([part.log_probs for part in parts])
    )


def _continue(
    model: "LVM",
    prompt: Prompt,
    shown: "Int64[np.ndarray, 'n t']",
    pictures_per_window: int,
    keys: "UInt64[np.ndarray, 'candidates']",
    sampling: Sampling,
    shape: tuple[int, int, int],
    progress: Callable[[int], None],
) -> Continuation:
    config, device = model.config, model.embed.weight.device
    room, first = pictures_per_window - 1, int(config.prompt_bos)
    t, c = shown.shape[1], len(keys)
    cache = Cache(model, c, 1, 1, *shape)
    noise = signed(keys)[:, None].to(device)

    fed = torch.from_numpy(np.concatenate([[config.bos] * first, shown.reshape(-1)]).astype(np.int64)).to(device)
    cache.feed_prefix(0, fed[:-1])
    for slot in range(1, c):
        cache.copy_prefix(0, slot)
    last = fed[-1:].expand(c)
    held, done = len(shown), 0
    tokens: list[Tensor] = []
    log_probs: list[Tensor] = []
    while done < prompt.num_pictures:
        now = min(prompt.num_pictures - done, pictures_per_window - held)
        logits = torch.cat([cache.feed_rows(cell, [cell], last[cell, None, None], [1]) for cell in range(c)])[:, None]
        for index in range(now * t):
            if index:
                logits = cache.step(tokens[-1])
            number = torch.full((c,), done * t + index, device=device)
            codes, scores = draw(logits, config.num_codes, sampling, noise, number)
            tokens.append(codes)
            log_probs.append(scores)
        last = tokens[-1][:, 0]
        held, done = held + now, done + now
        progress(now * c)
        if done == prompt.num_pictures:
            break
        gone = move_window(held, room, prompt.tuple_size)
        cache.slide(first, gone * t)
        held -= gone
    split = lambda kept: torch.cat(kept, dim=1).view(c, prompt.num_pictures, t).cpu().numpy()
    return Continuation(split(tokens), split(log_probs))
