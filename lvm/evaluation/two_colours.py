"""Masks as pictures of two colours, read back by the nearer one, and how well two masks agree.

The arithmetic is that of Visual Prompting via Image Inpainting (Bar et al., NeurIPS 2022; amirbar/visual_prompting,
evaluate/segmentation_utils.py), whose protocol LVM's table 1 reports.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lvm.evaluation.annotated import Annotated
from lvm.evaluation.cases import Case
from lvm.evaluation.measures import nearest_colour
from lvm.sources.base import BrokenItem

if TYPE_CHECKING:
    from jaxtyping import Bool, UInt8

    from lvm.evaluation.cases import Picture

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Colours:
    ground: Colour
    figure: Colour

    def draw(self, mask: "Bool[np.ndarray, 'y x']") -> "UInt8[np.ndarray, 'y x 3']":
        return np.array([self.ground, self.figure], np.uint8)[mask.astype(np.int64)]

    def read(self, picture: "UInt8[np.ndarray, 'y x 3']") -> "Bool[np.ndarray, 'y x']":
        """Where the figure's colour is nearer (L2); the figure's where both are as near."""
        figure_first = np.array([self.figure, self.ground], np.uint8)
        return np.asarray(nearest_colour(picture, figure_first) == 0)


# The published code's colours.
PALETTES = {
    "black_white": Colours(ground=(0, 0, 0), figure=(255, 255, 255)),
    "purple_yellow": Colours(ground=(0x44, 0x01, 0x54), figure=(0xFD, 0xE7, 0x25)),
}
BLACK_WHITE = PALETTES["black_white"]


def overlap(found: "Bool[np.ndarray, 'y x']", true: "Bool[np.ndarray, 'y x']") -> tuple[int, int]:
    """Pixels of the intersection and of the union."""
    return int((found & true).sum()), int((found | true).sum())


def mask_scores(found: "Bool[np.ndarray, 'y x']", true: "Bool[np.ndarray, 'y x']") -> dict[str, float]:
    """`iou` of the figure (NaN where neither has one); `colour_blind_iou`, the better of the mask and its inverse;
    `accuracy`, the share of equal pixels; and the sums that class mIoU is made of."""
    intersection, union = overlap(found, true)
    inverse, inverse_union = overlap(~found, true)
    iou = intersection / union if union else float("nan")
    blind = max(iou, inverse / inverse_union) if union and inverse_union else iou
    return {
        "iou": iou,
        "colour_blind_iou": blind,
        "accuracy": float((found == true).mean()),
        "intersection": float(intersection),
        "union": float(union),
    }


def need_figure(case: Case, colours: Colours) -> Case:
    """Raises `BrokenItem` where the truth is ground alone: no answer could be scored."""
    truth = case.truth[0]
    if not colours.read(truth).any():
        height, width = truth.shape[:2]
        query, _, _ = case.id.partition("#")
        raise BrokenItem(query, f"its truth shows no figure at {width} x {height} pixels: it is all ground")
    return case


class Recoloured:
    """`data` with one channel as a mask of two colours. Whatever is not black in it is the figure; or, where a resize
    has `mixed` the figure with black, what is more than half as bright as its brightest."""

    def __init__(self, data: Annotated, channel: str, colours: Colours, mixed: bool = False):
        self._data, self._channel, self._colours, self._mixed = data, channel, colours, mixed
        self.name, self.channels = data.name, data.channels
        self.ids, self.groups, self.labels = data.ids, data.groups, data.labels

    def __len__(self) -> int:
        return len(self._data)

    def has(self, i: int, channel: str) -> bool:
        return self._data.has(i, channel)

    def may_ask(self, i: int) -> bool:
        return self._data.may_ask(i)

    def views(self, i: int) -> Sequence[int]:
        return self._data.views(i)

    def read(self, i: int, view: int, channels: Collection[str] | None = None) -> "Mapping[str, Picture]":
        found = self._data.read(i, view, channels)
        if self._channel not in found:
            return found
        drawn = found[self._channel]
        bright = drawn.max(-1)
        mask = np.asarray(bright > bright.max() / 2 if self._mixed else bright > 0)
        return {**found, self._channel: self._colours.draw(mask)}

    def fingerprint(self) -> str:
        return f"{self._data.fingerprint()} {self._channel} {self._colours} {self._mixed}"
