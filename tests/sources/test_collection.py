"""Sources side by side: names in front, labels apart, one list of channels."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lvm.runtime import UserError
from lvm.sources import open_source

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def save(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def two(tmp_path):
    for n, name in enumerate(("a/cat/1.png", "a/dog/2.png", "b/cat/1.png", "b/cow/7.png")):
        save(tmp_path / name, n)
    (tmp_path / "b/manifest.jsonl").write_text('{"image": "cat/1.png", "label": "cat"}\n{"image": "cow/7.png"}\n')
    parts = {
        "first": {"kind": "pictures", "path": "a"},
        "second": {"kind": "manifest", "path": "b/manifest.jsonl", "views": 0},
        "third": {"kind": "world", "num_scenes": 3, "num_clips": 1, "channels": ["image", "edge"]},
    }
    return {"kind": "collection", "root": str(tmp_path), "sources": parts}


def test_units_ids_groups_and_labels_say_where_they_are_from(two):
    source = pickle.loads(pickle.dumps(open_source(two)))
    assert len(source) == 8
    assert [source.unit_id(i) for i in range(4)] == ["first/cat/1", "first/dog/2", "second/cat/1", "second/cow/7"]
    assert source.labels == ("first/cat", "first/dog", "second/cat")
    items = [source.read(i, 16)[0] for i in range(8)]
    assert [item.label for item in items[:4]] == [0, 1, 2, -1]
    assert items[0].group == "first/cat/1" and items[4].id.startswith("third/world-")
    assert len({item.group for item in items}) == 8
    assert source.channels == ("image", "edge", "gray", "masked", "noisy", "dark")
    assert {name for item in items for name in item.channels} <= set(source.channels)


def test_some_of_its_parts_alone(two):
    source = open_source(two, ["parts=[second]"])
    assert [source.unit_id(i) for i in range(len(source))] == ["second/cat/1", "second/cow/7"]
    with pytest.raises(UserError, match=r"parts names 'fourth'.*known: first, second, third"):
        open_source(two, ["parts=[second, fourth]"])


def test_its_fingerprint_is_that_of_its_parts(two):
    before = open_source(two).fingerprint()
    assert before == open_source(two).fingerprint()
    two["sources"]["third"]["num_scenes"] = 4
    assert open_source(two).fingerprint() != before


def test_a_collection_of_nothing_and_a_part_that_is_none_are_one_line(two):
    with pytest.raises(UserError, match="needs `sources`"):
        open_source({"kind": "collection", "sources": {}})
    with pytest.raises(UserError, match=r"sources.x is 'pictures'"):
        open_source({"kind": "collection", "sources": {"x": "pictures"}})
    two["sources"]["first"]["path"] = "gone"
    with pytest.raises(UserError, match="gone"):
        open_source(two)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no {DATA}")
def test_the_committed_collection_opens_and_reads():
    source = open_source("mixed", [f"root={DATA}"])
    assert len(source) > 1500 and {"depth", "normal", "segmentation", "instance", "edge", "box", "pose"} <= set(
        source.channels
    )
    for i in range(0, len(source), 97):
        for item in source.read(i, 32):
            assert all(pictures.shape[1:] == (32, 32, 3) for pictures in item.channels.values())


def test_a_part_of_unnamed_classes_borrows_no_names(two, tmp_path):
    import io
    import tarfile

    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, content in (("0.png", (tmp_path / "a/cat/1.png").read_bytes()), ("0.cls", b"1")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    two["sources"] = {"packed": {"kind": "tars", "path": "x.tar"}, **two["sources"]}
    source = open_source(two)
    assert source.read(0, 16)[0].label == -1 and source.read(1, 16)[0].label == 0


def test_the_photos_of_the_shipped_tokenizers_are_found_below_a_folder_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PHOTOS", str(tmp_path))
    with pytest.raises(UserError, match=rf"part caltech101 of photos \(its root is '{tmp_path}'\): .*not a folder"):
        open_source("photos")
    for n, name in enumerate(("caltech101/images/ant/1.png", "flowers/images/rose/2.png", "davis/frames/swan/0.png")):
        save(tmp_path / name, n)
    save(tmp_path / "davis/masks/swan/0.png", 3)
    source = open_source("photos")
    assert [source.unit_id(i) for i in range(3)] == ["caltech101/ant/1", "flowers/rose/2", "davis/swan"]
    assert source.channels == ("image", "segmentation"), "no noisy or masked copies"
