"""pairs: input, answer, input, answer, ...: the same two channels of several items (LVM's images with annotations).

With `agree: view` all items of a sentence are in the same view, so they share what the view stands for (a palette, a
line colour, a strength): the earlier pairs tell what the last answer needs and its input lacks.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lvm.runtime import UserError
from lvm.sentences.base import (
    ANSWER,
    INPUT,
    Agree,
    Catalogue,
    Columns,
    Condition,
    Pictures,
    Recipe,
    channel_bit,
    flip,
    not_in_views,
    owns,
    present,
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
            raise UserError(f"pairs need an even number of pictures, not {self.pictures}; use {self.pictures + 1}")

    @property
    def units(self) -> int:
        return self.pictures // 2

    def roles(self) -> "Int8[np.ndarray, 'p']":
        return np.tile(np.array([INPUT, ANSWER], np.int8), self.units)

    def conditions(self, columns: Columns) -> list[Condition]:
        # An item must own one of the two channels: a view that only borrows both would repeat its view 0.
        either = owns(columns, self.input) | owns(columns, self.output)
        return [
            not_in_views(columns, self.exclude_views),
            Condition(f"neither {self.input} nor {self.output} of their own", either),
            present(columns, self.input),
            present(columns, self.output),
            stills(columns),
        ]

    def compose(
        self, items: "Int64[np.ndarray, 's m']", keys: "UInt64[np.ndarray, 's']", catalogue: Catalogue
    ) -> Pictures:
        item = np.repeat(items, 2, axis=1)  # s m -> s p
        pair = np.array([channel_bit(catalogue.channels, c) for c in (self.input, self.output)], items.dtype)
        channel = np.broadcast_to(np.tile(pair, self.units), item.shape)
        if self.either:
            channel = np.where(flip(keys, 0)[:, None], np.tile(pair[::-1], self.units), channel)
        return Pictures(item, channel, np.zeros_like(item))
