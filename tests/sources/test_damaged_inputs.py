"""Whatever lies in a folder, a bulk job neither stops nor loses anything: what is given is stored or quarantined.

Inputs are made by a seeded generator: good files of every mode among truncated, flipped, foreign, empty and oversized
ones, JSON with any value replaced or missing. The quick version makes about 120, the slow one a thousand and more.
"""

import copy
import io
import json
import os
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from lvm.runtime import UserError
from lvm.sources import open_source
from lvm.sources.opening import KINDS
from lvm.store import run_job
from lvm.store.job import sidecars
from tokenizer import VQGAN

SIZE = 16  # four codes a picture
SCALES = [pytest.param(1, id="quick"), pytest.param(9, id="thousand", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def smallest():
    return VQGAN.from_pretrained("world-48px-f8-1024")


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Nothing here outlives its test, so that nothing need be on the disk for good."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def account(options, store, vqgan):
    """Tokenise; (ids stored, ids in quarantine), or None where the whole source is refused in one line."""
    try:
        source = open_source(options)
    except UserError as error:
        assert "\n" not in str(error)
        return None
    try:
        run_job(
            source, store, vqgan, size=SIZE, workers=0, shard_size=50, max_broken=1.0, progress=False, compile=False
        )
    except UserError as error:
        assert "nothing of source" in str(error) and "\n" not in str(error)
    written = list(sidecars(store))
    assert [sidecar["units"] for sidecar in written] == [
        [first, min(first + 50, len(source))] for first in range(0, len(source), 50)
    ]
    stored = []
    for sidecar in written:
        lines = (store / f"strings/{sidecar['name']}.jsonl").read_text().split("\n")[:-1]
        stored += [json.loads(line)["id"] for line in lines]
        assert len(lines) == sidecar["ids"]
    quarantine = store / "quarantine.jsonl"
    broken = [json.loads(line) for line in quarantine.read_text().split("\n")[:-1]] if quarantine.exists() else []
    assert all(entry["reason"] and "\n" not in entry["reason"] for entry in broken)
    given = [source.unit_id(i) for i in range(len(source))]
    assert sorted([*stored, *(entry["id"] for entry in broken)]) == sorted(given)
    return set(stored), {entry["id"]: entry["reason"] for entry in broken}


# Files.


def photo(rng, mode="RGB"):
    width, height = (int(side) for side in rng.integers(20, 80, 2))
    smooth = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((width, height))
    if mode == "I;16":
        return Image.fromarray(np.asarray(smooth.convert("L")).astype(np.uint16) * 200)
    if mode in ("RGBA", "LA"):
        smooth.putalpha(Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8)))
    return smooth.convert(mode)


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


GOOD = {
    "RGB.jpg": ("JPEG", "RGB"),
    "CMYK.jpg": ("JPEG", "CMYK"),
    "L.jpg": ("JPEG", "L"),
    "RGB.png": ("PNG", "RGB"),
    "RGBA.png": ("PNG", "RGBA"),
    "LA.png": ("PNG", "LA"),
    "P.png": ("PNG", "P"),
    "deep.png": ("PNG", "I;16"),
    "RGB.webp": ("WEBP", "RGB"),
    "RGBA.webp": ("WEBP", "RGBA"),
    "CMYK.tif": ("TIFF", "CMYK"),
    "RGB.tiff": ("TIFF", "RGB"),
    "RGB.bmp": ("BMP", "RGB"),
}


def bomb(format):
    """A tiny file whose header promises 50,000 x 50,000 pixels."""
    side = 50_000
    if format == "PNG":
        header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        rows = b"IDAT" + zlib.compress(bytes(1000))
        chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, rows, b"IEND")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    whole = bytearray(encoded(Image.new("RGB", (8, 8)), format))
    if format == "JPEG":
        at = whole.index(b"\xff\xc0") + 5
        whole[at : at + 4] = struct.pack(">HH", side, side)
    elif format == "BMP":
        whole[18:26] = struct.pack("<ii", side, side)
    else:  # TIFF: width and height are the first two entries of the directory
        (at,) = struct.unpack("<I", whole[4:8])
        for entry in (at + 2, at + 14):
            whole[entry + 2 : entry + 12] = struct.pack("<HIi", 4, 1, side)
    return bytes(whole)


BAD = {
    "truncated": lambda rng, whole: whole[: rng.integers(1, len(whole) * 9 // 10)],
    "flipped": lambda rng, whole: flipped(rng, whole),
    "magic": lambda rng, whole: rng.bytes(12) + whole[12:],
    "empty": lambda rng, whole: b"",
    "noise": lambda rng, whole: rng.bytes(int(rng.integers(1, 2000))),
    "text": lambda rng, whole: b"<html>404 not found</html>",
    "doubled": lambda rng, whole: whole[: len(whole) // 2] + whole,
    "program": lambda rng, whole: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n" + whole,
    **{f"bomb-{format}": lambda rng, whole, f=format: bomb(f) for format in ("PNG", "JPEG", "BMP", "TIFF")},
}
NEVER_READ = ("empty", "noise", "text", "program", "bomb-PNG", "bomb-JPEG", "bomb-BMP", "bomb-TIFF")


def flipped(rng, whole):
    pixels = np.frombuffer(whole, np.uint8).copy()
    places = rng.integers(0, len(pixels), rng.integers(1, 40))
    pixels[places] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
    return pixels.tobytes()


def good_file(rng):
    name = str(rng.choice(list(GOOD)))
    format, mode = GOOD[name]
    return name, encoded(photo(rng, mode), format)


def bad_file(rng, n):
    name, whole = good_file(rng)
    kind = list(BAD)[n % len(BAD)]
    return f"{kind}-{name}", BAD[kind](rng, whole)


@pytest.mark.parametrize("scale", SCALES)
def test_a_folder_of_good_and_damaged_pictures(scale, tmp_path, smallest):
    rng = np.random.default_rng(scale)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for n in range(60 * scale):
        name, content = bad_file(rng, n) if n % 3 else good_file(rng)
        (pictures / f"{n}-{'good' if n % 3 == 0 else 'bad'}-{name}").write_bytes(content)
    (pictures / "nowhere-empty-bad.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (pictures / "a folder.jpg").mkdir()
    (pictures / "two\nlines-good.png").write_bytes(encoded(photo(rng), "PNG"))
    options = {"kind": "pictures", "path": str(pictures), "derived": ["gray"]}
    stored, broken = account(options, tmp_path / "store", smallest)
    assert len(stored) + len(broken) == 60 * scale + 2
    assert not [id for id, reason in broken.items() if "good" in id and "blank" not in reason]
    assert not [id for id in stored if any(f"bad-{kind}" in id for kind in NEVER_READ)]


def test_a_file_name_that_is_no_utf_8_is_stored_all_the_same(tmp_path, smallest):
    (tmp_path / "pictures").mkdir()
    for name, content in ((b"caf\xe9.png", encoded(photo(np.random.default_rng(0)), "PNG")), (b"th\xe9.png", b"no")):
        with open(os.path.join(os.fsencode(tmp_path / "pictures"), name), "wb") as file:
            file.write(content)
    options = {"kind": "pictures", "path": str(tmp_path / "pictures"), "derived": []}
    stored, broken = account(options, tmp_path / "store", smallest)
    assert (stored, set(broken)) == ({r"caf\udce9"}, {r"th\udce9"})


@pytest.mark.parametrize("scale", SCALES)
def test_damaged_annotations_take_their_picture_with_them(scale, tmp_path, smallest):
    rng = np.random.default_rng(scale)
    for n in range(24 * scale):
        picture = photo(rng)
        for folder in ("images", "masks", "depth", "edges", "instances"):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
            image = picture
            if folder != "images":
                mode = str(rng.choice(["L", "P", "I;16", "RGBA", "1", "CMYK", "LA", "F"], p=[0.3, *[0.1] * 7]))
                image = photo(rng, mode).resize(picture.size if rng.random() < 0.9 else (7, 9))
            content = encoded(image, "TIFF")
            if rng.random() < 0.1:
                content = BAD[str(rng.choice(list(BAD)))](rng, content)
            (tmp_path / "data" / folder / f"{n}.tif").write_bytes(content)
    options = {"kind": "pictures", "path": str(tmp_path / "data"), "derived": []}
    stored, broken = account(options, tmp_path / "store", smallest)
    assert len(stored) + len(broken) == 24 * scale and broken


# JSON.

JUNK = [
    None,
    True,
    -1,
    0,
    2,
    1e308,
    float("nan"),
    float("inf"),
    10**30,
    "",
    "x",
    "\ud800",
    "../x",
    [],
    {},
    [[]],
    [None],
]


def spoil(rng, value):
    """`value` with one part of it replaced, removed or repeated; any part is as likely as another at its depth."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = list(value)[rng.integers(len(value))]
        if rng.random() < 0.2:
            del value[key]
        else:
            value[key] = spoil(rng, value[key])
        return value
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = int(rng.integers(len(value)))
        if rng.random() < 0.2:
            value.append(copy.deepcopy(value[place]))
        else:
            value[place] = spoil(rng, value[place])
        return value
    return copy.deepcopy(JUNK[rng.integers(len(JUNK))])


def as_json(value):
    """With the characters themselves, where a file can hold them."""
    text = json.dumps(value, ensure_ascii=False)
    return text if "\ud800" not in text else json.dumps(value)


def coco_json(count):
    objects = [
        {"category_id": 1, "segmentation": [[2, 2, 18, 2, 18, 18, 2, 18]], "bbox": [2, 2, 16, 16], "iscrowd": 0},
        {"category_id": 2, "segmentation": {"size": [20, 20], "counts": [100, 100, 200]}, "bbox": [5, 0, 5, 20]},
        {"category_id": 2, "segmentation": {"size": [20, 20], "counts": "T3T3X6"}, "bbox": [5, 0, 5, 20], "iscrowd": 1},
    ]
    segments = [{"id": 1, "category_id": 1, "bbox": [0, 0, 20, 10], "iscrowd": 0}]
    images = [
        {"id": n, "file_name": f"{n}.png", "width": 20, "height": 20, "license": 1, "coco_url": "http://c"}
        for n in range(count)
    ]
    categories = [
        {"id": 1, "name": "person", "keypoints": ["a", "b"], "skeleton": [[1, 2]], "isthing": 1},
        {"id": 2, "name": "cat"},
    ]
    numbered = [{"id": 10 * n + k, "image_id": n, **o} for n in range(count) for k, o in enumerate(objects)]
    for entry in numbered[::3]:
        entry["keypoints"] = [3, 3, 2, 9, 9, 1]
    common = {"images": images, "categories": categories, "licenses": [{"id": 1, "name": "CC"}]}
    whole = [{"image_id": n, "file_name": f"{n}.png", "segments_info": segments} for n in range(count)]
    return {
        "annotations": {**common, "annotations": numbered},
        "panoptic": {**common, "annotations": whole},
        "captions": {**common, "annotations": [{"id": n, "image_id": n, "caption": "A cat."} for n in range(count)]},
    }


@pytest.fixture(scope="module")
def small_pictures(tmp_path_factory):
    """images/ and panoptic/ with 0.png ...; one of each is damaged, one has alpha."""
    folder = tmp_path_factory.mktemp("coco")
    rng = np.random.default_rng(0)
    for name in ("images", "panoptic"):
        (folder / name).mkdir()
    for n in range(6):
        picture = encoded(photo(rng, "RGBA" if n == 4 else "RGB").resize((20, 20)), "PNG")
        (folder / f"images/{n}.png").write_bytes(picture[:60] if n == 5 else picture)
        segments = np.zeros((20, 20, 4 if n == 3 else 3), np.uint8)
        segments[:10, :, 0] = 1
        (folder / f"panoptic/{n}.png").write_bytes(encoded(Image.fromarray(segments), "PNG"))
    return folder


@pytest.mark.parametrize("scale", SCALES)
def test_coco_with_any_part_damaged(scale, tmp_path, small_pictures, smallest):
    rng = np.random.default_rng(scale)
    outcomes = {"refused": 0, "stored": 0, "broken": 0}
    for n in range(9 * scale):
        content = coco_json(6)
        roles = [role for role in content if role == "annotations" or rng.random() < 0.3]
        options = {"kind": "coco", "images": str(small_pictures / "images"), "derived": []}
        options["panoptic_folder"] = str(small_pictures / "panoptic")
        for role in roles:
            for _ in range(rng.integers(0, 4)):
                content[role] = spoil(rng, content[role])
            text = json.dumps(content[role])
            if rng.random() < 0.03:
                text = text[: rng.integers(len(text))]
            (tmp_path / f"{n}-{role}.json").write_text(text)
            options[role] = str(tmp_path / f"{n}-{role}.json")
        accounted = account(options, tmp_path / f"store{n}", smallest)
        if accounted is None:
            outcomes["refused"] += 1
        else:
            outcomes["stored"] += len(accounted[0])
            outcomes["broken"] += len(accounted[1])
            listed = [entry for role in roles for entry in content[role]["images"]]
            named = {e["file_name"] for e in listed if isinstance(e, dict) and isinstance(e.get("file_name"), str)}
            assert len(accounted[0]) + len(accounted[1]) >= len(named)
    assert all(outcomes.values()), outcomes


@pytest.mark.parametrize("scale", SCALES)
def test_a_manifest_with_any_part_damaged(scale, tmp_path, small_pictures, smallest):
    rng = np.random.default_rng(scale)
    for n in range(4 * scale):
        lines = [
            {"image": f"images/{k}.png", "objects": [{"bbox": [2, 2, 9, 9]}], "joints": [[1, 2], [5, 6]],
             "mask": f"panoptic/{k}.png",
             "id": f"{k}", "caption": "A cat.", "licence": "CC", "origin": "http://c"} for k in range(6)
        ]  # fmt: skip
        lines[n % 6]["caption"] = "\u2028 a line of its own"
        for k in rng.integers(0, 6, 3):
            lines[k] = spoil(rng, lines[k])
        (tmp_path / f"{n}.jsonl").write_text("".join(as_json(line) + "\n" for line in lines))
        options = {"kind": "manifest", "path": str(tmp_path / f"{n}.jsonl"), "root": str(small_pictures), "derived": []}
        options |= {
            "boxes": "objects.bbox",
            "keypoints": "joints",
            "limbs": [[0, 1]],
            "channels": {"segmentation": "mask"},
        }
        accounted = account(options, tmp_path / f"store{n}", smallest)
        assert accounted is None or len(accounted[0]) + len(accounted[1]) == 6


# Videos and tars.


@pytest.mark.skipif("videos" not in KINDS, reason="videos are not read")
@pytest.mark.parametrize("scale", SCALES)
def test_damaged_videos(scale, tmp_path, smallest):
    pytest.importorskip("av")
    rng = np.random.default_rng(scale)
    folder = tmp_path / "videos"
    folder.mkdir()
    for n in range(8 * scale):
        frames = [photo(rng).resize((32, 32)) for _ in range(rng.integers(1, 20))]
        content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
        suffix = "gif"
        if n % 3:
            content = BAD[list(BAD)[(n - n // 3) % len(BAD)]](rng, content)
            suffix = str(rng.choice(["gif", "mp4", "webm"]))
        (folder / f"{n}-{'bad' if n % 3 else 'good'}.{suffix}").write_bytes(content)
    _, broken = account({"kind": "videos", "path": str(folder)}, tmp_path / "store", smallest)
    assert not [id for id, reason in broken.items() if "good" in id and "blank" not in reason]


def tar_of(rng, count):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for n in range(count):
            name, content = bad_file(rng, n) if rng.random() < 0.3 else good_file(rng)
            for member, data in ((f"{n:04d}.{name.rpartition('.')[2]}", content), (f"{n:04d}.txt", b"A cat.")):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


@pytest.mark.skipif("tars" not in KINDS, reason="tars are not read")
@pytest.mark.parametrize("scale", SCALES)
def test_damaged_tars(scale, tmp_path, smallest):
    rng = np.random.default_rng(scale)
    folder = tmp_path / "tars"
    folder.mkdir()
    for n in range(4 * scale):
        whole = tar_of(rng, 6)
        damage = ["none", "truncated", "empty", "noise", "flipped"][n % 5]
        (folder / f"{n:03d}.tar").write_bytes(whole if damage == "none" else BAD[damage](rng, whole))
    (folder / "none.tar").write_bytes(tar_of(rng, 0))
    stored, broken = account({"kind": "tars", "path": str(folder), "derived": []}, tmp_path / "store", smallest)
    assert stored and broken
