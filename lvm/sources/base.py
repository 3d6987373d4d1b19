"""What a source promises: a list of units, each read at once into items whose channels are pictures.

A unit is a picture with its annotations and views, a scene with its latents, or a clip. Everything that follows
(bulk tokenising, tokenizer training, evaluation on folders) knows sources through this file alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from numpy import ndarray


@dataclass(frozen=True)
class Item:
    """Pictures that belong together: the same `num_pictures` frames in each channel.

    `(id, view)` is unique in a source; a channel that view v lacks is read from view 0 of the same id.
    """

    id: str
    group: str  # the original photo, clip or object: held-out decisions are made on it
    view: int
    label: int  # -1: none
    channels: "Mapping[str, UInt8[ndarray, 'n y x 3']]"
    licence: str = ""
    caption: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)  # plain JSON values
    origin: str = ""  # where it came from: a URL, or the path in the source

    @property
    def num_pictures(self) -> int:
        return len(next(iter(self.channels.values())))


def writable(text: str) -> str:
    """Half of a surrogate pair, which JSON can hold and UTF-8 cannot, becomes its escape: \\udce9. Python reads file
    names of another encoding as such halves."""
    return text.encode("utf-8", "backslashreplace").decode()


class BrokenItem(Exception):
    """A unit that cannot be read: which file, and why in a few words. Bulk jobs quarantine it and go on."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(file, reason)  # both arguments, so that it survives pickling
        self.file = writable(str(file))
        self.reason = writable(" ".join(str(reason).split()))

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


MAX_CHANNELS = 63  # of a source, and of a store: bits of a channel mask


class Source(Protocol):
    """A source must survive pickling: bulk jobs read it in several processes."""

    @property
    def name(self) -> str: ...

    @property
    def channels(self) -> tuple[str, ...]:
        """Every channel it may yield; the order gives the bits of the channel mask. At most `MAX_CHANNELS`."""

    def __len__(self) -> int:
        """Number of units."""

    def unit_id(self, i: int) -> str:
        """A name for unit i that stays when other units come or go."""

    def read(self, i: int, size: int) -> list[Item]:
        """The items of unit i, drawn `size` x `size`. Raises `BrokenItem`."""

    def fingerprint(self) -> str:
        """Hash of the list of units and of every option that changes pictures; not of pixels."""
