"""Decoding: every mode of picture becomes the RGB one would draw, every broken file one line."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lvm.pictures.decode import PictureError, decode, decode_labels, load, shrink_lines
from lvm.pictures.geometry import Geometry

RNG = np.random.default_rng(0)
PHOTO = Image.fromarray(RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8))


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def flat(mode, value, **info):
    image = Image.new(mode, (8, 8), value)
    image.info.update(info)
    return image


def test_squash_is_bicubic_on_the_whole_picture_and_crop_takes_the_central_square(tmp_path):
    PHOTO.save(tmp_path / "a.png")
    squashed = np.asarray(PHOTO.resize((12, 12), Image.Resampling.BICUBIC))
    assert np.array_equal(decode(tmp_path / "a.png", 12), squashed)
    centre = PHOTO.crop((5, 0, 25, 20)).resize((12, 12), Image.Resampling.BICUBIC)
    assert np.array_equal(decode(tmp_path / "a.png", 12, "crop"), np.asarray(centre))


@pytest.mark.parametrize(
    "name, file, colour",
    [
        ("gray", encoded(flat("L", 77)), (77, 77, 77)),
        ("bits", encoded(flat("1", 1)), (255, 255, 255)),
        ("16-bit gray", encoded(Image.fromarray(np.full((8, 8), 257 * 40, np.uint16))), (40, 40, 40)),
        ("transparent", encoded(flat("RGBA", (255, 0, 0, 0))), (255, 255, 255)),
        ("half transparent", encoded(flat("RGBA", (255, 0, 0, 128))), (255, 127, 127)),
        ("gray and alpha", encoded(flat("LA", (10, 0))), (255, 255, 255)),
        ("palette", encoded(flat("RGB", (9, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)), (9, 200, 30)),
        ("transparent colour", encoded(flat("L", 5), transparency=5), (255, 255, 255)),
    ],
)
def test_every_mode_becomes_the_rgb_one_sees(name, file, colour):
    assert np.array_equal(decode(file, 4), np.full((4, 4, 3), colour, np.uint8)), name


def test_cmyk_becomes_rgb():
    picture = decode(encoded(flat("CMYK", (0, 255, 255, 0)), "JPEG", quality=95), 4)
    assert picture[..., 0].min() > 200 and picture[..., 1:].max() < 60


def test_exif_rotation_is_applied_and_a_damaged_exif_block_ignored():
    left_red = Image.new("RGB", (16, 8), (0, 0, 255))
    left_red.paste((255, 0, 0), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: left comes up
    turned = load(encoded(left_red, "JPEG", exif=exif, quality=95))
    assert turned.size == (8, 16)
    assert np.asarray(turned)[2, 4, 0] > 200 and np.asarray(turned)[13, 4, 2] > 200
    broken = encoded(left_red, "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert load(broken).size == (16, 8)


def test_a_bomb_is_refused_by_its_header(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    with pytest.raises(PictureError, match=r"bomb.png: (is 50000 x 50000 pixels|has more pixels)"):
        decode(path, 16)
    with pytest.raises(PictureError, match=r"is 30 x 20 pixels; at most 599"):
        decode(encoded(PHOTO), 16, max_pixels=599)


def test_missing_truncated_and_foreign_files_are_named(tmp_path):
    with pytest.raises(PictureError, match=r"none.png: does not exist"):
        decode(tmp_path / "none.png", 8)
    for name, data in {
        "short.jpg": encoded(PHOTO, "JPEG")[:-100],
        "short.png": encoded(PHOTO)[:-100],
        "text.png": b"hello",
        "empty.png": b"",
        "page.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(PictureError) as caught:
            decode(tmp_path / name, 8)
        assert name in str(caught.value) and "\n" not in str(caught.value)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "BMP", "TIFF"]), st.data())
def test_damaged_bytes_give_a_picture_or_one_line_never_another_error(format, data):
    content = bytearray(encoded(PHOTO, format))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    try:
        assert decode(bytes(content), 8).shape == (8, 8, 3)
    except PictureError as error:
        assert "\n" not in str(error)


def test_label_maps_keep_their_ids_and_binary_masks_become_0_and_1():
    labels = RNG.integers(0, 12, (16, 16), dtype=np.uint8)
    assert np.array_equal(decode_labels(encoded(Image.fromarray(labels)), 16), labels)
    deep = labels.astype(np.uint16) * 300
    assert np.array_equal(decode_labels(encoded(Image.fromarray(deep)), 16), deep)
    palette = Image.fromarray(labels).convert("P")
    palette.putpalette(RNG.integers(0, 256, 768, dtype=np.uint8).tolist())
    assert np.array_equal(decode_labels(encoded(palette), 16), labels)
    mask = (labels > 5).astype(np.uint8) * 255
    assert np.array_equal(decode_labels(encoded(Image.fromarray(mask)), 16), labels > 5)
    assert set(np.unique(decode_labels(encoded(Image.fromarray(labels)), 7))) <= set(range(12))  # nothing is mixed
    with pytest.raises(PictureError, match="mode RGB; a label map has one channel"):
        decode_labels(encoded(PHOTO), 8)


def test_a_line_of_one_pixel_survives_shrinking():
    lines = np.zeros((256, 384), np.uint8)
    lines[100] = 255
    small = shrink_lines(Image.fromarray(lines), 48, Geometry(0, 0, lines.shape[1], lines.shape[0]))
    assert small.shape == (48, 48, 3) and (small.max((1, 2)) == 255).sum() == 1
    assert shrink_lines(Image.fromarray(lines[:10, :10]), 16, Geometry(0, 0, 10, 10)).shape == (16, 16, 3)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(PictureError, match="is no file"):
        load(tmp_path / "pipe.jpg")
    with pytest.raises(PictureError, match="does not exist"):
        load(tmp_path / "none.jpg")
