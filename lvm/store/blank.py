"""Pictures of one flat colour: placeholders, failed renders, empty frames. The bulk job leaves them out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lvm.sources.base import Item

if TYPE_CHECKING:
    from jaxtyping import UInt8

BLANK_RANGE = 3  # of 255, in each of red, green and blue: what JPEG makes of one flat colour


def is_blank(item: Item, items: Sequence[Item]) -> bool:
    """Whether one of a unit's items shows nothing.

    It is judged by its `image`, or that of view 0 where it has none of its own (an annotation may well be one flat
    colour); an item without any image by all that it has.
    """
    image = next((other.channels["image"] for other in (item, *items) if _shows_image(other, item)), None)
    judged = [image] if image is not None else item.channels.values()
    return all(is_flat(pictures) for pictures in judged)


def _shows_image(other: Item, item: Item) -> bool:
    return "image" in other.channels and (other is item or (other.id == item.id and other.view == 0))


def is_flat(pictures: "UInt8[np.ndarray, 'n y x 3']") -> bool:
    """Whether all pixels of all pictures are within `BLANK_RANGE` of one colour."""
    few = pictures[:1, ::8, ::8]  # tell of most pictures that they are not
    return _range(few) <= BLANK_RANGE and _range(pictures) <= BLANK_RANGE


def _range(pictures: "UInt8[np.ndarray, 'n y x 3']") -> int:
    return int(np.ptp(pictures.reshape(-1, pictures.shape[-1]), axis=0).max())
