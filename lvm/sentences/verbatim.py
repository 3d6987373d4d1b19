"""verbatim: all pictures of one item in their stored order, for sentences that were made elsewhere (`lvm.interop`).

Items of any other number of pictures are left out: material of mixed length becomes one entry for each length.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lvm.sentences.base import (
    Catalogue,
    Columns,
    Condition,
    Pictures,
    Recipe,
    arrange,
    at_least,
    bits,
    clips,
    first_is_input,
    owned,
)

if TYPE_CHECKING:
    from jaxtyping import Int8, Int64, UInt64


@dataclass(frozen=True)
class Verbatim(Recipe):
    name: ClassVar[str] = "verbatim"
    pictures: int = 16  # of each item, no more and no fewer
    channel: str = "image"

    def __post_init__(self) -> None:
        at_least("verbatim.pictures", self.pictures, 1)

    def roles(self) -> "Int8[np.ndarray, 'p']":
        return first_is_input(self.pictures)

    def conditions(self, columns: Columns) -> list[Condition]:
        return [owned(columns, self.channel), clips(columns, self.pictures, self.pictures)]

    def compose(
        self, items: "Int64[np.ndarray, 's m']", keys: "UInt64[np.ndarray, 's']", catalogue: Catalogue
    ) -> Pictures:
        frames = np.broadcast_to(np.arange(self.pictures), (*items.shape, self.pictures))  # s m f
        return arrange(items, bits(catalogue.channels, (self.channel,)), frames)
