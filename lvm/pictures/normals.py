"""Surface normals as colours: (n + 1) / 2 to RGB, x right, y up, z to the camera; black where there is no surface."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8


def draw(normals: "Float[np.ndarray, 'y x 3']") -> "UInt8[np.ndarray, 'y x 3']":
    """Unit vectors in the camera's frame; zero vectors (no surface) become black."""
    normals = np.asarray(normals, dtype=np.float32)
    colours = np.rint((normals + 1) * 127.5).astype(np.uint8)
    colours[~normals.any(-1)] = 0
    return colours


def read(picture: "UInt8[np.ndarray, '*n y x 3']") -> "Float[np.ndarray, '*n y x 3']":
    """Unit vectors back, zero where the picture is black; within 0.7 degrees of what was drawn."""
    picture = np.asarray(picture)
    vectors = picture.astype(np.float32) / 127.5 - 1
    vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)
    vectors[~picture.any(-1)] = 0
    return vectors
