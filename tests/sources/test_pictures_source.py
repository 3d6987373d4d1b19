"""Folders of pictures: what belongs together is found by name, what does not fit is said in one line."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lvm.pictures import segmentation
from lvm.runtime import UserError, build
from lvm.runtime.config_files import load_config
from lvm.sources import BrokenItem, open_source, read_units
from lvm.sources.pictures import PicturesConfig

DATA = Path(__file__).parents[2].parent / "shared" / "data"
RNG = np.random.default_rng(0)


def save(path, shape=(12, 16, 3), value=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8) if value is None else np.full(shape, value, np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def items_of(source, size=16):
    return [item for i in range(len(source)) for item in source.read(i, size)]


def test_a_bare_folder_gives_pictures_with_derived_channels_in_views(tmp_path):
    for name in ("a.jpg", "b.png", "deep/er/c.JPEG", ".hidden.png", "notes.txt"):
        if name == "notes.txt":
            (tmp_path / name).write_text("no picture")
        else:
            save(tmp_path / name)
    source = open_source({"path": str(tmp_path), "views": 3})
    assert source.channels == ("image", "gray", "masked", "noisy", "dark") and len(source) == 3
    items = source.read(0, 8)
    assert [(item.view, tuple(item.channels)) for item in items] == [
        (0, ("image", "gray")),
        *((view, ("masked", "noisy", "dark")) for view in (1, 2, 3)),
    ]
    assert {item.id for item in items} == {"a"} and {item.group for item in items} == {"a"}
    assert all(a.shape == (1, 8, 8, 3) and a.dtype == np.uint8 for item in items for a in item.channels.values())
    assert not np.array_equal(items[1].channels["noisy"], items[2].channels["noisy"])  # each view is a new draw
    again = open_source({"path": str(tmp_path), "views": 1}).read(0, 8)
    assert np.array_equal(again[1].channels["noisy"], items[1].channels["noisy"])  # of (id, view) alone
    assert [source.unit_id(i) for i in range(3)] == ["a", "b", "deep/er/c"]
    assert [source.read(i, 8)[0].label for i in range(3)] == [-1, -1, 0]


def test_folders_below_are_classes(tmp_path):
    for name in ("dog/1.jpg", "cat/1.jpg", "cat/2.jpg"):
        save(tmp_path / name)
    source = open_source(tmp_path)
    assert source.labels == ("cat", "dog")
    assert [(source.unit_id(i), source.read(i, 8)[0].label) for i in range(3)] == [
        ("cat/1", 0),
        ("cat/2", 0),
        ("dog/1", 1),
    ]


@pytest.mark.parametrize("pictures", ["image", "images", "rgb"])
@pytest.mark.parametrize("masks", ["mask", "masks", "segmentation", "segmentations"])
def test_annotations_in_sibling_folders_belong_to_the_picture_of_their_stem(tmp_path, pictures, masks):
    for i in (1, 2, 10):
        save(tmp_path / pictures / f"kind/{i}.jpg")
    labels = save(tmp_path / masks / "kind/10.png", (12, 16), 7)
    save(tmp_path / "edges/kind/2.png", (12, 16))
    source = open_source(tmp_path)
    assert source.channels[:3] == ("image", "segmentation", "edge")
    by_id = {item.id: item for item in items_of(source) if item.view == 0}
    assert set(by_id["kind/1"].channels) == {"image", "gray"}
    assert set(by_id["kind/2"].channels) == {"image", "gray", "edge"}
    drawn = by_id["kind/10"].channels["segmentation"][0]
    assert np.array_equal(drawn, segmentation.draw(np.full((16, 16), labels[0, 0])))


def test_16_bit_depth_is_drawn_near_bright_with_unknown_black(tmp_path):
    save(tmp_path / "rgb/a.png", (16, 16, 3))
    depth = np.linspace(1000, 4000, 16, dtype=np.uint16)[None].repeat(16, 0).copy()
    depth[0, 0] = 0
    (tmp_path / "depth").mkdir()
    Image.fromarray(depth).save(tmp_path / "depth/a.png")
    drawn = open_source(tmp_path).read(0, 16)[0].channels["depth"][0]
    assert drawn[8, 0, 0] == 255 and drawn[8, 15, 0] == 0 and drawn[0, 0, 0] == 0
    assert (np.diff(drawn[8, :, 0].astype(int)) <= 0).all()


def test_folders_of_frames_are_clips_in_order_cut_into_windows(tmp_path):
    frames = [save(tmp_path / f"frames/run/{i}.png", (8, 8, 3)) for i in range(11)]
    for i in range(11):
        save(tmp_path / f"masks/run/{i}.png", (8, 8), 0 if i % 2 else 255)
    save(tmp_path / "frames/still/0.png", (8, 8, 3))
    source = open_source({"path": str(tmp_path), "frames": 4})
    assert source.channels == ("image", "segmentation")
    assert [source.unit_id(i) for i in range(len(source))] == ["run:0", "run:4", "run:7", "still"]
    items = items_of(source, 8)
    for item, start in zip(items, (0, 4, 7)):
        assert np.array_equal(item.channels["image"], np.stack(frames[start : start + 4]))  # 10 comes after 9
        assert item.channels["segmentation"].shape == (4, 8, 8, 3) and item.group == "run"
    assert items[3].num_pictures == 1 and "segmentation" not in items[3].channels


def test_clips_can_be_asked_for_where_the_folder_does_not_say(tmp_path):
    for i in range(3):
        save(tmp_path / f"object/{i}.png")
    assert len(open_source(tmp_path)) == 3
    source = open_source(tmp_path, ["clips=true"])
    assert len(source) == 1 and source.read(0, 8)[0].channels["image"].shape == (3, 8, 8, 3)


def test_datasets_side_by_side_are_one_source(tmp_path):
    save(tmp_path / "street/images/a.jpg")
    save(tmp_path / "street/masks/a.png", (12, 16))
    save(tmp_path / "walk/frames/x/0.jpg")
    save(tmp_path / "things/cup/a.jpg")
    source = open_source(tmp_path)
    assert [source.unit_id(i) for i in range(3)] == ["street/a", "things/cup/a", "walk/x"]
    assert source.labels == ("things/cup",) and "segmentation" in source.read(0, 8)[0].channels
    assert len(open_source({"path": str(tmp_path), "include": ["street/*"]})) == 1
    assert len(open_source({"path": str(tmp_path), "exclude": ["street/*"]})) == 2


def test_the_same_stem_in_two_datasets_is_two_groups_and_a_pattern_can_join(tmp_path):
    for name in ("run1_0.png", "run1_1.png", "run2_0.png"):
        save(tmp_path / name)
    source = open_source({"path": str(tmp_path), "group_pattern": "^[^_]+"})
    assert [item.group for item in items_of(source) if item.view == 0] == ["run1", "run1", "run2"]


def test_resize_crop_is_applied_to_picture_and_annotation_alike(tmp_path):
    photo = save(tmp_path / "images/a.png", (8, 16, 3))
    save(tmp_path / "normals/a.png", (8, 16, 3))
    item = open_source({"path": str(tmp_path), "resize": "crop"}).read(0, 8)[0]
    assert np.array_equal(item.channels["image"][0], photo[:, 4:12])
    assert item.channels["normal"].shape == (1, 8, 8, 3)


def test_the_fingerprint_changes_with_files_and_options_not_with_the_place(tmp_path):
    for place in ("one", "two"):
        save(tmp_path / place / "a.png")
        save(tmp_path / place / "b.png")
    one, two = open_source(tmp_path / "one"), open_source(tmp_path / "two")
    assert one.fingerprint() == two.fingerprint() == pickle.loads(pickle.dumps(one)).fingerprint()
    assert one.fingerprint() != open_source({"path": str(tmp_path / "one"), "resize": "crop"}).fingerprint()
    save(tmp_path / "two/c.png")
    assert one.fingerprint() != open_source(tmp_path / "two").fingerprint()


def test_every_annotation_without_its_picture_is_named(tmp_path):
    for name in ("images/a.jpg", "images/b.jpg", "masks/a.png", "masks/c.png", "masks/d.png"):
        save(tmp_path / name, (12, 16) if "masks" in name else (12, 16, 3))
    source = open_source(tmp_path)
    found = [result for _, result in read_units(source, range(len(source)), 16, workers=0)]
    broken = [str(result) for result in found if isinstance(result, BrokenItem)]
    assert len(found) == 4 and len(broken) == 2
    assert all(f"masks/{name}.png: has no picture of that name in images/" in text for name, text in zip("cd", broken))


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, r"holds no pictures \(.jpg"),
        ({"notes.txt": None}, r"holds no pictures \(.jpg"),
        ({"images/a.jpg": 3, "masks/b.png": 1}, r"masks/b.png: no picture of that name in images/, nor of any"),
        ({"images/a.jpg": 3, "images/a.png": 3}, r"a.jpg.* have the same stem"),
        ({"images/a.jpg": 3, "thumbnails/a.png": 3}, r"thumbnails: not a known annotation \(known: box.*channels"),
        ({"images/a.jpg": 3, "b.png": 3}, r"b.png: lies beside images/"),
    ],
)
def test_folders_that_make_no_sense_are_one_line(tmp_path, files, message):
    for name, channels in files.items():
        if channels is None:
            (tmp_path / name).write_text("x")
        else:
            save(tmp_path / name, (12, 16, 3) if channels == 3 else (12, 16))
    with pytest.raises(UserError, match=message) as caught:
        open_source(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_annotation_of_another_size_is_named_with_both_sizes(tmp_path):
    save(tmp_path / "images/a.jpg")
    save(tmp_path / "masks/a.png", (12, 12))
    with pytest.raises(BrokenItem, match=r"masks/a.png: is 12 x 12, its picture .*images/a.jpg 16 x 12"):
        open_source(tmp_path).read(0, 8)


def test_unreadable_pictures_and_annotations_are_broken_items_with_file_and_reason(tmp_path):
    save(tmp_path / "images/a.jpg")
    save(tmp_path / "images/b.jpg")
    save(tmp_path / "depth/b.png", (12, 16))
    for file in ("images/a.jpg", "depth/b.png"):
        whole = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(whole[: len(whole) // 2])
    source = open_source(tmp_path)
    for unit, file in enumerate(("images/a.jpg", "depth/b.png")):
        with pytest.raises(BrokenItem) as caught:
            source.read(unit, 8)
        assert caught.value.file.endswith(file) and caught.value.reason
        assert pickle.loads(pickle.dumps(caught.value)).file == caught.value.file


def test_other_annotation_folders_are_admitted_by_name(tmp_path):
    save(tmp_path / "images/a.jpg")
    save(tmp_path / "sketches/a.png")
    source = open_source({"path": str(tmp_path), "channels": {"sketches": "sketch"}})
    assert source.channels == ("image", "gray", "masked", "noisy", "dark", "sketch")
    assert "sketch" in source.read(0, 8)[0].channels


@pytest.mark.parametrize(
    "config, message",
    [
        ({"kind": "films"}, "'films' is unknown; use one of pictures, manifest"),
        ({"kind": "pictures", "path": "/nowhere/at/all"}, "/nowhere/at/all is not a folder"),
        ({"kind": "pictures", "path": ".", "resise": "crop"}, "unknown config key 'resise'; did you mean 'resize'"),
        ({"kind": "pictures", "path": ".", "derived": ["grey"]}, "'grey' is unknown; known: gray"),
        ({"kind": "pictures", "path": ".", "group_pattern": "("}, "no regular expression"),
        ("no_such_source", "'no_such_source' does not exist; give a folder"),
        (__file__, "neither a folder of pictures nor a YAML"),
    ],
)
def test_configs_that_make_no_sense_are_one_line(config, message):
    with pytest.raises(UserError, match=message):
        open_source(config)


def test_sources_open_by_name_by_file_and_by_mapping(tmp_path):
    assert open_source("world").name == "world"
    save(tmp_path / "photos/a.png")
    (tmp_path / "mine.yaml").write_text(f"kind: pictures\npath: {tmp_path}/photos\nname: mine\n")
    assert open_source(tmp_path / "mine.yaml").name == "mine"
    assert open_source(tmp_path / "mine.yaml", ["name=yours"]).name == "yours"
    with pytest.raises(UserError, match=r"'name' cannot be read; write KEY=VALUE"):
        open_source(tmp_path / "mine.yaml", ["name"])


def test_the_commented_yaml_shows_every_option_with_its_default():
    config = load_config("data/source/pictures")
    assert config.pop("kind") == "pictures"
    assert set(config) == set(PicturesConfig.__dataclass_fields__)
    assert build(PicturesConfig, config) == PicturesConfig(path=config["path"])


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")
@pytest.mark.parametrize(
    "name, units, channels",
    [
        ("caltech101", 792, {"image"}),
        ("bsds500", 150, {"image", "edge", "instance"}),
        ("camvid", 184, {"image", "segmentation"}),
        ("davis", 16, {"image", "segmentation"}),
        ("rgbd_room", 45, {"image", "depth", "normal"}),
    ],
)
def test_real_datasets_are_read_as_they_lie(name, units, channels):
    source = open_source(DATA / name)
    item = source.read(len(source) // 2, 48)[0]
    assert len(source) == units and set(item.channels) - {"gray"} == channels
    assert all(pictures.std() > 5 for pictures in item.channels.values())
    if name == "davis":
        assert set(np.unique(item.channels["segmentation"])) == {0, 255} and item.num_pictures == 16


def test_mirrored_normals_point_the_other_way(tmp_path):
    save(tmp_path / "images/a.png")
    normals = np.zeros((12, 16, 3), np.uint8)
    normals[:, :8] = (200, 128, 220)
    save_as(tmp_path / "normals/a.png", normals)
    plain, mirrored = (
        item.channels["normal"][0]
        for item in open_source({"path": str(tmp_path), "flip": True, "derived": []}).read(0, 16)
    )
    assert plain[4, 2].tolist() == [200, 128, 220] and mirrored[4, 13].tolist() == [55, 128, 220]
    assert not mirrored[4, 2].any()


def save_as(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
