"""puzzles: items of nine pictures, the panels of a 3x3 matrix in reading order; eight are given, the ninth answers.

After the paper's probe with Raven's matrices. With `agree: label` all puzzles of a sentence share their label, which
stands for the set of rules they follow. A matrix that is one picture is a still: matrix and solution are `pairs`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from lvm.sentences.base import (
    ANSWER,
    INPUT,
    Catalogue,
    Columns,
    Condition,
    Pictures,
    Recipe,
    arrange,
    at_least,
    bits,
    clips,
    owned,
)

if TYPE_CHECKING:
    from jaxtyping import Int8, Int64, UInt64

PANELS = 9


@dataclass(frozen=True)
class Puzzles(Recipe):
    name: ClassVar[str] = "puzzles"
    puzzles: int = 1  # a sentence, nine pictures each
    agree: Literal["none", "label"] = "none"  # label: the puzzles of a sentence follow the same rules
    channel: str = "image"

    def __post_init__(self) -> None:
        at_least("puzzles.puzzles", self.puzzles, 1)

    @property
    def pictures(self) -> int:
        return PANELS * self.puzzles

    @property
    def units(self) -> int:
        return self.puzzles

    def roles(self) -> "Int8[np.ndarray, 'p']":
        return np.tile(np.array([INPUT] * (PANELS - 1) + [ANSWER], np.int8), self.puzzles)

    def conditions(self, columns: Columns) -> list[Condition]:
        return [owned(columns, self.channel), clips(columns, PANELS, PANELS)]

    def compose(
        self, items: "Int64[np.ndarray, 's m']", keys: "UInt64[np.ndarray, 's']", catalogue: Catalogue
    ) -> Pictures:
        panels = np.broadcast_to(np.arange(PANELS), (*items.shape, PANELS))  # s m f
        return arrange(items, bits(catalogue.channels, (self.channel,)), panels)
