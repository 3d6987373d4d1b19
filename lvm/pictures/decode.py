"""Picture files to uint8 arrays, safely: refused by header before a pixel is decoded, one line for whatever is broken.

Photos are squashed to a square with bicubic filtering, as the reference does, or a part of them is (`geometry.py`).
Label maps are resized by nearest neighbour, line drawings by the maximum over each cell, so that thin lines stay.
"""

import contextlib
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from lvm.pictures.geometry import Geometry, Resize, geometries
from lvm.runtime import UserError

if TYPE_CHECKING:
    from jaxtyping import Int64, UInt8

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
# PIL knows formats that run an interpreter (EPS) or unpack without bound; these do neither.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 2**26

_LABEL_MODES = ("1", "L", "P", "I;16", "I;16B", "I;16L", "I")
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I")


class PictureError(UserError):
    """A picture file that cannot be used: `file`, and `reason` in a few words."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file, self.reason = file, reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return PictureError, (self.file, self.reason)


def decode(
    file: str | Path | bytes, size: int, resize: Resize = "squash", max_pixels: int = MAX_PIXELS
) -> "UInt8[np.ndarray, 'size size 3']":
    """A photo as RGB: EXIF rotation applied, alpha over white, gray, palette, CMYK and 16-bit converted.

    `file` is a path or the file's bytes. Raises `PictureError`.
    """
    image = load(file, max_pixels)
    return shrink(image, size, geometries(*image.size, resize)[0], _name(file))


def decode_labels(
    file: str | Path | bytes, size: int, resize: Resize = "squash", max_pixels: int = MAX_PIXELS
) -> "Int64[np.ndarray, 'size size']":
    """Class ids of a label map with one channel or a palette; a mask of 0 and 255 alone becomes 0 and 1."""
    image = load(file, max_pixels)
    return shrink_labels(image, size, geometries(*image.size, resize)[0], _name(file))


def load(file: str | Path | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The decoded file, upright, in its own mode. Raises `PictureError` for anything but a whole, sane picture."""
    name = _name(file)
    try:
        if not isinstance(file, bytes) and not Path(file).is_file():  # a pipe or a device would be waited for
            raise PictureError(name, "is no file" if Path(file).exists() else "does not exist")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's own bomb warning: the header is judged here
            image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS)
            width, height = image.size
            if width * height > max_pixels:
                raise PictureError(name, f"is {width} x {height} pixels; at most {max_pixels:,} are decoded")
            image.load()
            return _upright(image)
    except PictureError:
        raise
    except Exception as error:  # damaged files raise a dozen types from PIL's parsers, MemoryError among them
        raise PictureError(name, _reason(error)) from None


def _name(file: str | Path | bytes) -> str:
    return "picture" if isinstance(file, bytes) else str(file)


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "is not a picture, or is damaged at its start"
    if isinstance(error, Image.DecompressionBombError):
        return "has more pixels than are decoded"
    text = " ".join(str(error).split()) or type(error).__name__
    return f"cannot be decoded ({text})"


def _upright(image: Image.Image) -> Image.Image:
    with contextlib.suppress(Exception):  # a damaged EXIF block does not spoil the pixels
        ImageOps.exif_transpose(image, in_place=True)  # else it copies what needs no turning
    return image


def to_rgb(image: Image.Image, name: str = "picture") -> Image.Image:
    """Any mode as 8-bit RGB; transparency over white, 16-bit gray scaled by 1/257. `name` is for `PictureError`."""
    if image.mode == "RGB":
        return image
    if image.mode in DEEP_MODES:
        gray = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(np.rint(gray / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise PictureError(name, "holds floating-point values, not a picture")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def shrink(
    image: Image.Image, size: int, geometry: Geometry, name: str = "picture"
) -> "UInt8[np.ndarray, 'size size 3']":
    part = geometry.cut(to_rgb(image, name))
    return geometry.turn(np.asarray(part.resize((size, size), Image.Resampling.BICUBIC)))


def shrink_colours(
    image: Image.Image, size: int, geometry: Geometry, name: str = "picture"
) -> "UInt8[np.ndarray, 'size size 3']":
    """Of a picture whose colours mean something: the nearest pixel, never a mixture."""
    part = geometry.cut(to_rgb(image, name))
    return geometry.turn(np.asarray(part.resize((size, size), Image.Resampling.NEAREST)))


def shrink_labels(
    image: Image.Image, size: int, geometry: Geometry, name: str = "label map"
) -> "Int64[np.ndarray, 'size size']":
    if image.mode not in _LABEL_MODES:
        raise PictureError(name, f"has mode {image.mode}; a label map has one channel or a palette")
    # Asked of the whole map: a crop may hold 255 ("ignore") and background alone.
    binary = image.mode == "1" or set(np.unique(np.asarray(image)).tolist()) <= {0, 255}
    part = geometry.cut(image).resize((size, size), Image.Resampling.NEAREST)
    labels = geometry.turn(np.asarray(part)).astype(np.int64)
    return (labels != 0).astype(np.int64) if binary else labels


def shrink_lines(
    image: Image.Image, size: int, geometry: Geometry, name: str = "line drawing"
) -> "UInt8[np.ndarray, 'size size 3']":
    """Bright lines on black: each pixel is the maximum over the cell it covers, where averaging would fade them."""
    lines = np.asarray(geometry.cut(to_rgb(image, name)))
    rows, columns = (np.arange(size) * side // size for side in lines.shape[:2])
    return geometry.turn(np.maximum.reduceat(np.maximum.reduceat(lines, rows, axis=0), columns, axis=1))
