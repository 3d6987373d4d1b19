"""What a recipe is: a frozen dataclass of options that admits items and composes sentences from them.

A recipe never reads a token. It sees the numeric columns of a store, says which items it can use, how many units
(items or clips) a sentence takes and what these must agree on, and for given units which picture stands where. A
sentence is BOS, its pictures, EOS; all sentences of one recipe hold the same number of pictures, so their length is
known without reading anything.

Axis letters: s sentences, m units of a sentence, p pictures of a sentence, c channels and f frames of a unit.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Protocol

import numpy as np

from lvm.runtime import UserError
from lvm.runtime.hashing import hash64

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Int8, Int64, UInt64

ROLES = ("input", "answer", "special", "pad")
INPUT, ANSWER, SPECIAL, PAD = range(4)  # the role of a token, in the order of ROLES

Agree = Literal["none", "label", "view", "group"]  # a column that units of one sentence share


class Kinds(Protocol):
    """What kinds of items a whole store has: each pair of channels and number of pictures, once or more."""

    @property
    def channels(self) -> tuple[str, ...]: ...
    @property
    def channel_mask(self) -> "Int[np.ndarray, 'kinds']": ...
    @property
    def num_pictures(self) -> "Int[np.ndarray, 'kinds']": ...


class Columns(Protocol):
    """The numeric columns of a run of neighbouring items of a store, one value an item."""

    @property
    def channels(self) -> tuple[str, ...]: ...
    @property
    def channel_mask(self) -> "Int[np.ndarray, 'items']":
        """Bit c: channel c is in the item itself."""

    @property
    def num_pictures(self) -> "Int[np.ndarray, 'items']": ...
    @property
    def view(self) -> "Int[np.ndarray, 'items']": ...
    @property
    def label(self) -> "Int[np.ndarray, 'items']":
        """-1: none."""

    @property
    def group(self) -> "UInt64[np.ndarray, 'items']": ...
    def has(self, channel: str) -> "Bool[np.ndarray, 'items']":
        """Whether the channel is in the item itself or, with as many pictures, in its view 0."""


class Catalogue(Protocol):
    """What composing needs to know of a store."""

    @property
    def channels(self) -> tuple[str, ...]: ...
    def num_pictures_of(self, items: "Int[np.ndarray, '*shape']") -> "Int64[np.ndarray, '*shape']": ...


class Condition(NamedTuple):
    """What an item must fulfil to be a unit."""

    otherwise: str  # what is said of those that do not
    holds: "Bool[np.ndarray, 'items']"
    lacks: bool = False  # an item that does not lacks a channel: `missing: error` refuses it


@dataclass(frozen=True)
class Pictures:
    """Which picture stands where: item number, channel (bit number in the store) and frame, each [s, p]."""

    item: "Int[np.ndarray, 's p']"
    channel: "Int[np.ndarray, 's p']"
    frame: "Int[np.ndarray, 's p']"


class Recipe(ABC):
    """Base of all recipes, which are frozen dataclasses; `pictures`, `roles`, `conditions` and `compose` are theirs."""

    name: ClassVar[str]  # by which a config knows it

    @property
    @abstractmethod
    def pictures(self) -> int:
        """Pictures in each sentence."""

    @property
    def units(self) -> int:
        """m, the units (items or clips) that each sentence takes."""
        return 1

    @property
    def agree(self) -> Agree:
        """The column whose value each `together` units in a row share."""
        return "none"

    @property
    def together(self) -> int:
        """Units in a row that agree; a divisor of `units`."""
        return self.units

    @abstractmethod
    def roles(self) -> "Int8[np.ndarray, 'p']":
        """The role of each picture's tokens: INPUT or ANSWER."""

    def check(self, kinds: Kinds) -> None:  # noqa: B027, most have none
        """Raise `UserError` for options that no item of the store allows."""

    @abstractmethod
    def conditions(self, columns: Columns) -> list[Condition]:
        """What an item must fulfil to be a unit, in the order in which it is counted."""

    @abstractmethod
    def compose(
        self, items: "Int64[np.ndarray, 's m']", keys: "UInt64[np.ndarray, 's']", catalogue: Catalogue
    ) -> Pictures:
        """The pictures of sentences whose units are `items`; `keys` is the noise of each draw."""


def channel_bit(known: tuple[str, ...], channel: str) -> int:
    if channel not in known:
        raise UserError(f"unknown channel {channel!r}; this store holds {', '.join(known)}")
    return known.index(channel)


def owns(columns: Columns | Kinds, channel: str) -> "Bool[np.ndarray, 'items']":
    """Whether the channel is in the item itself, not only in its view 0."""
    mask = np.asarray(columns.channel_mask)
    return (mask >> mask.dtype.type(channel_bit(columns.channels, channel))) & mask.dtype.type(1) == 1


def not_in_views(columns: Columns, views: tuple[int, ...]) -> Condition:
    if not views:  # most often: then a column need not be read, perhaps from far away
        return Condition("excluded view", np.ones(len(np.asarray(columns.channel_mask)), bool))
    return Condition("excluded view", ~np.isin(np.asarray(columns.view), np.asarray(views, dtype=np.int64)))


def owned(columns: Columns, channel: str) -> Condition:
    return Condition(f"no {channel} of their own", owns(columns, channel))


def present(columns: Columns, channel: str) -> Condition:
    """The channel is in the item or in its view 0."""
    channel_bit(columns.channels, channel)
    return Condition(f"no {channel}", np.asarray(columns.has(channel)), lacks=True)


def stills(columns: Columns) -> Condition:
    return Condition("clips", np.asarray(columns.num_pictures) == 1)


def clips(columns: Columns, least: int, most: int | None = None) -> Condition:
    """Items of at least so many pictures, and at most."""
    count = np.asarray(columns.num_pictures)
    if most is None:
        return Condition(f"fewer than {least} frames", count >= least)
    wanted = f"{least}" if least == most else f"{least} to {most}"
    return Condition(f"not of {wanted} pictures", (count >= least) & (count <= most))


def shown(columns: Columns, channels: tuple[str, ...], exclude_views: tuple[int, ...] = ()) -> list[Condition]:
    """The item has all `channels`, one at least of its own: a view that only borrows them would repeat its view 0."""
    own = np.logical_or.reduce([owns(columns, channel) for channel in channels])
    match channels:
        case (only,):
            return [not_in_views(columns, exclude_views), owned(columns, only)]
        case (first, second):
            neither = f"neither {first} nor {second}"
        case _:
            neither = f"none of {', '.join(channels)}"
    has_all = [present(columns, channel) for channel in channels]
    return [not_in_views(columns, exclude_views), Condition(f"{neither} of their own", own), *has_all]


def at_least(option: str, value: int, least: int) -> None:
    """Raise `UserError` for a number that is too small; `option` is recipe.name."""
    if value < least:
        raise UserError(f"{option} is {value}; use {least} or more")


def check_channels(option: str, channels: tuple[str, ...], least: int) -> None:
    if len(channels) < least or len(set(channels)) < len(channels):
        raise UserError(f"{option} is {list(channels)}; name {least} or more, each once")


def first_is_input(pictures: int) -> "Int8[np.ndarray, 'p']":
    """Roles of a series: the first picture is given, each other answers those before it."""
    return np.array([INPUT] + [ANSWER] * (pictures - 1), np.int8)


def bits(known: tuple[str, ...], channels: tuple[str, ...]) -> "Int64[np.ndarray, 'c']":
    return np.array([channel_bit(known, channel) for channel in channels], np.int64)


def arrange(
    items: "Int64[np.ndarray, 's m']",
    channels: "Int64[np.ndarray, '*s c']",
    frames: "Int64[np.ndarray, 's m f'] | None" = None,
    block: "Bool[np.ndarray, 's'] | bool" = False,
) -> Pictures:
    """Unit after unit, each in all its frames and channels: f1 a1 f2 a2 ..., or where `block` f1 f2 ... a1 a2 ...

    Without `frames`: stills. `channels` are bit numbers, the same for all sentences or of each.
    """
    if frames is None and channels.ndim == 1:  # much the most common, and a few times faster so
        item = items.repeat(len(channels), axis=1)  # s m -> s p
        channel = np.empty((*items.shape, len(channels)), np.int64)
        channel[:] = channels
        return Pictures(item, channel.reshape(item.shape), np.zeros(item.shape, np.int64))
    if frames is None:
        frames = np.zeros((*items.shape, 1), np.int64)
    shape = (*frames.shape, channels.shape[-1])  # s m f c

    def laid_out(values: "Int64[np.ndarray, '*m f c']") -> "Int64[np.ndarray, 's p']":
        by_frame = np.broadcast_to(values, shape)
        rows = len(items), -1
        if block is False:
            return by_frame.reshape(rows)
        by_channel = by_frame.swapaxes(2, 3)  # s m f c -> s m c f
        return np.where(np.reshape(block, (-1, 1)), by_channel.reshape(rows), by_frame.reshape(rows))

    of_units = items[:, :, None, None], channels[..., None, None, :], frames[..., None]
    return Pictures(*map(laid_out, of_units))


def unit_keys(keys: "UInt64[np.ndarray, 's']", number: int, units: int) -> "UInt64[np.ndarray, 's m']":
    """Noise for each unit of each draw."""
    return hash64(keys[:, None], number, np.arange(units))


def ordered_choice(
    keys: "UInt64[np.ndarray, 's']", number: int, options: int, choose: int
) -> "Int64[np.ndarray, 's choose']":
    """`choose` different numbers below `options` for each draw, each ordered choice as likely as any other."""
    noise = hash64(keys[:, None], number, np.arange(options))
    return np.argsort(noise, axis=1, kind="stable")[:, :choose]


def flip(keys: "UInt64[np.ndarray, '*s']", number: int) -> "Bool[np.ndarray, '*s']":
    """A coin for each draw; `number` tells the coins of one recipe apart."""
    return hash64(keys, number) % np.uint64(2) == 1


def pick(
    keys: "UInt64[np.ndarray, '*s']", number: int, options: "Int64[np.ndarray, '*s'] | int"
) -> "Int64[np.ndarray, '*s']":
    """A number from 0 to options - 1 for each draw."""
    return (hash64(keys, number) % np.asarray(options).astype(np.uint64)).astype(np.int64)
