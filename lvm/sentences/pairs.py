"""pairs: input, answer, input, answer, ...: the same two channels of several items (LVM's images with annotations).

With `agree: view` all items of a sentence are in the same view, so they share what the view stands for (a palette, a
line colour, a strength): the earlier pairs tell what the last answer needs and its input lacks.
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
    bits,
    first_is_input,
    flip,
    shown,
    stills,
)

if TYPE_CHECKING:
    from jaxtyping import Int8, Int64, UInt64


@dataclass(frozen=True)
class Pairs(Recipe):
    name: ClassVar[str] = "pairs"
    input: str  # channel shown first in each pair
    output: str  # channel that answers it
    agree: Agree = "none"  # the column all items of a sentence share
    pictures: int = 16  # pictures a sentence, two a pair
    either: bool = False  # in half of the sentences `output` asks and `input` answers
    exclude_views: tuple[int, ...] = ()  # views this entry never shows (held-out latents)

    def __post_init__(self) -> None:
        if self.pictures < 2 or self.pictures % 2:
            raise UserError(
                f"pairs need an even number of pictures, not {self.pictures}; use {max(self.pictures + 1, 2)}"
            )

    @property
    def units(self) -> int:
        return self.pictures // 2

    def roles(self) -> "Int8[np.ndarray, 'p']":
        return np.tile(first_is_input(2), self.units)

    def conditions(self, columns: Columns) -> list[Condition]:
        return [stills(columns), *shown(columns, (self.input, self.output), self.exclude_views)]

    def compose(
        self, items: "Int64[np.ndarray, 's m']", keys: "UInt64[np.ndarray, 's']", catalogue: Catalogue
    ) -> Pictures:
        pair = bits(catalogue.channels, (self.input, self.output))
        if self.either:
            pair = np.where(flip(keys, 0)[:, None], pair[::-1], pair)  # s 2
        return arrange(items, pair)
