"""pairs: input, answer, input, answer, ...: the same two channels of several items (LVM's images with annotations).

With `agree: view` all items of a sentence are in the same view, so they share what the view stands for (a palette, a
line colour, a strength): the earlier pairs tell what the last answer needs and its input lacks.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lvm.runtime import UserError
from lvm.sentences.base import ANSWER, INPUT, Agree, Columns, Pictures, channel_bit, not_in_views, owns

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Int8, UInt64


@dataclass(frozen=True)
class Pairs:
    input: str  # channel shown first in each pair
    output: str  # channel that answers it
    agree: Agree = "none"  # the column all items of a sentence share
    pictures: int = 16  # pictures a sentence, two a pair
    exclude_views: tuple[int, ...] = ()  # views this entry never shows (held-out latents)

    def __post_init__(self) -> None:
        if self.pictures < 2 or self.pictures % 2:
            raise UserError(f"pairs need an even number of pictures, not {self.pictures}; use {self.pictures + 1}")

    @property
    def units(self) -> int:
        return self.pictures // 2

    def roles(self) -> "Int8[np.ndarray, 'p']":
        return np.tile(np.array([INPUT, ANSWER], np.int8), self.units)

    def conditions(self, columns: Columns) -> "list[tuple[str, Bool[np.ndarray, 'items']]]":
        # An item must own one of the two channels: a view that only borrows both would repeat its view 0.
        return [
            ("excluded view", not_in_views(columns, self.exclude_views)),
            (
                f"neither {self.input} nor {self.output} of their own",
                owns(columns, self.input) | owns(columns, self.output),
            ),
            (f"no {self.input}", np.asarray(columns.has(self.input))),
            (f"no {self.output}", np.asarray(columns.has(self.output))),
            ("clips", np.asarray(columns.num_pictures) == 1),
        ]

    def compose(self, items: "Int[np.ndarray, 's m']", keys: "UInt64[np.ndarray, 's']", columns: Columns) -> Pictures:
        item = np.repeat(items, 2, axis=1)  # s m -> s p
        pair = np.array([channel_bit(columns, self.input), channel_bit(columns, self.output)], items.dtype)
        channel = np.broadcast_to(np.tile(pair, self.units), item.shape)
        return Pictures(item, channel, np.zeros_like(item))
