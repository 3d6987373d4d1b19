"""Channels derived from the picture alone: gray, masked, noisy, dark. Their inverses are the restoration tasks."""

from typing import TYPE_CHECKING

import numpy as np

from lvm.runtime import UserError
from lvm.runtime.hashing import hash64, uniform

if TYPE_CHECKING:
    from jaxtyping import UInt8

DERIVED = ("gray", "masked", "noisy", "dark")


def derive(
    name: str, picture: "UInt8[np.ndarray, 'y x 3']", strength: float = 0.5, seed: int = 0
) -> "UInt8[np.ndarray, 'y x 3']":
    """The derived channel `name` of a picture; `strength` in [0, 1] goes from mild to severe, `seed` keys the noise."""
    if name == "gray":
        return gray(picture)
    if name == "masked":
        return masked(picture, strength, seed)
    if name == "noisy":
        return noisy(picture, strength, seed)
    if name == "dark":
        return dark(picture, strength)
    raise UserError(f"no derived channel {name!r}; use one of {', '.join(DERIVED)}")


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
