"""A sentence continued beyond the context: the window moves, and what is left in it is fed anew.

The window moves by whole tuples (pairs for an analogy, frames for a clip), no more than needed, so that inputs and
annotations keep their places. The reference moves it picture by picture, which turns a pair prompt's roles round; it
prefills anew at each move as well (evaluation/vqlm_demo/inference.py of ytongbai/LVM). sliding.py goes on without.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from einops import rearrange

from lvm.inference.engine import Request
from lvm.inference.generate import as_prompts, make_requests
from lvm.inference.sampling import answer_keys
from lvm.runtime.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64

    from lvm.model import LVMConfig

Window = Literal["tuples", "frames", "reuse"]  # whole tuples; the reference's; whole tuples on the old keys


@dataclass(frozen=True)
class Prompt:
    """What is asked: the pictures shown, as codes, and how many are to follow."""

    codes: "Int64[np.ndarray, 'n t']"
    num_pictures: int = 1
    tuple_size: int = 1  # the window moves by so many pictures: 2 where inputs and answers alternate


@dataclass(frozen=True)
class Continuation:
    tokens: "Int64[np.ndarray, 'candidates num_pictures t']"
    log_probs: "Float32[np.ndarray, 'candidates num_pictures t']"  # nats, of the full softmax at temperature 1


def move_window(num_pictures: int, room: int, tuple_size: int) -> int:
    """How many of the first pictures leave a window of `room`: whole tuples, no more than needed."""
    excess = max(0, num_pictures - room)
    return -(-excess // tuple_size) * tuple_size


class Rollout:
    """One prompt on its way: what to ask next, and what came back.

    The candidates share the prompt of the first window; from then on each has its own. Only the pictures of the window
    are kept beside the answer.
    """

    def __init__(
        self,
        config: "LVMConfig",
        prompt: Prompt,
        pictures_per_window: int,
        num_candidates: int,
        seed: int,
        window: Window,
    ):
        if window not in get_args(Window):
            raise UserError(f"window {window!r} is unknown; use one of {', '.join(get_args(Window))}")
        if prompt.num_pictures < 1:
            raise UserError(f"num_pictures {prompt.num_pictures} must be at least 1")
        if num_candidates < 1:
            raise UserError(f"num_candidates {num_candidates} must be at least 1")
        if not 1 <= prompt.tuple_size < pictures_per_window:
            raise UserError(
                f"tuples of {prompt.tuple_size} pictures do not fit a window of {pictures_per_window} with the answer"
            )
        self._config, self._wanted, self._room = config, prompt.num_pictures, pictures_per_window - 1
        self._tuple_size = 1 if window == "frames" else prompt.tuple_size
        shown = as_prompts([torch.from_numpy(prompt.codes.reshape(-1))], config)
        self.keys = answer_keys(shown, num_candidates, seed)[0]  # of each candidate's noise
        self._windows = np.broadcast_to(prompt.codes, (num_candidates, *prompt.codes.shape))  # c n t
        self._tokens: list[np.ndarray] = []
        self._log_probs: list[np.ndarray] = []
        self._pending: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.done = 0  # pictures

    @property
    def exceeds_window(self) -> bool:
        """Whether the window moves before the answer is complete."""
        kept = self._windows.shape[1] - move_window(self._windows.shape[1], self._room, self._tuple_size)
        return kept + self._wanted > self._room + 1

    @property
    def finished(self) -> bool:
        return self.done == self._wanted

    def next_requests(self) -> list[Request]:
        """One for all candidates at first, then one for each."""
        self._windows = self._windows[:, move_window(self._windows.shape[1], self._room, self._tuple_size) :]
        t = self._windows.shape[2]
        now = min(self._wanted - self.done, self._room + 1 - self._windows.shape[1])
        rows = self._windows[:1] if self.done == 0 else self._windows
        keys = self.keys[None] if self.done == 0 else self.keys[:, None]
        prompts = list(rearrange(rows, "b n t -> b (n t)"))
        return make_requests(self._config, prompts, keys, now * t, first_index=self.done * t)

    def accept(self, place: int, tokens: "Int64[np.ndarray, 'b t']", log_probs: "Float32[np.ndarray, 'b t']") -> bool:
        """The answer to request `place` of the last ones. True when all of them are there."""
        self._pending[place] = tokens, log_probs
        if len(self._pending) < (1 if self.done == 0 else len(self.keys)):
            return False
        t = self._windows.shape[2]
        codes, scores = (
            rearrange(
                np.concatenate([self._pending[i][part] for i in range(len(self._pending))]), "c (n t) -> c n t", t=t
            )
            for part in (0, 1)
        )
        self._pending = {}
        self._windows = np.concatenate([self._windows, codes], axis=1)
        self._tokens.append(codes)
        self._log_probs.append(scores)
        self.done += codes.shape[1]
        return True

    def continuation(self) -> Continuation:
        return Continuation(np.concatenate(self._tokens, axis=1), np.concatenate(self._log_probs, axis=1))
