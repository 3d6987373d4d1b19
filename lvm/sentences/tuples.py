"""tuples: several channels of one item in the order given, then the same of the next: image, depth, normal, image, ...

What `pairs` is for two channels, for any number (LVM's images with several annotations, in one fixed order).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

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
    shown,
    stills,
)

if TYPE_CHECKING:
    from jaxtyping import Int8, Int64, UInt64


@dataclass(frozen=True)
class Tuples(Recipe):
    name: ClassVar[str] = "tuples"
    channels: tuple[str, ...]  # of one tuple, in this order; the first is given, the others answer
    tuples: int = 5  # items a sentence
    agree: Agree = "none"  # the column all items of a sentence share
    exclude_views: tuple[int, ...] = ()  # views this entry never shows (held-out latents)

    def __post_init__(self) -> None:
        check_channels("tuples.channels", self.channels, 2)
        at_least("tuples.tuples", self.tuples, 1)

    @property
    def pictures(self) -> int:
        return self.tuples * len(self.channels)

    @property
    def units(self) -> int:
        return self.tuples

    def roles(self) -> "Int8[np.ndarray, 'p']":
        return np.tile(first_is_input(len(self.channels)), self.tuples)

    def conditions(self, columns: Columns) -> list[Condition]:
        return [stills(columns), *shown(columns, self.channels, self.exclude_views)]

    def compose(
        self, items: "Int64[np.ndarray, 's m']", keys: "UInt64[np.ndarray, 's']", catalogue: Catalogue
    ) -> Pictures:
        return arrange(items, bits(catalogue.channels, self.channels))
