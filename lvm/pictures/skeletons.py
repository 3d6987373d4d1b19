"""Poses as skeletons: a dot for each joint, a bar for each limb, on black or over the photo.

Joint k has full saturation and hue k / joints, limb k the hue of k / limbs at 60% of the brightness, as OpenPose draws
them: every part has a colour of its own. `read` and `read_people` are for sharp drawings, `find` for what a tokenizer
has blurred.
"""

import colorsys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from lvm.pictures import pieces, segmentation

if TYPE_CHECKING:
    from jaxtyping import Float, Int64, UInt8

LIMB_BRIGHTNESS = 0.6
EVEN = 1.0  # L2 in RGB: of places as near to a dot's colour as this the middle counts
LEAST_BAR = 0.45  # how clear a bar must be to join two dots: 1 in full view, 0.5 below other bars


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
    fewer than `least` are. Within a pixel of what `draw` drew, where neither another dot nor the
    frame cuts one."""
    parts = _nearest_part(picture, num_joints, num_limbs)
    joints = np.full((num_joints, 2), np.nan)
    for k in range(num_joints):
        ys, xs = np.nonzero(parts == k + 1)
        if len(ys) >= least:
            joints[k] = np.median(xs), np.median(ys)
    return joints


def find(picture: "UInt8[np.ndarray, 'y x 3']", num_joints: int, half: int | None = None) -> "Float[np.ndarray, 'k 2']":
    """The joints (x, y) of one person in a picture that a tokenizer has blurred: where a square of 2 `half` + 1 pixels
    (by default what fits into a dot) is nearest to each dot's colour. Every joint gets a place, also one that was not
    drawn; sharp drawings are for `read`."""
    dots = [find_dots(picture, colour, 1, half) for colour in joint_colours(num_joints)]
    return np.concatenate([np.empty((0, 2)), *dots])


def find_dots(
    picture: "UInt8[np.ndarray, 'y x 3']", colour: Any, number: int, half: int | None = None
) -> "Float[np.ndarray, 'n 2']":
    """`find` for several people: the `number` places (x, y) that are nearest to one dot's colour, each found away from
    those before it, as long as the picture has room."""
    half = max(1, round(0.6 * min(picture.shape[:2]) / 48)) if half is None else half
    side = 2 * half + 1
    distance = np.linalg.norm(picture.astype(np.float64) - np.asarray(colour, np.float64), axis=-1)
    sums = np.pad(np.pad(distance, half, mode="edge").cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    mean = (sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]) / side**2
    points = np.empty((number, 2))
    for k in range(number):
        y, x = np.unravel_index(mean.argmin(), mean.shape)
        top, left = max(0, y - side), max(0, x - side)
        near = mean[top : y + side + 1, left : x + side + 1]
        ys, xs = np.nonzero(near <= near.min() + EVEN)
        points[k] = left + xs.mean(), top + ys.mean()
        near[:] = np.inf
    return points


def read_people(
    picture: "UInt8[np.ndarray, 'y x 3']", num_joints: int, limbs: Sequence[tuple[int, int]], least: int = 3
) -> "list[Float[np.ndarray, 'k 2']]":
    """The joints of each person drawn on black, from left to right; NaN where there is no dot of `least` pixels.

    Dots belong to one person that bars of their limb's colour join, the clearest bar first. Joints are within a pixel
    of what `draw` drew where no other dot touches theirs; people are told apart who do not cover each other's
    bars. A body that missing joints take apart is read as several people.
    """
    parts = _nearest_part(picture, num_joints, len(limbs))
    dots = [piece for piece in pieces.find(np.where(parts <= num_joints, parts, 0)) if piece.size >= least]
    joint = [dot.value - 1 for dot in dots]
    sides = np.array([dot.box for dot in dots]).reshape(-1, 2, 2)
    centres = (sides[:, 0] + sides[:, 1] - 1) / 2
    bars = [
        (_clearness(parts, centres[i], centres[j], 1 + num_joints + number, (a + 1, b + 1)), i, j)
        for number, (a, b) in enumerate(limbs)
        for i in range(len(dots))
        for j in range(len(dots))
        if (joint[i], joint[j]) == (a, b)
    ]
    person = [{joint[i]: i} for i in range(len(dots))]  # of each dot: the dots of its person, by joint
    for clear, i, j in sorted(bars, reverse=True):
        if clear >= LEAST_BAR and not person[i].keys() & person[j].keys():
            person[i].update(person[j])
            for other in person[j].values():
                person[other] = person[i]
    people = []
    for members in {id(members): members for members in person}.values():
        joints = np.full((num_joints, 2), np.nan)
        for k, i in members.items():
            joints[k] = centres[i]
        people.append(joints)
    return sorted(people, key=lambda joints: float(np.nanmean(joints[:, 0])))


def _nearest_part(picture: "UInt8[np.ndarray, 'y x 3']", num_joints: int, num_limbs: int) -> "Int64[np.ndarray, 'y x']":
    """0 is the ground, then joints, then limbs, by the nearest colour."""
    palette = np.concatenate([np.zeros((1, 3), np.uint8), joint_colours(num_joints), limb_colours(num_limbs)])
    return segmentation.read(picture, palette)


def _clearness(parts: "Int64[np.ndarray, 'y x']", start: Any, end: Any, bar: int, dots: tuple[int, int]) -> float:
    """How clear a bar is: of the way between its dots, the mean of the share that is of the part `bar`, and the share
    that is of any part, within a pixel; 1 where the dots touch."""
    steps = np.linspace(0, 1, 2 + int(np.abs(end - start).max()))[:, None]
    columns, rows = np.rint(start + steps * (end - start)).astype(int).T
    between = ~np.isin(parts[rows, columns], dots)
    if not between.any():
        return 1.0
    padded = np.pad(parts, 1)
    near = np.stack([padded[rows[between] + y, columns[between] + x] for y in range(3) for x in range(3)])
    return float((near == bar).any(0).mean() + (near != 0).any(0).mean()) / 2
