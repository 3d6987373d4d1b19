"""annotated_video: frames of a clip with an annotation of each, in one of LVM's two layouts, several clips a sentence.

    interleave   f1 a1 f2 a2 f3 a3 f4 a4     frame by frame
    block        f1 f2 f3 f4 a1 a2 a3 a4     the frames, then their annotations

The reference writes each group of clips in both (`tokenize_multi_seq_images_muse.py`); here `layout: both` tosses a
coin for each sentence. Start and stride are drawn for each clip. The annotation may lie in another view of the clip
than its frames: with `agree: view` the clips of a sentence share what the view stands for (a palette, say).

The first picture of each clip is an input and all that follow answer it, as in `video`: in either layout each can be
told from those before it. So the roles do not depend on the coin.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from lvm.runtime import UserError
from lvm.sentences.base import (
    Agree,
    Catalogue,
    Columns,
    Condition,
    Kinds,
    Pictures,
    Recipe,
    arrange,
    at_least,
    bits,
    check_channels,
    clips,
    first_is_input,
    flip,
    shown,
    unit_keys,
)
from lvm.sentences.frames import check_strides, drawn_frames, refuse_long_strides

if TYPE_CHECKING:
    from jaxtyping import Int8, Int64, UInt64


@dataclass(frozen=True)
class AnnotatedVideo(Recipe):
    name: ClassVar[str] = "annotated_video"
    channels: tuple[str, ...]  # of each frame, in this order: image, then what annotates it
    frames: int = 4  # of each clip
    clips: int = 2  # a sentence
    strides: tuple[int, ...] = (1,)  # one of them is drawn for each clip, in frames
    layout: Literal["interleave", "block", "both"] = "both"  # both: a coin for each sentence
    agree: Agree = "none"  # the column all clips of a sentence share
    exclude_views: tuple[int, ...] = ()  # views this entry never shows (held-out latents)

    def __post_init__(self) -> None:
        check_channels("annotated_video.channels", self.channels, 2)
        if self.frames < 2:
            raise UserError(f"annotated_video.frames is {self.frames}; use 2 or more, or the recipe tuples of stills")
        at_least("annotated_video.clips", self.clips, 1)
        check_strides("annotated_video.strides", self.strides)

    @property
    def pictures(self) -> int:
        return self.clips * self.frames * len(self.channels)

    @property
    def units(self) -> int:
        return self.clips

    def roles(self) -> "Int8[np.ndarray, 'p']":
        return np.tile(first_is_input(self.frames * len(self.channels)), self.clips)

    def check(self, kinds: Kinds) -> None:
        refuse_long_strides(self.strides, self.frames, kinds, self.channels)

    def conditions(self, columns: Columns) -> list[Condition]:
        return [clips(columns, self.frames), *shown(columns, self.channels, self.exclude_views)]

    def compose(
        self, items: "Int64[np.ndarray, 's m']", keys: "UInt64[np.ndarray, 's']", catalogue: Catalogue
    ) -> Pictures:
        noise = unit_keys(keys, 0, self.clips)
        frames = drawn_frames(self.strides, self.frames, noise, catalogue.num_pictures_of(items))  # s m f
        block = flip(keys, 1) if self.layout == "both" else self.layout == "block"
        return arrange(items, bits(catalogue.channels, self.channels), frames, block)
