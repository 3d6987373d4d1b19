"""Poses as skeletons: a dot for each joint, a bar for each limb, on black or over the photo.

Joint k has full saturation and hue k / joints, limb k the hue of k / limbs at 60% of the brightness, as OpenPose draws
them; every part has a colour of its own, so that the nearest colour still names it after a tokenizer has blurred it.
"""

import colorsys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

LIMB_BRIGHTNESS = 0.6
# The joints of COCO and the limbs between them, as pairs of joint numbers (0 is the nose).
COCO_LIMBS = ((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9),
              (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6))  # fmt: skip


def _hues(number: int, brightness: float) -> "UInt8[np.ndarray, 'k 3']":
    wheel = [colorsys.hsv_to_rgb(k / max(1, number), 1.0, brightness) for k in range(number)]
    return np.rint(255 * np.array(wheel, np.float64).reshape(-1, 3)).astype(np.uint8)


def joint_colours(num_joints: int) -> "UInt8[np.ndarray, 'k 3']":
    return _hues(num_joints, 1.0)


def limb_colours(num_limbs: int) -> "UInt8[np.ndarray, 'k 3']":
    return _hues(num_limbs, LIMB_BRIGHTNESS)


def draw(
    people: "Float[np.ndarray, 'n k 2'] | Sequence[Float[np.ndarray, 'k 2']]",
    limbs: Sequence[tuple[int, int]],
    ground: "UInt8[np.ndarray, 'y x 3']",
    width: int | None = None,
) -> "UInt8[np.ndarray, 'y x 3']":
    """Skeletons over `ground`. `people` holds the joints of each person as (x, y) in pixels, NaN where not known; limbs
    to such joints are left out. `width` is of the bars in pixels, by default a 48th of the shorter side; dots are twice
    as wide."""
    width = max(2, round(min(ground.shape[:2]) / 48)) if width is None else width
    canvas = Image.fromarray(ground)
    pen = ImageDraw.Draw(canvas)
    of_limb = limb_colours(len(limbs))
    for person in people:
        known = np.isfinite(person).all(-1)
        for colour, (a, b) in zip(of_limb, limbs):
            if known[a] and known[b]:
                pen.line([tuple(person[a]), tuple(person[b])], fill=tuple(colour.tolist()), width=width)
    for person in people:  # above all limbs
        for colour, joint in zip(joint_colours(len(person)), person):
            if np.isfinite(joint).all():
                pen.circle(tuple(joint), width, fill=tuple(colour.tolist()))
    return np.asarray(canvas).copy()


def read(
    picture: "UInt8[np.ndarray, 'y x 3']", num_joints: int, num_limbs: int, least: int = 3
) -> "Float[np.ndarray, 'k 2']":
    """The joints (x, y) of one person drawn on black: centres of the pixels nearest to each dot's colour; NaN where
    fewer than `least` are. Within a pixel of what `draw` drew, where no other dot covers it."""
    palette = np.concatenate([np.zeros((1, 3), np.uint8), joint_colours(num_joints), limb_colours(num_limbs)])
    distance = np.square(picture[..., None, :].astype(np.float32) - palette.astype(np.float32)).sum(-1)
    nearest = distance.argmin(-1)
    joints = np.full((num_joints, 2), np.nan)
    for k in range(num_joints):
        ys, xs = np.nonzero(nearest == k + 1)
        if len(ys) >= least:
            joints[k] = np.median(xs), np.median(ys)
    return joints
