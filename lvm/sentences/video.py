"""video: consecutive frames of one clip at one of several strides, from a start drawn anew each time.

As the reference does, the stride is shrunk to (N - 1) // (frames - 1) for a clip of N frames that is too short for it;
clips shorter than `frames` are left out (the reference puts another clip in their place).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lvm.runtime import UserError
from lvm.runtime.hashing import hash64
from lvm.sentences.base import ANSWER, INPUT, Agree, Columns, Pictures, channel_bit, owns

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Int8, UInt64


@dataclass(frozen=True)
class Video:
    frames: int = 16  # pictures a sentence
    strides: tuple[int, ...] = (1,)  # one of them is drawn for each sentence, in frames
    channel: str = "image"
    reverse: bool = False  # play half of the draws backwards

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise UserError(f"video.frames is {self.frames}; use 2 or more, or the recipe single")
        if not self.strides or min(self.strides) < 1:
            raise UserError(f"video.strides is {list(self.strides)}; use numbers of 1 or more")

    @property
    def pictures(self) -> int:
        return self.frames

    @property
    def units(self) -> int:
        return 1

    @property
    def agree(self) -> Agree:
        return "none"

    def roles(self) -> "Int8[np.ndarray, 'p']":
        return np.array([INPUT] + [ANSWER] * (self.frames - 1), np.int8)

    def conditions(self, columns: Columns) -> "list[tuple[str, Bool[np.ndarray, 'items']]]":
        own, num_pictures = owns(columns, self.channel), np.asarray(columns.num_pictures)
        longest = int(num_pictures[own].max(initial=0))
        for stride in self.strides:
            if self.frames <= longest < (self.frames - 1) * stride + 1:
                needed = (self.frames - 1) * stride + 1
                raise UserError(
                    f"stride {stride} needs clips of {needed} pictures for {self.frames} frames, the longest "
                    f"holds {longest}; use strides up to {(longest - 1) // (self.frames - 1)}"
                )
        return [
            (f"no {self.channel} of their own", own),
            (f"fewer than {self.frames} frames", num_pictures >= self.frames),
        ]

    def compose(self, items: "Int[np.ndarray, 's m']", keys: "UInt64[np.ndarray, 's']", columns: Columns) -> Pictures:
        gaps = self.frames - 1
        length = np.asarray(columns.num_pictures)[items[:, 0]].astype(np.int64)  # s
        strides = np.asarray(self.strides, np.int64)
        drawn = strides[(hash64(keys, 0) % np.uint64(len(strides))).astype(np.int64)]
        stride = np.minimum(drawn, (length - 1) // gaps)
        start = (hash64(keys, 1) % (length - gaps * stride).astype(np.uint64)).astype(np.int64)
        frame = start[:, None] + stride[:, None] * np.arange(self.frames)  # s p
        if self.reverse:
            backwards = hash64(keys, 2) % np.uint64(2) == 1
            frame = np.where(backwards[:, None], frame[:, ::-1], frame)
        item = np.repeat(items, self.frames, axis=1)  # s 1 -> s p
        return Pictures(item, np.full_like(item, channel_bit(columns, self.channel)), frame)
