"""single: one picture a sentence, BOS, picture, EOS (LVM's unlabelled images)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lvm.sentences.base import INPUT, Agree, Columns, Pictures, channel_bit, owns

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Int8, UInt64


@dataclass(frozen=True)
class Single:
    channel: str = "image"  # which channel of an item is shown

    @property
    def pictures(self) -> int:
        return 1

    @property
    def units(self) -> int:
        return 1

    @property
    def agree(self) -> Agree:
        return "none"

    def roles(self) -> "Int8[np.ndarray, 'p']":
        return np.array([INPUT], np.int8)

    def conditions(self, columns: Columns) -> "list[tuple[str, Bool[np.ndarray, 'items']]]":
        return [
            (f"no {self.channel} of their own", owns(columns, self.channel)),
            ("clips", np.asarray(columns.num_pictures) == 1),
        ]

    def compose(self, items: "Int[np.ndarray, 's m']", keys: "UInt64[np.ndarray, 's']", columns: Columns) -> Pictures:
        return Pictures(items, np.full_like(items, channel_bit(columns, self.channel)), np.zeros_like(items))
