"""Which frames of a clip, or views of an object, a sentence shows: some at an even stride, from a start drawn anew.

As the reference does (`randomly_subsample_frame_indices`), the stride is shrunk to (N - 1) // (frames - 1) for a clip
of N frames that is too short for it, and each start that stays inside the clip is equally likely. A turntable that
comes round again (`around`) can start anywhere and goes on from its last view to its first; none is shown twice.
"""

from typing import TYPE_CHECKING

import numpy as np

from lvm.runtime import UserError
from lvm.sentences.base import Kinds, owns, pick

if TYPE_CHECKING:
    from jaxtyping import Int64, UInt64


def drawn_frames(
    strides: tuple[int, ...],
    frames: int,
    keys: "UInt64[np.ndarray, '*s']",
    length: "Int64[np.ndarray, '*s']",
    around: bool = False,
) -> "Int64[np.ndarray, '*s f']":
    """`frames` frame numbers in clips of `length` pictures: a stride of `strides` and a start, by noise 0 and 1."""
    span = frames - 1
    drawn = np.asarray(strides, np.int64)[pick(keys, 0, len(strides))]
    stride = np.minimum(drawn, (length - 1) // span)
    start = pick(keys, 1, length if around else length - span * stride)
    frame = start[..., None] + stride[..., None] * np.arange(frames)
    return frame % length[..., None] if around else frame


def check_strides(option: str, strides: tuple[int, ...]) -> None:
    if not strides or min(strides) < 1:
        raise UserError(f"{option} is {list(strides)}; use numbers of 1 or more")


def refuse_long_strides(strides: tuple[int, ...], frames: int, kinds: Kinds, channels: tuple[str, ...]) -> None:
    """Raise `UserError` for a stride that every clip with these channels would have to shrink.

    The channels of a clip may lie in different views of it, which hold the same number of pictures.
    """
    count = np.asarray(kinds.num_pictures)
    longest = min(int(count[owns(kinds, channel)].max(initial=0)) for channel in channels)
    for stride in strides:
        needed = (frames - 1) * stride + 1
        if frames <= longest < needed:
            raise UserError(
                f"stride {stride} needs clips of {needed} pictures for {frames} frames, the longest "
                f"holds {longest}; use strides up to {(longest - 1) // (frames - 1)}"
            )
