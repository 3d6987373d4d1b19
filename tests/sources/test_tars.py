"""Tars of samples: found by their headers, read in place; what lies before damage is used, the damage is counted."""

import io
import json
import pickle
import re
import tarfile

import numpy as np
import pytest
from PIL import Image

from lvm.pictures import segmentation
from lvm.runtime import UserError, build
from lvm.runtime.config_files import load_config
from lvm.sources import BrokenItem, Item, open_source, tar_index, tars
from lvm.sources.tars import TarsConfig, TarsSource, expand_braces, find_tars

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LVM_CACHE", str(folder))
    return folder


def picture(shape=(12, 16, 3), form="PNG", value=None):
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8) if value is None else np.full(shape, value, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def write_tar(path, files, form=tarfile.USTAR_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def open_tars(path, **options):
    return TarsSource(TarsConfig(path=str(path), **{"derived": (), **options}))


def outcomes(source):
    found = {}
    for i in range(len(source)):
        try:
            found[source.unit_id(i)] = source.read(i, 8)[0]
        except BrokenItem as broken:
            assert broken.reason and "\n" not in str(broken)
            found[source.unit_id(i)] = str(broken)
    return found


def test_samples_as_img2dataset_writes_them(tmp_path):
    about = {"url": "http://a/b.jpg", "license": "CC0", "caption": "of the json", "status": "success", "label": 3}
    file = write_tar(
        tmp_path / "00000.tar",
        {
            "000000001.jpg": picture(form="JPEG"),
            "000000001.json": json.dumps(about).encode(),
            "000000001.txt": "a cat, ünder a tree\n".encode(),
            "000000002.jpg": picture(form="JPEG"),
            "000000002.json": json.dumps({**about, "caption": "of the json \ud800"}).encode(),
            "000000003.webp": picture(form="WEBP"),
            "000000003.cls": b"7\n",
        },
    )
    source = open_source(file)
    assert source.name == "00000" and source.channels == ("image", "gray", "masked", "noisy", "dark")
    one, two, three = outcomes(source).values()
    assert (one.id, one.group, one.caption) == ("00000/000000001", "00000/000000001", "a cat, ünder a tree")
    assert (one.origin, one.licence, one.label) == ("http://a/b.jpg", "CC0", 3)
    assert two.caption == "of the json \\ud800"
    assert (three.label, three.origin, three.licence) == (7, "00000/000000003.webp", "")


def test_annotations_and_folders_within_a_tar(tmp_path):
    labels = np.full((12, 16), 5, np.uint8)
    file = io.BytesIO()
    Image.fromarray(labels).save(file, "PNG")
    photo = picture()
    files = {
        "street/07.png": photo,
        "./street/07.seg.png": file.getvalue(),
        "street/07.depth.png": picture((12, 16), value=9),
        "street/07.sketch.png": picture(),
        "street/07.thumb.jpg": b"no picture",
        "street/08.image.png": picture(),
        "street/08.edges.png": picture((12, 16)),
        "street/._08.jpg": b"hidden",
    }
    write_tar(tmp_path / "a.tar", files)
    with pytest.raises(UserError, match=r"\.sketch\.png: not a known annotation .*channels: \{sketch: CHANNEL\}"):
        open_tars(tmp_path)
    source = open_tars(tmp_path, channels={"sketch": "sketch", "thumb": ""})
    assert source.channels == ("image", "depth", "segmentation", "edge", "sketch") and len(source) == 2
    seven, eight = (source.read(i, 16)[0] for i in (0, 1))
    assert list(seven.channels) == ["image", "segmentation", "depth", "sketch"] and list(eight.channels)[1:] == ["edge"]
    assert np.array_equal(seven.channels["segmentation"][0], segmentation.draw(np.full((16, 16), 5)))
    alone = Image.open(io.BytesIO(photo)).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(seven.channels["image"][0], np.asarray(alone))
    paired = write_tar(tmp_path / "b.tar", {"1.jpg": picture(form="JPEG"), "1.png": picture((12, 16), value=1)})
    assert "has two files of channel image, .jpg and .png" in outcomes(open_tars(paired))["b/1"]
    assert open_tars(paired, channels={"png": "segmentation"}).channels == ("image", "segmentation")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_index_says_what_tarfile_says(tmp_path, form):
    names = ["a.jpg", "folder/b.c.png", "ü.jpg"]
    if form != tarfile.USTAR_FORMAT:
        names.append("long/" * 60 + "name.jpg")
    files = {name: RNG.bytes(n * 700) for n, name in enumerate(names)}
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5  # a fraction makes an extended header
            tar.addfile(info, io.BytesIO(data))
            link = tarfile.TarInfo(name + ".link.jpg")
            link.type, link.linkname, link.size = tarfile.SYMTYPE, "/etc/passwd", 0
            tar.addfile(link)
        folder = tarfile.TarInfo("empty.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    with tarfile.open(path) as tar, open(path, "rb") as file:
        expected = [(m.name, m.offset_data, m.size) for m in tar if m.isreg()]
        assert list(tar_index.tar_members(file, path.stat().st_size)) == expected
        assert [name for name, _, _ in expected] == names


def test_tars_by_folder_pattern_braces_and_url(tmp_path, monkeypatch):
    import fsspec

    monkeypatch.chdir(tmp_path)
    samples = {n: {f"{k}.png": picture() for k in range(2)} for n in range(12)}
    for n, files in samples.items():
        write_tar(tmp_path / f"data/part/{n:03d}.tar", files)
    every = [f"data/part/{n:03d}.tar" for n in range(12)]
    assert find_tars("data/part/{000..011}.tar") == find_tars("data/part/*.tar") == find_tars("data") == every
    assert list(expand_braces("{a,b}{8..10}")) == ["a8", "a9", "a10", "b8", "b9", "b10"]
    assert open_source("data").unit_id(2) == "part/001/0" and open_source("data/part/*.tar").name == "part"
    local = open_source("data/part/{000..011}.tar", ["derived=[]"])
    memory = fsspec.filesystem("memory")
    for path in every:
        memory.pipe(f"/bucket/{path}", (tmp_path / path).read_bytes())
    for pattern in ("memory://bucket/data/part/{000..011}.tar", "memory://bucket/data/part/*.tar"):
        remote = open_source({"kind": "tars", "path": pattern, "derived": []})
        assert [remote.unit_id(i) for i in range(24)] == [local.unit_id(i) for i in range(24)]
        assert remote.fingerprint() == local.fingerprint() and remote.name == local.name == "part"
        assert np.array_equal(remote.read(5, 8)[0].channels["image"], local.read(5, 8)[0].channels["image"])
    with pytest.raises(UserError, match=r"memory://bucket/none\.tar does not exist"):
        open_tars("memory://bucket/none.tar")
    monkeypatch.setattr(type(memory), "cat_ranges", lambda *a, **k: (_ for _ in ()).throw(TimeoutError("timed out")))
    with pytest.raises(UserError, match=r"cannot be reached \(timed out\); the same command continues"):
        remote.read(0, 8)


def test_the_index_reads_headers_alone_once(tmp_path, monkeypatch, cache):
    path = write_tar(tmp_path / "a.tar", {f"{n}.png": b"x" * 10_000 for n in range(20)})
    size = path.stat().st_size

    class Counting(io.BytesIO):
        bytes_read = 0

        def read(self, n=-1):
            self.bytes_read += n
            return super().read(n)

    file = Counting(path.read_bytes())
    assert len(list(tar_index.tar_members(file, size))) == 20 and file.bytes_read == 21 * 512
    reads = []
    read_index = tar_index.read_index
    monkeypatch.setattr(tar_index, "read_index", lambda path: reads.append(path) or read_index(path))
    first = open_tars(path)
    again = open_tars(path)
    assert len(reads) == 1 and again.fingerprint() == first.fingerprint() and again.unit_id(19) == "a/19"
    for kept in (cache / "tar-index").iterdir():
        kept.unlink()
    copy = pickle.loads(pickle.dumps(first))  # as in a process on another machine
    assert copy.unit_id(3) == "a/3" and len(reads) == 2
    write_tar(path, {"1.png": picture()})
    with pytest.raises(BrokenItem, match=r"a\.tar: has changed since it was listed"):
        first.read(19, 8)
    assert len(open_tars(path)) == 1
    monkeypatch.setenv("LVM_CACHE", "/proc/nowhere")
    assert open_tars(path).read(0, 8)[0].id == "a/1"


def test_what_lies_before_damage_is_used_and_the_damage_is_one_broken_unit(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", {f"{n}.png": picture((60, 60, 3)) for n in range(4)}).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        third = tar.getmembers()[2]
    cases = {
        "body": (whole[: third.offset_data + 100], 2, r"body.tar: is torn within '2.png'"),
        "header": (whole[: third.offset + 100], 2, "is torn at byte"),
        "boundary": (whole[: third.offset], 2, "is torn at byte"),
        "scribbled": (
            whole[: third.offset + 90] + b"??????" + whole[third.offset + 96 :],
            2,
            "has a damaged header at",
        ),
        "noise": (RNG.bytes(5000), 0, "is not a tar"),
        "nothing": (b"", 0, "is empty"),
        "gzip": (b"\x1f\x8b" + whole, 0, "is compressed; unpack it into a plain tar"),
    }
    for name, (data, _, _) in cases.items():
        (tmp_path / f"{name}.tar").write_bytes(data)
    write_tar(tmp_path / "blank.tar", {})
    found = outcomes(open_tars(str(tmp_path) + "/{whole,blank,absent," + ",".join(cases) + "}.tar"))
    for name, (_, samples, reason) in cases.items():
        mine = {id: result for id, result in found.items() if id.split("/")[0].split(" ")[0] == name}
        assert len(mine) == samples + 1
        damage = mine.pop(f"{name} (damage)")
        assert all(not isinstance(result, str) for result in mine.values())
        assert re.search(reason, damage)
    assert found["absent (damage)"].endswith("absent.tar: does not exist")
    assert len(found) == 4 + 1 + sum(samples + 1 for _, samples, _ in cases.values())


def test_samples_that_cannot_be_used_are_broken(tmp_path):
    files = {
        "good.png": picture(),
        "sound.mp3": b"x",
        "text.txt": b"a cat",
        "torn.png": picture()[:50],
        "cls.png": picture(),
        "cls.cls": b"cat",
        "json.png": picture(),
        "json.json": b"{",
        "list.png": picture(),
        "list.json": b"[1]",
        "huge.png": picture(),
        "huge.txt": b"x" * (2**20 + 1),
        "mask.png": picture(),
        "mask.seg.png": picture((6, 6)),
        "large.png": picture((40, 40, 3)),
    }
    write_tar(tmp_path / "a.tar", files)
    found = outcomes(open_tars(tmp_path / "a.tar", max_pixels=1000))
    place = f"{tmp_path}/a.tar"
    assert not isinstance(found.pop("a/good"), str)
    assert found == {
        "a/sound": f"{place}:sound: holds no picture (nothing of use)",
        "a/text": f"{place}:text: holds no picture (txt)",
        "a/torn": found["a/torn"],
        "a/cls": f"{place}:cls.cls: is no class number",
        "a/json": found["a/json"],
        "a/list": f"{place}:list.json: is no JSON object",
        "a/huge": f"{place}:huge.txt: has 1,048,577 bytes; at most 1,048,576 are read",
        "a/mask": f"{place}:mask.seg.png: is 6 x 6, its picture {place}:mask.png 16 x 12",
        "a/large": f"{place}:large.png: is 40 x 40 pixels; at most 1,000 are decoded",
    }
    assert "torn.png: cannot be decoded" in found["a/torn"] and "json.json: is no JSON" in found["a/json"]


def test_scribbled_tars_never_give_another_error(tmp_path):
    whole = bytearray(
        write_tar(tmp_path / "a.tar", {f"{n}.png": picture() for n in range(6)}, tarfile.PAX_FORMAT).read_bytes()
    )
    for _ in range(25):
        scribbled = bytearray(whole)
        for place in RNG.integers(0, len(whole), 30):
            scribbled[place] = RNG.integers(256)
        (tmp_path / "b.tar").write_bytes(scribbled[: RNG.integers(1, len(whole))])
        found = outcomes(open_tars(str(tmp_path) + "/{a,b}.tar", channels={}))
        assert all(isinstance(found[f"a/{n}"], Item) for n in range(6))  # the whole tar beside it is read all the same


@pytest.mark.parametrize(
    "files, options, message",
    [
        ({}, {"path": "/nowhere/a.tar"}, "/nowhere/a.tar holds no samples; /nowhere/a.tar does not exist"),
        ({}, {"path": "/nowhere/*.tar"}, "there are no tars; name a tar, a folder of them"),
        ({}, {"path": "a{0..999}.tar"}, "names more than 100 tars"),
        ({}, {"path": "nonsense://x/a.tar"}, "nonsense://x/a.tar cannot be opened"),
        ({"a.tar": {}}, {}, "holds no samples; .*a.tar has no files"),
        ({"a.tar": {"1.txt": b"", "1.mp3": b""}}, {}, "holds no pictures, only mp3, txt; read are .jpg"),
    ],
)
def test_what_makes_no_sense_is_one_line(tmp_path, monkeypatch, files, options, message):
    monkeypatch.setattr(tars, "MAX_TARS", 100)
    for name, content in files.items():
        write_tar(tmp_path / name, content)
    with pytest.raises(UserError, match=message) as caught:
        TarsSource(TarsConfig(**{"path": str(tmp_path), **options}))
    assert "\n" not in str(caught.value)


def test_the_commented_yaml_shows_every_option_with_its_default():
    config = load_config("data/source/tars")
    assert config.pop("kind") == "tars"
    assert set(config) == set(TarsConfig.__dataclass_fields__)
    assert build(TarsConfig, config) == TarsConfig(path=config["path"])
