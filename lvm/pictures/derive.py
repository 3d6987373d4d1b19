"""Channels derived from the picture alone. Their inverses are the restoration tasks.

    gray      luma                            inpaint  a black hole or black patches, as the paper has them
    masked    one black hole                  rain     bright streaks of one slant
    noisy     additive Gaussian noise         blur     out of focus
    dark      a short exposure (low light)    jpeg     strong compression

Each is a function of (picture, strength, seed) alone; jpeg also of the version of libjpeg.
"""

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lvm.runtime import UserError
from lvm.runtime.hashing import hash64, uniform

if TYPE_CHECKING:
    from jaxtyping import UInt8

DERIVED = ("gray", "masked", "noisy", "dark")  # what sources draw unless told otherwise
DEGRADATIONS = DERIVED + ("inpaint", "rain", "blur", "jpeg")

INPAINT_HOLE = 0.3  # the share of inpainting pictures that have one hole; the others are patches
INPAINT_GRID = 8  # patches a side
RAIN_GRAY, RAIN_OPACITY = 230, 0.6


def derive(
    name: str, picture: "UInt8[np.ndarray, 'y x 3']", strength: float = 0.5, seed: int = 0
) -> "UInt8[np.ndarray, 'y x 3']":
    """The derived channel `name` of a picture; `strength` in [0, 1] goes from mild to severe (gray and inpaint
    have none), `seed` keys what is random. Raises UserError for a name that is not in `DEGRADATIONS`."""
    if name == "gray":
        return gray(picture)
    if name == "masked":
        return masked(picture, strength, seed)
    if name == "noisy":
        return noisy(picture, strength, seed)
    if name == "dark":
        return dark(picture, strength)
    if name == "inpaint":
        return inpaint(picture, seed)
    if name == "rain":
        return rain(picture, strength, seed)
    if name == "blur":
        return blur(picture, strength)
    if name == "jpeg":
        return jpeg(picture, strength)
    raise UserError(f"no derived channel {name!r}; use one of {', '.join(DEGRADATIONS)}")


def gray(picture: "UInt8[np.ndarray, 'y x 3']") -> "UInt8[np.ndarray, 'y x 3']":
    """ITU-R 601 luma, replicated (the reference's 0.2989 R + 0.5870 G + 0.1140 B)."""
    luma = np.rint(picture @ np.array([0.2989, 0.5870, 0.1140], dtype=np.float32)).astype(np.uint8)
    return np.repeat(luma[..., None], 3, axis=-1)


def masked(picture: "UInt8[np.ndarray, 'y x 3']", strength: float, seed: int) -> "UInt8[np.ndarray, 'y x 3']":
    """One black square hole, its side 25% (mild) to 50% (severe) of the picture's."""
    height, width = picture.shape[:2]
    side = round((0.25 + 0.25 * strength) * min(height, width))
    top, left = (uniform(seed, np.arange(2)) * (np.array([height, width]) - side + 1)).astype(int)
    hole = picture.copy()
    hole[top : top + side, left : left + side] = 0
    return hole


def noisy(picture: "UInt8[np.ndarray, 'y x 3']", strength: float, seed: int) -> "UInt8[np.ndarray, 'y x 3']":
    """Additive Gaussian noise, standard deviation 15 (mild) to 55 (severe) gray levels."""
    generator = np.random.Generator(np.random.SFC64(int(hash64(seed, 1))))
    noise = generator.standard_normal(picture.shape, dtype=np.float32) * (15 + 40 * strength)
    return np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8)


def dark(picture: "UInt8[np.ndarray, 'y x 3']", strength: float) -> "UInt8[np.ndarray, 'y x 3']":
    """A short exposure: values times 0.5 (mild) to 0.2 (severe)."""
    return np.rint(picture * np.float32(0.5 - 0.3 * strength)).astype(np.uint8)


def inpaint(picture: "UInt8[np.ndarray, 'y x 3']", seed: int) -> "UInt8[np.ndarray, 'y x 3']":
    """The paper's recipe: with probability 0.3 a black square hole, its side uniform in 10% to 50% of the picture's;
    else of 8 x 8 patches each is kept with probability u, drawn from U(0, 1) for the picture."""
    height, width = picture.shape[:2]
    branch, share, down, right = uniform(seed, 0, np.arange(4)).tolist()
    holed = picture.copy()
    if branch < INPAINT_HOLE:
        side = max(1, round((0.1 + 0.4 * share) * min(height, width)))
        top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
        holed[top : top + side, left : left + side] = 0
        return holed
    kept = uniform(seed, 1, np.arange(INPAINT_GRID**2)).reshape(INPAINT_GRID, INPAINT_GRID) < share
    rows, columns = (np.arange(length) * INPAINT_GRID // length for length in (height, width))
    holed[~kept[rows[:, None], columns]] = 0
    return holed


def rain(picture: "UInt8[np.ndarray, 'y x 3']", strength: float, seed: int) -> "UInt8[np.ndarray, 'y x 3']":
    """Bright streaks of one slant, up to 20 degrees from upright: a 24th (mild) to a 6th (severe) of the picture's side
    long, on about 4% to 18% of its pixels."""
    height, width = picture.shape[:2]
    length = max(2, round((1 / 24 + strength / 8) * min(height, width)))
    drops = np.arange(round((0.04 + 0.16 * strength) * height * width / length))
    slant = np.tan(np.radians(40 * uniform(seed, 0) - 20))
    fall = np.arange(length)
    tops, lefts = uniform(seed, 1, drops) * height, uniform(seed, 2, drops) * width
    rows = (tops[:, None] + fall).astype(int) % height  # what leaves the picture enters on the other side
    columns = np.floor(lefts[:, None] + slant * fall).astype(int) % width
    rainy = picture.copy()
    wet = picture[rows, columns].astype(np.float32)
    rainy[rows, columns] = np.rint(wet + np.float32(RAIN_OPACITY) * (RAIN_GRAY - wet)).astype(np.uint8)
    return rainy


def blur(picture: "UInt8[np.ndarray, 'y x 3']", strength: float) -> "UInt8[np.ndarray, 'y x 3']":
    """Gaussian, its standard deviation 1% (mild) to 3% (severe) of the picture's side; borders repeat."""
    sigma = (0.01 + 0.02 * strength) * min(picture.shape[:2])
    reach = max(1, round(3 * sigma))
    window = np.exp(-np.square(np.arange(-reach, reach + 1)) / (2 * sigma**2))
    window = (window / window.sum()).astype(np.float32)
    blurred = picture.astype(np.float32)
    for axis in (0, 1):
        length, before = picture.shape[axis], blurred
        blurred = np.zeros_like(before)
        for offset, weight in zip(range(-reach, reach + 1), window):
            blurred += weight * before.take(np.clip(np.arange(length) + offset, 0, length - 1), axis)
    return np.clip(np.rint(blurred), 0, 255).astype(np.uint8)


def jpeg(picture: "UInt8[np.ndarray, 'y x 3']", strength: float) -> "UInt8[np.ndarray, 'y x 3']":
    """Compressed as JPEG of quality 30 (mild) to 5 (severe), colours at half the resolution."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=round(30 - 25 * strength), subsampling="4:2:0")
    return np.asarray(Image.open(file))
