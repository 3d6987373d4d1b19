"""The pictures of an answer, decoded when they are looked at: of a long answer only a few exist at one time."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from einops import rearrange

if TYPE_CHECKING:
    from jaxtyping import Int64, UInt8

PICTURES_AT_ONCE = 16  # through the tokenizer
KEPT = 2**27  # bytes up to which pictures stay once they are decoded


class Decoded:
    """Of the codes of each candidate's n pictures: for each of the n, those of all candidates.

    Where all of them are more than `KEPT` bytes they are decoded again each time that they are gone through.
    """

    def __init__(
        self,
        decode: "Callable[[Int64[np.ndarray, 'n t']], UInt8[np.ndarray, 'n y x 3']]",
        codes: "Int64[np.ndarray, 'candidates n t']",
        kept: int = KEPT,
    ):
        self._decode, self._codes, self._limit = decode, codes, kept
        self._kept: list[np.ndarray] = []

    def __len__(self) -> int:
        return self._codes.shape[1]

    @property
    def num_candidates(self) -> int:
        return len(self._codes)

    def __iter__(self) -> "Iterator[UInt8[np.ndarray, 'candidates y x 3']]":
        if self._kept:
            yield from self._kept
            return
        whole: list[np.ndarray] = []
        together = max(1, PICTURES_AT_ONCE // self.num_candidates)
        for start in range(0, len(self), together):
            codes = self._codes[:, start : start + together]
            pixels = self._decode(rearrange(codes, "c n t -> (n c) t"))
            pictures = rearrange(pixels, "(n c) ... -> n c ...", c=self.num_candidates)
            if pictures[0].nbytes * len(self) <= self._limit:
                whole.extend(pictures)
            yield from pictures
        self._kept = whole
