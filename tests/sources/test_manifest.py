"""A manifest's lines become items; what a line lacks or has wrong is said of that line."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from lvm.pictures import skeletons
from lvm.runtime import UserError
from lvm.runtime.config_files import load_config
from lvm.sources import BrokenItem, open_source
from lvm.sources.manifest import ManifestConfig, look_up

LIMBS = [[0, 1], [1, 2]]


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def photo(seed=0, shape=(40, 60, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(folder, lines):
    folder.mkdir(exist_ok=True)
    path = folder / "manifest.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.fixture
def three(tmp_path):
    for n in range(3):
        save(tmp_path / f"images/{n}.png", photo(n))
        save(tmp_path / f"depth/{n}.png", np.full((40, 60), 1000 * (n + 1), np.uint16))
    lines = [
        {
            "file": f"images/{n}.png",
            "deep": f"depth/{n}.png",
            "who": {"license": "CC0", "url": f"http://example.org/{n}"},
            "things": [{"box": [10, 10, 20, 20]}, {"box": [30, 5, 20, 30]}],
            "joints": [[15, 10], [30, 20], [45, 30]],
            "class": "ab"[n % 2],
        }
        for n in range(3)
    ]
    return write(tmp_path, lines)


OPTIONS = {
    "kind": "manifest",
    "image": "file",
    "channels": {"depth": "deep"},
    "boxes": "things.box",
    "keypoints": "joints",
    "limbs": LIMBS,
    "label": "class",
    "licence_key": "who.license",
    "origin": "who.url",
    "derived": ["gray"],
}


def test_a_line_is_an_item_with_everything_that_it_names(three):
    source = pickle.loads(pickle.dumps(open_source({**OPTIONS, "path": str(three)})))
    assert source.channels == ("image", "depth", "box", "pose", "gray") and source.labels == ("a", "b")
    (item,) = source.read(1, 64)
    assert (item.id, item.group, item.label) == ("images/1", "images/1", 1)
    assert (item.licence, item.origin) == ("CC0", "http://example.org/1")
    assert set(item.channels) == set(source.channels)
    joints = skeletons.read(item.channels["pose"][0], 3, 2)
    expected = np.array([[15, 10], [30, 20], [45, 30]]) * [64 / 60, 64 / 40]
    assert np.abs(joints - expected).max() <= 1.5
    changed = (item.channels["box"] != item.channels["image"]).any(-1)[0]
    assert changed[16:48, 11:13].all() and not changed[20:30, 15:28].any()


def test_skeletons_over_the_photo_are_a_channel_of_their_own(three):
    source = open_source({**OPTIONS, "path": str(three), "pose_on_photo": True, "flip": True})
    assert "pose_photo" in source.channels
    for item in source.read(0, 64):
        photo, black, over = (item.channels[name][0] for name in ("image", "pose", "pose_photo"))
        drawn = black.any(-1)
        np.testing.assert_array_equal(over[drawn], black[drawn])
        np.testing.assert_array_equal(over[~drawn], photo[~drawn])


def test_cut_and_mirrored_views_keep_pixels_and_joints_together(three):
    source = open_source({**OPTIONS, "path": str(three), "resize": "crop", "flip": True})
    plain, mirrored = source.read(0, 80)
    assert (plain.view, mirrored.view) == (0, 1) and plain.id == mirrored.id
    assert mirrored.meta["geometry"]["mirrored"] and not plain.meta["geometry"]["mirrored"]
    for channel in ("image", "depth", "gray"):
        np.testing.assert_array_equal(plain.channels[channel][0][:, ::-1], mirrored.channels[channel][0])
    one, other = (skeletons.read(item.channels["pose"][0], 3, 2) for item in (plain, mirrored))
    assert np.nanmax(np.abs(other[:, 0] - (80 - one[:, 0]))) <= 2 and np.nanmax(np.abs(other[:, 1] - one[:, 1])) <= 1


def test_six_squares_are_six_views_of_one_group(three):
    source = open_source({**OPTIONS, "path": str(three), "resize": "six", "derived": ["gray", "noisy"], "views": 2})
    items = source.read(0, 32)
    assert [item.view for item in items] == [0, 1, 2, 3, 4, 5, 6, 7]
    whole = [item for item in items if "image" in item.channels]
    assert len(whole) == 6 and {item.group for item in items} == {"images/0"}
    assert all("noisy" in item.channels for item in whole[1:])  # nothing of another cut is read in its place
    corners = {tuple(item.meta["geometry"][side] for side in ("left", "top")) for item in whole}
    assert len(corners) == 6


def test_a_list_of_files_is_a_clip(tmp_path):
    for n in range(4):
        save(tmp_path / f"{n}.png", photo(n))
    path = write(tmp_path, [{"image": [f"{n}.png" for n in range(4)], "id": "walk"}])
    (item,) = open_source({"kind": "manifest", "path": str(path)}).read(0, 16)
    assert item.id == "walk" and item.channels["image"].shape == (4, 16, 16, 3) and set(item.channels) == {"image"}


def test_bad_lines_are_broken_units_and_the_rest_goes_on(three):
    lines = three.read_text().splitlines()
    more = ["{", json.dumps({"nothing": 1}), json.dumps({"file": "gone.png"}), json.dumps({"file": "../up.png"})]
    more += [json.dumps({"file": "images/0.png", "id": "few", "joints": [[1, 2]]})]
    more += [json.dumps({"file": "images/0.png", "id": "odd", "things": [{"box": [1, 2, 3]}]})]
    path = write(three.parent, lines + more)
    source = open_source({**OPTIONS, "path": str(path)})
    assert len(source) == 9
    reasons = {}
    for i in range(3, 9):
        with pytest.raises(BrokenItem) as broken:
            source.read(i, 16)
        reasons[source.unit_id(i)] = str(broken.value)
    assert "line-4: is no JSON" in reasons["line-4"] and "names no picture under 'file'" in reasons["line-5"]
    assert "does not exist" in reasons["gone"] and "outside" in reasons["../up"]
    assert "limbs name joint 2" in reasons["few"] and "another form" in reasons["odd"]


@pytest.mark.parametrize(
    "lines, message", [([], "no line to use"), (["x"], "no line to use"), ([{"image": "a"}] * 2, "id 'a' twice")]
)
def test_a_manifest_of_no_use_is_one_line(tmp_path, lines, message):
    path = write(tmp_path, lines)
    with pytest.raises(UserError, match=message):
        open_source({"kind": "manifest", "path": str(path)})
    with pytest.raises(UserError, match="cannot be read"):
        open_source({"kind": "manifest", "path": str(tmp_path / "none.jsonl")})


def test_keys_with_dots_go_through_objects_and_lists():
    line = {"a": {"b": 1}, "c": [{"d": 2}, {}, {"d": 3}]}
    assert (look_up(line, "a.b"), look_up(line, "c.d"), look_up(line, "a.x.y"), look_up(line, "")) == (
        1,
        [2, 3],
        None,
        None,
    )


def test_the_commented_yaml_shows_every_option_with_its_default():
    config = load_config("data/source/manifest")
    assert config.pop("kind") == "manifest"
    defaults = ManifestConfig(path=config["path"])
    assert set(config) == set(ManifestConfig.__dataclass_fields__)
    for key, value in config.items():
        given = getattr(defaults, key)
        assert (list(given) if isinstance(given, tuple) else given) == value, key


def test_a_mirrored_person_keeps_their_own_left_and_right(three):
    source = open_source({**OPTIONS, "path": str(three), "flip": True, "mirror": [[0, 2]]})
    plain, mirrored = (skeletons.read(item.channels["pose"][0], 3, 2) for item in source.read(0, 64))
    np.testing.assert_allclose(mirrored[[2, 1, 0], 0], 64 - plain[:, 0], atol=2)


def test_nobody_and_no_box_lose_no_photo(tmp_path):
    save(tmp_path / "0.png", photo())
    path = write(tmp_path, [{"file": "0.png", "joints": [], "things": []}])
    (item,) = open_source({**OPTIONS, "path": str(path)}).read(0, 16)
    assert "pose" not in item.channels
    np.testing.assert_array_equal(item.channels["box"], item.channels["image"])


def test_a_clip_has_boxes_for_each_of_its_frames(tmp_path):
    for n in range(2):
        save(tmp_path / f"{n}.png", np.zeros((40, 40, 3), np.uint8))
    lines = [
        {"id": "good", "file": ["0.png", "1.png"], "b": [[[0, 0, 20, 20]], [[20, 20, 20, 20]]]},
        {"id": "bad", "file": ["0.png", "1.png"], "b": [[[0, 0, 20, 20]]]},
    ]
    source = open_source({"kind": "manifest", "image": "file", "boxes": "b", "path": str(write(tmp_path, lines))})
    (item,) = source.read(0, 40)
    first, second = item.channels["box"].any(-1)
    assert first[0, 0] and not first[39, 39] and second[39, 39] and not second[0, 0]
    with pytest.raises(BrokenItem, match="each of its 2 frames"):
        source.read(1, 40)


def test_classes_are_known_by_what_their_file_says(three):
    classes = three.parent / "classes.json"
    prints = []
    for ids in ([3, 5], [5, 3]):
        classes.write_text(json.dumps([{"id": id, "name": "x"} for id in ids]))
        prints.append(open_source({**OPTIONS, "path": str(three), "classes": str(classes)}).fingerprint())
    (three.parent / "more").mkdir()
    moved = classes.rename(three.parent / "more/classes.json")
    prints.append(open_source({**OPTIONS, "path": str(three), "classes": str(moved)}).fingerprint())
    assert prints[0] != prints[1] == prints[2]
