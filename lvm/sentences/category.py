"""category: several pictures of one class in a row, then as many of the next (LVM's ImageNet category sentences).

`classes: 4, each: 4` is what `tokenize_catogory_images_muse.py` writes (images_per_shot pictures from each of n_shots
class folders), `classes: 16, each: 1` and `classes: 8, each: 2` its files of one and two a shot, and
`classes: 1, each: 16` the paper's sentence of one class. With more channels each picture is followed by its annotations
(the files i1k_category_depth and the like). Classes are drawn anew for each run: two runs of a sentence may be of one.

The first picture of a class is an input, and all others of its run answer it.
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
class Category(Recipe):
    name: ClassVar[str] = "category"
    classes: int = 4  # runs a sentence, each of one class (label)
    each: int = 4  # items in a row of each class
    channels: tuple[str, ...] = ("image",)  # of each item, in this order

    def __post_init__(self) -> None:
        at_least("category.classes", self.classes, 1)
        at_least("category.each", self.each, 1)
        check_channels("category.channels", self.channels, 1)

    @property
    def pictures(self) -> int:
        return self.units * len(self.channels)

    @property
    def units(self) -> int:
        return self.classes * self.each

    @property
    def agree(self) -> Agree:
        return "label"

    @property
    def together(self) -> int:
        return self.each

    def roles(self) -> "Int8[np.ndarray, 'p']":
        return np.tile(first_is_input(self.each * len(self.channels)), self.classes)

    def conditions(self, columns: Columns) -> list[Condition]:
        return [stills(columns), *shown(columns, self.channels)]

    def compose(
        self, items: "Int64[np.ndarray, 's m']", keys: "UInt64[np.ndarray, 's']", catalogue: Catalogue
    ) -> Pictures:
        return arrange(items, bits(catalogue.channels, self.channels))
