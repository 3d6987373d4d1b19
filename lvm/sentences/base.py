"""What a recipe is: a frozen dataclass of options that admits items and composes sentences from them.

A recipe never reads a token. It sees the numeric columns of a store, says which items it can use, how many units
(items or clips) a sentence takes, and for given units which picture stands where. A sentence is BOS, its pictures,
EOS; all sentences of one recipe hold the same number of pictures, so their length is known without reading anything.

Axis letters: s sentences, m units of a sentence, p pictures of a sentence.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from lvm.runtime import UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Int8, UInt64

ROLES = ("input", "answer", "special", "pad")
INPUT, ANSWER, SPECIAL, PAD = range(4)  # the role of a token, in the order of ROLES

Agree = Literal["none", "label", "view", "group"]  # the column that all units of one sentence share


class Columns(Protocol):
    """The numeric columns of a store, one value per item: all that a recipe sees. `TokenStore` is one."""

    @property
    def channels(self) -> tuple[str, ...]: ...
    @property
    def channel_mask(self) -> "Int[np.ndarray, 'items']": ...
    @property
    def num_pictures(self) -> "Int[np.ndarray, 'items']": ...
    @property
    def view(self) -> "Int[np.ndarray, 'items']": ...
    @property
    def label(self) -> "Int[np.ndarray, 'items']": ...
    @property
    def group(self) -> "UInt64[np.ndarray, 'items']": ...
    def has(self, channel: str) -> "Bool[np.ndarray, 'items']": ...


@dataclass(frozen=True)
class Pictures:
    """Which picture stands where: item number, channel (bit number in the store) and frame, each [s, p]."""

    item: "Int[np.ndarray, 's p']"
    channel: "Int[np.ndarray, 's p']"
    frame: "Int[np.ndarray, 's p']"


class Recipe(Protocol):
    @property
    def pictures(self) -> int:
        """Pictures in each sentence."""

    @property
    def units(self) -> int:
        """m, the units (items or clips) that each sentence takes."""

    @property
    def agree(self) -> Agree: ...

    def roles(self) -> "Int8[np.ndarray, 'p']":
        """The role of each picture's tokens: INPUT or ANSWER."""

    def conditions(self, columns: Columns) -> "list[tuple[str, Bool[np.ndarray, 'items']]]":
        """What an item must fulfil to be a unit, in order: (what is said of those that fail, who fulfils it)."""

    def compose(self, items: "Int[np.ndarray, 's m']", keys: "UInt64[np.ndarray, 's']", columns: Columns) -> Pictures:
        """The pictures of sentences whose units are `items`; `keys` is the noise of each draw."""


def channel_bit(columns: Columns, channel: str) -> int:
    if channel not in columns.channels:
        raise UserError(f"unknown channel {channel!r}; this store holds {', '.join(columns.channels)}")
    return columns.channels.index(channel)


def owns(columns: Columns, channel: str) -> "Bool[np.ndarray, 'items']":
    """Whether the channel is in the item itself, not only in its view 0."""
    mask = np.asarray(columns.channel_mask)
    return (mask >> mask.dtype.type(channel_bit(columns, channel))) & mask.dtype.type(1) == 1


def not_in_views(columns: Columns, views: tuple[int, ...]) -> "Bool[np.ndarray, 'items']":
    return ~np.isin(np.asarray(columns.view), np.asarray(views, dtype=np.int64))
