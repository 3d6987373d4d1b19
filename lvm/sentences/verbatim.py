"""verbatim: all pictures of one item in their stored order, for sentences that were made elsewhere (`lvm.interop`).

Items of any other number of pictures are left out: material of mixed length becomes one entry for each length.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lvm.runtime import UserError
from lvm.sentences.base import ANSWER, INPUT, Agree, Columns, Pictures, channel_bit, owns

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Int8, UInt64


@dataclass(frozen=True)
class Verbatim:
    pictures: int = 16  # of each item, no more and no fewer
    channel: str = "image"

    def __post_init__(self) -> None:
        if self.pictures < 1:
            raise UserError(f"verbatim.pictures is {self.pictures}; use 1 or more")

    @property
    def units(self) -> int:
        return 1

    @property
    def agree(self) -> Agree:
        return "none"

    def roles(self) -> "Int8[np.ndarray, 'p']":
        return np.array([INPUT] + [ANSWER] * (self.pictures - 1), np.int8)

    def conditions(self, columns: Columns) -> "list[tuple[str, Bool[np.ndarray, 'items']]]":
        return [
            (f"no {self.channel} of their own", owns(columns, self.channel)),
            (f"not of {self.pictures} pictures", np.asarray(columns.num_pictures) == self.pictures),
        ]

    def compose(self, items: "Int[np.ndarray, 's m']", keys: "UInt64[np.ndarray, 's']", columns: Columns) -> Pictures:
        item = np.repeat(items, self.pictures, axis=1)  # s 1 -> s p
        frame = np.broadcast_to(np.arange(self.pictures), item.shape)
        return Pictures(item, np.full_like(item, channel_bit(columns, self.channel)), frame)
