"""annotations: k annotations of one image. Of an image and its k annotations m are drawn, and an order for them; the
same choice and order hold for every tuple of the sentence (LVM's "cot" files; `tokenize_multi_datasets_muse.py` shows
three tuples of all five: image, normal, edge, depth and segmentation, permuted once a sentence).

The first few tuples thus tell which annotation follows which. Every channel may ask and every channel may answer.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lvm.runtime import UserError
from lvm.sentences.base import (
    Agree,
    Catalogue,
    Columns,
    Condition,
    Pictures,
    Recipe,
    arrange,
    at_least,
    bits,
    check_channels,
    first_is_input,
    ordered_choice,
    shown,
    stills,
)

if TYPE_CHECKING:
    from jaxtyping import Int8, Int64, UInt64


@dataclass(frozen=True)
class Annotations(Recipe):
    name: ClassVar[str] = "annotations"
    channels: tuple[str, ...]  # the candidates, all of which an item must have: the image and its k annotations
    choose: int | None = None  # m, how many of them a tuple holds; None: all
    tuples: int = 3  # items a sentence
    agree: Agree = "none"  # the column all items of a sentence share
    exclude_views: tuple[int, ...] = ()  # views this entry never shows (held-out latents)

    def __post_init__(self) -> None:
        check_channels("annotations.channels", self.channels, 2)
        at_least("annotations.tuples", self.tuples, 1)
        if not 2 <= self.each <= len(self.channels):
            raise UserError(f"annotations.choose is {self.choose}; use 2 to {len(self.channels)}, as many as channels")

    @property
    def each(self) -> int:
        """Pictures of each tuple."""
        return len(self.channels) if self.choose is None else self.choose

    @property
    def pictures(self) -> int:
        return self.tuples * self.each

    @property
    def units(self) -> int:
        return self.tuples

    def roles(self) -> "Int8[np.ndarray, 'p']":
        return np.tile(first_is_input(self.each), self.tuples)

    def conditions(self, columns: Columns) -> list[Condition]:
        return [stills(columns), *shown(columns, self.channels, self.exclude_views)]

    def compose(
        self, items: "Int64[np.ndarray, 's m']", keys: "UInt64[np.ndarray, 's']", catalogue: Catalogue
    ) -> Pictures:
        chosen = ordered_choice(keys, 0, len(self.channels), self.each)  # s c
        return arrange(items, bits(catalogue.channels, self.channels)[chosen])
