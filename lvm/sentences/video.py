"""video: consecutive frames of one clip at one of several strides, from a start drawn anew each time.

As the reference does, the stride is shrunk to (N - 1) // (frames - 1) for a clip of N frames that is too short for it;
clips shorter than `frames` are left out (the reference puts another clip in their place).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lvm.runtime import UserError
from lvm.sentences.base import (
    Catalogue,
    Columns,
    Condition,
    Kinds,
    Pictures,
    Recipe,
    channel_bit,
    clips,
    first_is_input,
    flip,
    owned,
    owns,
    pick,
)

if TYPE_CHECKING:
    from jaxtyping import Int8, Int64, UInt64


@dataclass(frozen=True)
class Video(Recipe):
    name: ClassVar[str] = "video"
    frames: int = 16  # pictures a sentence
    strides: tuple[int, ...] = (1,)  # one of them is drawn for each sentence, in frames
    channel: str = "image"
    reverse: bool = False  # play half of the draws backwards

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise UserError(f"video.frames is {self.frames}; use 2 or more, or the recipe single")
        check_strides("video", self.strides)

    @property
    def pictures(self) -> int:
        return self.frames

    def roles(self) -> "Int8[np.ndarray, 'p']":
        return first_is_input(self.frames)

    def check(self, kinds: Kinds) -> None:
        refuse_long_strides(self.strides, self.frames, kinds, (self.channel,))

    def conditions(self, columns: Columns) -> list[Condition]:
        return [owned(columns, self.channel), clips(columns, self.frames)]

    def compose(
        self, items: "Int64[np.ndarray, 's m']", keys: "UInt64[np.ndarray, 's']", catalogue: Catalogue
    ) -> Pictures:
        frame = drawn_frames(self.strides, self.frames, keys, catalogue.num_pictures_of(items[:, 0]))
        if self.reverse:
            frame = np.where(flip(keys, 2)[:, None], frame[:, ::-1], frame)
        item = np.repeat(items, self.frames, axis=1)  # s 1 -> s p
        return Pictures(item, np.full_like(item, channel_bit(catalogue.channels, self.channel)), frame)


def check_strides(recipe: str, strides: tuple[int, ...]) -> None:
    if not strides or min(strides) < 1:
        raise UserError(f"{recipe}.strides is {list(strides)}; use numbers of 1 or more")


def refuse_long_strides(strides: tuple[int, ...], frames: int, kinds: Kinds, channels: tuple[str, ...]) -> None:
    """Raise `UserError` for a stride that every clip with these channels would have to shrink."""
    own = np.logical_and.reduce([owns(kinds, channel) for channel in channels])
    longest = int(np.asarray(kinds.num_pictures)[own].max(initial=0))
    for stride in strides:
        needed = (frames - 1) * stride + 1
        if frames <= longest < needed:
            raise UserError(
                f"stride {stride} needs clips of {needed} pictures for {frames} frames, the longest "
                f"holds {longest}; use strides up to {(longest - 1) // (frames - 1)}"
            )


def drawn_frames(
    strides: tuple[int, ...], frames: int, keys: "UInt64[np.ndarray, 's']", length: "Int64[np.ndarray, 's']"
) -> "Int64[np.ndarray, 's f']":
    """`frames` frame numbers in clips of `length` pictures: a stride of `strides` and a start, by noise 0 and 1."""
    gaps = frames - 1
    drawn = np.asarray(strides, np.int64)[pick(keys, 0, len(strides))]
    stride = np.minimum(drawn, (length - 1) // gaps)
    start = pick(keys, 1, length - gaps * stride)
    return start[:, None] + stride[:, None] * np.arange(frames)  # s f
