"""video: consecutive frames of one clip at one of several strides, from a start drawn anew each time.

Clips shorter than `frames` are left out (the reference puts another clip in their place); `lvm/sentences/frames.py`
says what becomes of a stride that is too long for a clip.
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
    arrange,
    bits,
    clips,
    first_is_input,
    flip,
    owned,
)
from lvm.sentences.frames import check_strides, drawn_frames, refuse_long_strides

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
        check_strides("video.strides", self.strides)

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
        return arrange(items, bits(catalogue.channels, (self.channel,)), frame[:, None])
