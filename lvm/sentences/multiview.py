"""multiview: consecutive views of one object or of several, an item being an object of n views in order.

`views: 16, around: true` is LVM's Objaverse sentence: 16 views in a row of a turntable of 24, 15 degrees apart, from
any start. `objects: 4, views: 4, channels: [image, mask]` is Co3D's (`tokenize_co3d_muse.py`): of each object its views
and then their masks, 32 pictures. `layout: interleave` shows each view with its mask instead.

Start, stride and direction are drawn for each object. Its first picture is an input, and all others answer it.
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
class Multiview(Recipe):
    name: ClassVar[str] = "multiview"
    views: int = 16  # of each object
    objects: int = 1  # a sentence
    channels: tuple[str, ...] = ("image",)  # of each view, in this order
    strides: tuple[int, ...] = (1,)  # one of them is drawn for each object, in views
    reverse: bool = False  # go round half of the objects the other way
    around: bool = False  # the last view is beside the first: start anywhere and go on past the end
    layout: Literal["block", "interleave"] = "block"  # all views, then their masks; or each view with its mask
    agree: Agree = "none"  # the column all objects of a sentence share
    exclude_views: tuple[int, ...] = ()  # views of items (latents, not cameras) that this entry never shows

    def __post_init__(self) -> None:
        if self.views < 2:
            raise UserError(f"multiview.views is {self.views}; use 2 or more, or the recipe single")
        at_least("multiview.objects", self.objects, 1)
        check_channels("multiview.channels", self.channels, 1)
        check_strides("multiview.strides", self.strides)

    @property
    def pictures(self) -> int:
        return self.objects * self.views * len(self.channels)

    @property
    def units(self) -> int:
        return self.objects

    def roles(self) -> "Int8[np.ndarray, 'p']":
        return np.tile(first_is_input(self.views * len(self.channels)), self.objects)

    def check(self, kinds: Kinds) -> None:
        refuse_long_strides(self.strides, self.views, kinds, self.channels)

    def conditions(self, columns: Columns) -> list[Condition]:
        return [clips(columns, self.views), *shown(columns, self.channels, self.exclude_views)]

    def compose(
        self, items: "Int64[np.ndarray, 's m']", keys: "UInt64[np.ndarray, 's']", catalogue: Catalogue
    ) -> Pictures:
        noise = unit_keys(keys, 0, self.objects)
        views = drawn_frames(self.strides, self.views, noise, catalogue.num_pictures_of(items), self.around)  # s m f
        if self.reverse:
            views = np.where(flip(noise, 2)[..., None], views[..., ::-1], views)
        return arrange(items, bits(catalogue.channels, self.channels), views, self.layout == "block")
