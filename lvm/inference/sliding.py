"""A sentence continued beyond the context on the keys that are there, instead of feeding the window anew.

Each move of the window costs nothing but a rotation. What is kept was computed with what has left in sight, so answers
differ from those of a window fed anew; `benchmarks/long_context.py` measures by how much. BOS stays first, as the sink
that attention needs (StreamingLLM, arXiv 2309.17453).
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lvm.inference.cache import Cache
from lvm.inference.rollout import Continuation, Prompt, move_window
from lvm.inference.sampling import Sampling, draw, signed

if TYPE_CHECKING:
    from jaxtyping import UInt64

    from lvm.model import LVM


@torch.inference_mode()
def continue_on_old_keys(
    model: "LVM", prompt: Prompt, pictures_per_window: int, keys: "UInt64[np.ndarray, 'candidates']", sampling: Sampling
) -> Continuation:
    """What follows the prompt; each candidate has a cache of the window's size, whatever the number of pictures."""
    config, device = model.config, model.embed.weight.device
    room, first = pictures_per_window - 1, int(config.prompt_bos)
    shown = prompt.codes[move_window(len(prompt.codes), room, prompt.tuple_size) :]
    t, c = shown.shape[1], len(keys)
    cache = Cache(model, c, 1, 1, first + pictures_per_window * t, 1, pictures_per_window * t)
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
        gone = move_window(held, room, prompt.tuple_size)
        cache.slide(first, gone * t)
        held -= gone
    split = lambda kept: torch.cat(kept, dim=1).view(c, prompt.num_pictures, t).cpu().numpy()
    return Continuation(split(tokens), split(log_probs))
