"""single: one picture a sentence, BOS, picture, EOS (LVM's unlabelled images)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lvm.sentences.base import (
    Catalogue,
    Columns,
    Condition,
    Pictures,
    Recipe,
    arrange,
    bits,
    first_is_input,
    owned,
    stills,
)

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Int8, Int64, UInt64


@dataclass(frozen=True)
class Single(Recipe):
    name: ClassVar[str] = "single"
    channel: str = "image"  # which channel of an item is shown

    @property
    def pictures(self) -> int:
        return 1

    def roles(self) -> "Int8[np.ndarray, 'p']":
        return first_is_input(1)

    def conditions(self, columns: Columns) -> list[Condition]:
        return [stills(columns), owned(columns, self.channel)]

    def compose(
        self, items: "Int64[np.ndarray, 's m']", keys: "UInt64[np.ndarray, 's']", catalogue: Catalogue
    ) -> Pictures:
        return arrange(items, bits(catalogue.channels, (self.channel,)))
