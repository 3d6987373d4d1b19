"""Instance maps as a colour for each instance, and back: which pixels belong together, whatever the instances' numbers.

Instances that touch stay apart, and one in several parts stays one, since no two of a picture share a colour.
"""

from typing import TYPE_CHECKING

import numpy as np

from lvm.pictures import segmentation

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Int64, UInt8


def draw(
    labels: "Int[np.ndarray, 'y x']", palette: "UInt8[np.ndarray, 'k 3']" = segmentation.PALETTE
) -> "UInt8[np.ndarray, 'y x 3']":
    """Each instance (a number other than 0) in a colour of `palette[1:]`, the largest in the first, and 0 in
    `palette[0]`. The first colours of the default palette are the farthest apart.

    Raises ValueError for more instances than colours.
    """
    numbers = by_size(labels)
    if numbers.max(initial=0) >= len(palette):
        raise ValueError(f"{numbers.max()} instances in a picture, and {len(palette) - 1} colours for them")
    return segmentation.draw(numbers, palette)


def read(
    picture: "UInt8[np.ndarray, 'y x 3']", palette: "UInt8[np.ndarray, 'k 3']" = segmentation.PALETTE, least: int = 1
) -> "Int64[np.ndarray, 'y x']":
    """`by_size` of the map that was drawn, exactly. A pixel has the nearest colour, so that after a tokenizer it helps
    to give only as many colours as there may be instances, and to drop those of fewer than `least` pixels."""
    return by_size(segmentation.read(picture, palette), least)


def by_size(labels: "Int[np.ndarray, 'y x']", least: int = 1) -> "Int64[np.ndarray, 'y x']":
    """The instances renumbered 1, 2, ... from the largest down; those of fewer than `least` pixels become 0."""
    present, place, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    sizes = np.where((present != 0) & (sizes >= least), sizes, 0)
    number = np.empty(len(present), np.int64)
    number[np.argsort(-sizes, kind="stable")] = np.arange(1, len(present) + 1)
    number[sizes == 0] = 0
    return number[place].reshape(np.shape(labels))


def from_masks(masks: "Bool[np.ndarray, 'n y x']") -> "Int64[np.ndarray, 'y x']":
    """Masks as one map: mask n becomes n + 1, later ones above earlier ones."""
    masks = np.asarray(masks, bool)
    labels = np.zeros(masks.shape[1:], np.int64)
    for number, mask in enumerate(masks, 1):
        labels[mask] = number
    return labels
