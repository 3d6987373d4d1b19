"""The kinds of picture files that turn up in real folders, read through a source as training and evaluation do."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lvm.pictures.decode import PictureError, decode
from lvm.sources import BrokenItem, open_source
from tokenizer.evaluate import PictureStream

GREEN = (10, 200, 40)


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def png(width, height, depth=8, colour_type=2, rows=b""):
    """A PNG by hand, for what PIL cannot write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def palette_with_a_transparent_entry():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([255, 0, 0, *GREEN])
    image.paste(0, (0, 0, 4, 8))
    return encoded(image, transparency=0)


def deep(*channels):
    """Eight rows of eight 16-bit pixels."""
    return (b"\0" + struct.pack(f">{len(channels)}H", *channels) * 8) * 8


KINDS = {
    "palette.png": palette_with_a_transparent_entry(),
    "deep-rgb.png": png(8, 8, 16, 2, deep(*(257 * value for value in GREEN))),
    "deep-alpha.png": png(8, 8, 16, 6, deep(*(257 * value for value in GREEN), 65535)),
    "alpha.webp": encoded(Image.new("RGBA", (8, 8), (*GREEN, 255)), "WEBP", lossless=True),
    "layers.tif": encoded(Image.new("RGBA", (8, 8), (*GREEN, 255)), "TIFF"),
    "plain.bmp": encoded(Image.new("RGB", (8, 8), GREEN), "BMP"),
    "cmyk.tif": encoded(Image.new("RGB", (8, 8), GREEN).convert("CMYK"), "TIFF"),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_shows_its_colour(tmp_path, name):
    (tmp_path / name).write_bytes(KINDS[name])
    (picture,) = PictureStream(str(tmp_path), 8, 9)
    assert picture.pixels.shape == (8, 8, 3) and picture.pixels.dtype == np.uint8
    assert np.abs(picture.pixels[4, 6].astype(int) - GREEN).max() <= 3
    if name == "palette.png":
        assert (picture.pixels[4, 0] > 250).all()  # transparent: the white behind it


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_gray_is_scaled_not_cut_off_in_either_byte_order(dtype, format):
    if format == "PNG" and dtype == ">u2":
        pytest.skip("PNG has one byte order")
    values = (np.arange(64).reshape(8, 8) * 1000).astype(dtype)
    picture = decode(encoded(Image.fromarray(values), format), 8)
    assert np.array_equal(picture[..., 0], np.rint(values / 257).astype(np.uint8))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_exif_orientations_show_the_same_picture(orientation, format):
    upright = Image.new("RGB", (32, 16), (0, 0, 255))
    upright.paste((255, 0, 0), (0, 0, 16, 8))  # the top left quarter is red, the top right one green
    upright.paste((0, 255, 0), (16, 0, 32, 8))
    turns = Image.Transpose
    undo = {
        2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM, 5: turns.TRANSPOSE,
        6: turns.ROTATE_90, 7: turns.TRANSVERSE, 8: turns.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
    picture = decode(encoded(stored, format, exif=exif, **options), 16).astype(int)
    for (y, x), colour in (((3, 3), (255, 0, 0)), ((3, 12), (0, 255, 0)), ((12, 8), (0, 0, 255))):
        assert np.abs(picture[y, x] - colour).max() < 60, (y, x)


def test_a_rotated_photo_fits_its_upright_mask_and_not_one_that_lies_as_the_file_does(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (32, 16)).save(tmp_path / "images/a.jpg", exif=exif)
    Image.new("L", (16, 32)).save(tmp_path / "masks/a.png")
    assert "segmentation" in open_source(tmp_path).read(0, 8)[0].channels
    Image.new("L", (32, 16)).save(tmp_path / "masks/a.png")
    with pytest.raises(BrokenItem, match=r"masks/a.png: is 32 x 16, its picture .*images/a.jpg 16 x 32"):
        open_source(tmp_path).read(0, 8)


PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
BROKEN = {
    "nothing.jpg": b"",
    "no-width.png": png(0, 8),
    "no-pixels.png": png(8, 8),
    "no-height.bmp": encoded(PHOTO, "BMP")[:22] + struct.pack("<i", 0) + encoded(PHOTO, "BMP")[26:],
    "float.tif": encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"),
    **{
        f"half-{format}.{format.lower()}": encoded(PHOTO, format)[: len(encoded(PHOTO, format)) // 2]
        for format in ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
    },
}


@pytest.mark.parametrize("name", BROKEN)
def test_truncated_and_empty_files_are_one_line_that_names_them(tmp_path, name):
    (tmp_path / name).write_bytes(BROKEN[name])
    with pytest.raises(PictureError) as caught:
        decode(tmp_path / name, 8)
    assert name in str(caught.value) and "\n" not in str(caught.value) and str(caught.value).count(name) == 1


def test_broken_files_among_good_ones_are_counted_and_named_and_the_good_ones_kept(tmp_path):
    for name, content in {**KINDS, **BROKEN}.items():
        (tmp_path / name).write_bytes(content)
    stream = PictureStream(str(tmp_path), 8, 99)
    assert len(list(stream)) == len(KINDS) and stream.num_unreadable == len(BROKEN)
    assert sorted(line.partition(": ")[0] for line in stream.unreadable) == sorted(str(tmp_path / n) for n in BROKEN)
