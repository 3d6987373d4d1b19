"""COCO's JSON: channels are what was written, and damage is named and counted, in one unit or for the whole file."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lvm.pictures import boxes, masks, segmentation, skeletons
from lvm.runtime import UserError, build
from lvm.runtime.config_files import load_config
from lvm.sources import BrokenItem, open_source, read_units
from lvm.sources.coco import CocoConfig

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "coco_mini"
SIDE = 32
CROWD = np.zeros((SIDE, SIDE), bool)
CROWD[24:, 8:] = True
RUNS = masks.encode(CROWD)


def square(left, top, side):
    """A polygon that covers exactly these pixels."""
    right, bottom = left + side - 1, top + side - 1
    return [left, top, right, top, right, bottom, left, bottom]


def instances():
    """Two pictures with a large dog, a cat on it and a crowd; and one without anything."""
    objects = [
        {"category_id": 3, "segmentation": [square(4, 4, 8)], "bbox": [4, 4, 8, 8]},
        {"category_id": 7, "segmentation": [square(2, 2, 16)], "bbox": [2, 2, 16, 16]},
        {
            "category_id": 3,
            "segmentation": {"size": [SIDE, SIDE], "counts": RUNS},
            "bbox": [8, 24, 24, 8],
            "iscrowd": 1,
        },
    ]
    return {
        "images": [
            {
                "id": n,
                "file_name": f"{n:03d}.png",
                "width": SIDE,
                "height": SIDE,
                "license": 4,
                "coco_url": f"http://c/{n}",
            }
            for n in (1, 2, 3)
        ],
        "annotations": [
            {"id": 10 * image + n, "image_id": image, "iscrowd": 0, **entry}
            for image in (1, 2)
            for n, entry in enumerate(objects)
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "licenses": [{"id": 4, "name": "CC BY 2.0", "url": "http://cc/by"}],
    }


def people():
    found = instances()
    joints = [[5, 5, 2], [20, 5, 1], [0, 0, 0]]
    found["annotations"] = [
        {
            "id": 11,
            "image_id": 1,
            "category_id": 7,
            "bbox": [2, 2, 16, 16],
            "keypoints": np.array(joints).reshape(-1).tolist(),
        },
        {"id": 21, "image_id": 2, "category_id": 7, "bbox": [2, 2, 16, 16], "keypoints": [0] * 9},
    ]
    found["categories"] = [{"id": 7, "name": "dog", "keypoints": ["a", "b", "c"], "skeleton": [[1, 2], [2, 3]]}]
    return found


def write(folder, **files):
    """Pictures 001.png ..., and JSON files by role; options of the source."""
    (folder / "images").mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for n in (1, 2, 3):
        Image.fromarray(rng.integers(30, 200, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / f"images/{n:03d}.png")
    options = {"kind": "coco", "images": str(folder / "images")}
    for role, content in files.items():
        path = folder / f"{role}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        options[role] = str(path)
    return options


def channels_of(source, unit=0, size=SIDE):
    return {name: pictures[0] for name, pictures in source.read(unit, size)[0].channels.items()}


def test_polygons_and_masks_become_classes_in_the_order_of_ids_small_objects_on_top(tmp_path):
    source = open_source(write(tmp_path, annotations=instances()))
    assert source.channels == ("image", "segmentation", "instance", "box", "gray", "masked", "noisy", "dark")
    drawn = channels_of(source)
    classes = np.zeros((SIDE, SIDE), int)
    classes[2:18, 2:18] = 2  # the dog, id 7
    classes[4:12, 4:12] = 1  # the cat, id 3
    classes[CROWD] = 1
    assert np.array_equal(segmentation.read(drawn["segmentation"]), classes)
    objects = np.zeros((SIDE, SIDE), int)
    objects[2:18, 2:18] = 1  # the largest
    objects[4:12, 4:12] = 2
    assert np.array_equal(segmentation.read(drawn["instance"]), objects)
    assert boxes.read(drawn["box"], (255, 0, 0), drawn["image"])[0] == (2, 2, 18, 18)
    assert set(channels_of(source, 2)) == {"image", "gray"}  # nothing is annotated there


def test_an_item_has_its_licence_origin_and_first_caption(tmp_path):
    captions = {**instances(), "annotations": [{"id": n, "image_id": 1, "caption": f" A dog {n}. "} for n in (5, 6)]}
    source = open_source(write(tmp_path, annotations=instances(), captions=captions))
    first, second = source.read(0, 16)[0], source.read(1, 16)[0]
    assert (first.id, first.group, first.label) == ("001", "001", -1)
    assert (first.licence, first.origin, first.caption) == ("CC BY 2.0, http://cc/by", "http://c/1", "A dog 5.")
    assert second.caption == "" and {item.view for item in source.read(0, 16)} == {0, 1, 2}


def test_crowds_are_classes_always_and_objects_on_demand(tmp_path):
    options = write(tmp_path, annotations=instances())
    few, all_ = channels_of(open_source(options)), channels_of(open_source({**options, "crowd": True}))
    assert np.array_equal(few["segmentation"], all_["segmentation"])
    assert (few["instance"][30, 20] == 0).all() and (all_["instance"][30, 20] != 0).any()
    assert len(boxes.read(all_["box"], (255, 0, 0), all_["image"])) > len(
        boxes.read(few["box"], (255, 0, 0), few["image"])
    )


@pytest.mark.parametrize("as_string", [False, True])
def test_compressed_run_lengths_draw_the_same(tmp_path, as_string):
    content = instances()
    for entry in content["annotations"]:
        if entry["iscrowd"] and as_string:
            entry["segmentation"]["counts"] = masks.compress(RUNS)
    drawn = channels_of(open_source(write(tmp_path, annotations=content)))["segmentation"]
    assert (segmentation.read(drawn)[CROWD] == 1).all()


def test_people_of_a_second_file_are_the_same_annotations_with_joints(tmp_path):
    options = write(tmp_path, annotations=instances(), poses=people())
    source = open_source({**options, "derived": []})
    assert source.channels == ("image", "segmentation", "instance", "box", "pose")
    expected = skeletons.draw(
        np.array([[[5, 5], [20, 5], [np.nan, np.nan]]]), [(0, 1), (1, 2)], np.zeros((SIDE, SIDE, 3), np.uint8)
    )
    drawn = channels_of(source)
    assert np.array_equal(drawn["pose"], expected)
    alone = channels_of(open_source({**options, "poses": ""}))
    assert np.array_equal(drawn["instance"], alone["instance"])  # nothing is drawn twice
    assert "pose" not in channels_of(source, 1)  # no joint of hers is known
    only = open_source({**options, "annotations": "", "derived": []})
    assert only.channels == ("image", "box", "pose") and np.array_equal(channels_of(only)["pose"], expected)


def panoptic(folder):
    (folder / "panoptic").mkdir()
    ids = np.zeros((SIDE, SIDE), int)
    ids[:10], ids[10:20, :16], ids[20:] = 70000, 300, 5
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    Image.fromarray(colours).save(folder / "panoptic/001.png")
    segments = [
        {"id": 5, "category_id": 3, "bbox": [0, 20, 32, 12], "iscrowd": 0},
        {"id": 300, "category_id": 3, "bbox": [0, 10, 16, 10], "iscrowd": 0},
        {"id": 70000, "category_id": 100, "bbox": [0, 0, 32, 10], "iscrowd": 0},
    ]
    return ids, {
        "images": instances()["images"],
        "annotations": [{"image_id": 1, "file_name": "001.png", "segments_info": segments}],
        "categories": [*instances()["categories"], {"id": 100, "name": "sky", "isthing": 0}],
    }


@pytest.mark.parametrize("with_instances", [False, True])
def test_panoptic_pictures_give_classes_with_stuff_and_instances_without(tmp_path, with_instances):
    ids, content = panoptic(tmp_path)
    options = write(tmp_path, panoptic=content, **({"annotations": instances()} if with_instances else {}))
    source = open_source(options)
    drawn = channels_of(source)
    classes = np.select([ids == 5, ids == 300, ids == 70000], [1, 1, 3], 0)
    assert np.array_equal(segmentation.read(drawn["segmentation"]), classes)
    assert np.array_equal(segmentation.read(drawn["instance"]), np.select([ids == 5, ids == 300], [1, 2], 0))
    first = boxes.read(drawn["box"], (255, 0, 0), drawn["image"])[0]
    assert first[:2] == ((2, 2) if with_instances else (0, 10))
    content["annotations"][0]["segments_info"].pop(1)
    broken = open_source(write(tmp_path, panoptic=content))
    with pytest.raises(BrokenItem, match=r"panoptic/001.png: has a segment 300 that is not listed"):
        broken.read(0, SIDE)


def test_classes_are_told_apart_from_masks_of_0_and_255_and_go_round_beyond_255(tmp_path):
    content = instances()
    content["categories"] = [{"id": n, "name": str(n)} for n in range(1, 301)]
    for entry in content["annotations"]:
        entry["category_id"] = {1: 255, 2: 256}[entry["image_id"]]
    source = open_source(write(tmp_path, annotations=content))
    assert segmentation.read(channels_of(source, 0)["segmentation"])[5, 5] == 255
    assert segmentation.read(channels_of(source, 1)["segmentation"])[5, 5] == 1


def test_cut_and_mirrored_views_keep_all_channels_together(tmp_path):
    options = write(tmp_path, annotations=instances(), poses=people())
    items = open_source({**options, "flip": True, "derived": []}).read(0, SIDE)
    for channel in ("image", "segmentation", "instance"):
        assert np.array_equal(items[1].channels[channel], items[0].channels[channel][:, :, ::-1])
    assert items[1].channels["pose"].any() and items[1].meta["geometry"]["mirrored"]


def test_named_channels_alone_are_read_and_others_refused(tmp_path):
    options = write(tmp_path, annotations=instances())
    assert open_source({**options, "channels": ["box"], "derived": []}).channels == ("image", "box")
    with pytest.raises(UserError, match="'pose' is not in these files; they have image, box, instance, segmentation"):
        open_source({**options, "channels": ["pose"]})


def test_the_table_is_made_once_and_found_by_reader_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("LVM_CACHE", str(tmp_path / "cache"))
    options = write(tmp_path, annotations=instances())
    source = open_source(options)
    (table,) = (tmp_path / "cache/coco").iterdir()
    changed = table.stat().st_mtime_ns
    again = pickle.loads(pickle.dumps(open_source(options)))
    assert table.stat().st_mtime_ns == changed and again.fingerprint() == source.fingerprint()
    assert len(pickle.dumps(source)) < 10_000
    there = [items[0].channels["box"] for _, items in read_units(source, [0, 1], 16, workers=1)]
    here = [items[0].channels["box"] for _, items in read_units(source, [0, 1], 16, workers=0)]
    assert np.array_equal(there, here)
    assert open_source({**options, "crowd": True}).fingerprint() != source.fingerprint()
    Path(options["annotations"]).write_text(json.dumps({**instances(), "info": "another"}))
    assert open_source(options).fingerprint() != source.fingerprint()
    table.unlink()
    with pytest.raises(UserError, match="cannot be read any more"):
        source.read(0, 16)


def entry(content, **changed):
    content["annotations"][0].update(changed)


def image(content, **changed):
    content["images"][0].update(changed)


BROKEN = {
    r"annotations.json: image number 0 has no id": lambda c: c["images"][0].pop("id"),
    r"annotations.json: image number 1 has the id 1 of another": lambda c: c["images"][1].update(id=1),
    r"annotations.json: image number 0 has no id  ": lambda c: image(c, id=[1]),
    r"annotations.json: image number 0 has no id ": lambda c: c["images"].__setitem__(0, "a.jpg"),
    r"annotations.json: image 1 has no file_name": lambda c: c["images"][0].pop("file_name"),
    r"annotations.json: image 1 has no file_name ": lambda c: image(c, file_name=7),
    r"annotations.json: image 2 has the file_name of image 1": lambda c: c["images"][1].update(file_name="001.jpg"),
    r"annotations.json: image 1 lies outside the folder of images": lambda c: image(c, file_name="../images/001.png"),
    r"annotations.json: image 1 lies outside the folder of images ": lambda c: image(c, file_name="/etc/passwd"),
    r"annotations.json: image 1 has the width -5": lambda c: image(c, width=-5),
    r"annotations.json: image 1 has the height .32.": lambda c: image(c, height="32"),
    r"images/999.jpg: does not exist": lambda c: image(c, file_name="999.jpg"),
    r"images/a.b: does not exist": lambda c: image(c, file_name="a\0b"),
    r"images/001.png: is 32 x 32, in the JSON 64 x 32": lambda c: image(c, width=64),
    r"image 1 has an annotation without id": lambda c: c["annotations"][0].pop("id"),
    r"image 1 has two annotations of the id 11": lambda c: entry(c, id=11),
    r"image 1: annotation 10 has the unknown category 99": lambda c: entry(c, category_id=99),
    r"image 1: annotation 10 has the unknown category null": lambda c: c["annotations"][0].pop("category_id"),
    r"image 1: annotation 10 has the unknown category \[3\]": lambda c: entry(c, category_id=[3]),
    r"image 1: annotation 10 has the bbox \[1, 2, 3\]": lambda c: entry(c, bbox=[1, 2, 3]),
    r"image 1: annotation 10 has the bbox \[9, 9, -3, 2\]": lambda c: entry(c, bbox=[9, 9, -3, 2]),
    r"annotation 10 has a bbox that is not a list of finite numbers": lambda c: entry(c, bbox=[1, 2, float("nan"), 3]),
    r"annotation 10 has a bbox that is not a list of finite numbers ": lambda c: entry(c, bbox=["1", "2", "3", "4"]),
    r"annotation 10 has a bbox that is not a list of finite numbers  ": lambda c: entry(c, bbox=[10**400, 1, 1, 1]),
    r"annotation 10 lies far outside the picture": lambda c: entry(c, bbox=[1e6, 2, 3, 4]),
    r"annotation 10 lies far outside the picture ": lambda c: entry(c, segmentation=[[0, 0, 1e9, 0, 0, 1e9]]),
    r"annotation 10 has a polygon that is not three or more": lambda c: entry(c, segmentation=[[1, 2, 3, 4]]),
    r"annotation 10 has a polygon that is not three or more ": lambda c: entry(c, segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
    r"annotation 10 has a segmentation that is not a list of fin": lambda c: entry(c, segmentation=[1, 2, 3, 4, 5, 6]),
    r"annotation 10 has a segmentation that is neither": lambda c: entry(c, segmentation="polygon"),
    r"annotation 10 has a mask of the size \[4, 4\], not \[32, 32\]": lambda c: entry(
        c, segmentation={"size": [4, 4], "counts": [16]}
    ),
    r"annotation 10: a mask's run lengths do not fill 32 x 32": lambda c: entry(
        c, segmentation={"size": [SIDE, SIDE], "counts": [7, 8]}
    ),
    r"annotation 10: a mask's compressed run lengths": lambda c: entry(
        c, segmentation={"size": [SIDE, SIDE], "counts": "\u00e9\u00e9"}
    ),
    r"annotation 10 has a mask without run lengths": lambda c: entry(
        c, segmentation={"size": [SIDE, SIDE], "counts": [1.5]}
    ),
    r"3 annotations of 1 unknown images, first id 77": lambda c: [a.update(image_id=77) for a in c["annotations"][:3]],
    r"1 annotations of 1 unknown images, first id null": lambda c: c["annotations"][0].pop("image_id"),
    r"1 annotations of 1 unknown images, first id null ": lambda c: c["annotations"].append("annotation"),
}


@pytest.mark.parametrize("message", BROKEN)
def test_one_damaged_entry_is_one_broken_unit(tmp_path, message):
    content = instances()
    BROKEN[message](content)
    source = open_source(write(tmp_path, annotations=content))
    found = [result for _, result in read_units(source, range(len(source)), 16, workers=0)]
    broken, *more = [str(result) for result in found if isinstance(result, BrokenItem)]
    assert len(more) == ("has no id" in message or "of another" in message)  # its annotations belong to no image now
    with pytest.raises(AssertionError, match=message.rstrip()):
        raise AssertionError(broken)
    assert "\n" not in broken and len(set(source.table.ids)) == len(source) >= len(content["images"])


KEYPOINTS = {
    r"annotation 11 has 4 numbers for 3 keypoints": [1, 2, 2, 5],
    r"annotation 11 has a keypoints that is not a list of finite": ["a"] * 9,
    r"annotation 11 lies far outside": [1e30, 1, 2] * 3,
}


@pytest.mark.parametrize("message", KEYPOINTS)
def test_damaged_keypoints_are_broken_units(tmp_path, message):
    content = people()
    entry(content, keypoints=KEYPOINTS[message])
    with pytest.raises(BrokenItem, match=message):
        open_source(write(tmp_path, annotations=content)).read(0, SIDE)


def without(key, **changed):
    content = {**instances(), **changed}
    content.pop(key, None)
    return content


WHOLE = {
    r"is not JSON": '{"images": [',
    r"is not JSON ": "\xff\xfe",
    r"is not JSON  ": "",
    r"is nested too deeply": "[" * 100_000,
    r"is not COCO's JSON: it must be an object that has `images`": "[]",
    r"is not COCO's JSON: it must be an object that has `images` ": without("images"),
    r"images is \{.*\}; it must be a list": {**instances(), "images": {"1": "a.jpg"}},
    r"annotations is 7; it must be a list": {**instances(), "annotations": 7},
    r"no images are listed": {"images": []},
    r"has annotations and no categories": without("categories"),
    r"category \{.*\} must have a number as id, and a name": {**instances(), "categories": [{"name": "cat"}]},
    r"category 7 is 'dog', and 'cat' elsewhere": {
        **instances(), "categories": [{"id": 7, "name": "cat"}, {"id": 7, "name": "dog"}],
    },
    r"category 7 has 2 keypoints and the limb \[0, 1\]": {
        **instances(), "categories": [{"id": 7, "name": "dog", "keypoints": ["a", "b"], "skeleton": [[0, 1]]}],
    },
    r"licence 5 must be an object with an id": {**instances(), "licenses": [5]},
}  # fmt: skip


@pytest.mark.parametrize("message", WHOLE)
def test_a_file_that_makes_no_sense_is_one_line(tmp_path, message):
    with pytest.raises(UserError, match=message.rstrip()) as caught:
        open_source(write(tmp_path, annotations=WHOLE[message]))
    assert "\n" not in str(caught.value) and "annotations.json" in str(caught.value)


def test_options_that_make_no_sense_are_one_line(tmp_path):
    options = write(tmp_path, annotations=instances())
    for changed, message in (
        ({"annotations": ""}, "needs one of annotations, poses, panoptic, captions"),
        ({"annotations": "/nowhere.json"}, "/nowhere.json cannot be read"),
        ({"images": "/nowhere"}, "/nowhere is not a folder"),
        ({"panoptic": options["annotations"]}, "annotations is not a folder; name the panoptic pictures"),
    ):
        with pytest.raises(UserError, match=message):
            open_source({**options, **changed})


def test_categories_of_different_skeletons_cannot_share_a_channel(tmp_path):
    content = people()
    content["categories"].append({"id": 3, "name": "cat", "keypoints": ["a", "b"], "skeleton": [[1, 2]]})
    options = write(tmp_path, annotations=content)
    with pytest.raises(UserError, match="categories 'cat' and 'dog' have different skeletons"):
        open_source(options)
    assert "pose" not in open_source({**options, "channels": ["box"]}).channels


def test_half_a_surrogate_pair_in_the_json_can_be_written(tmp_path):
    content = instances()
    image(content, file_name="\ud800.png", coco_url="\ud800")
    image_, caption = content["images"][1], {"id": 1, "image_id": 2, "caption": "a \udcff dog"}
    image_["coco_url"] = "\ud800"
    source = open_source(write(tmp_path, annotations=content, captions={**content, "annotations": [caption]}))
    source.unit_id(0).encode()
    with pytest.raises(BrokenItem) as caught:
        source.read(0, 16)
    str(caught.value).encode()
    item = source.read(1, 16)[0]
    assert item.caption == r"a \udcff dog" and item.origin == r"\ud800"


def test_the_commented_yaml_shows_every_option_with_its_default():
    config = load_config("data/source/coco")
    assert config.pop("kind") == "coco" and set(config) == set(CocoConfig.__dataclass_fields__)
    given = {key: config[key] for key in ("images", "annotations")}
    assert build(CocoConfig, config) == CocoConfig(**given)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")
def test_real_photos_with_their_objects(tmp_path):
    """The subset's objects and instance maps written as COCO's JSON; its semantic maps hold the same classes."""
    rows = [json.loads(line) for line in (DATA / "manifest.jsonl").read_text().splitlines()][:4]
    content = {"images": [], "annotations": [], "categories": json.loads((DATA / "categories.json").read_text())}
    for row in rows:
        content["images"].append({"id": row["coco_id"], "file_name": row["file"], "width": row["width"],
                                  "height": row["height"], "flickr_url": row["flickr_url"]})  # fmt: skip
        shown = np.asarray(Image.open(DATA / row["instance"]))
        for thing in row["objects"]:
            mask = shown == thing["instance"]
            content["annotations"].append({
                "id": len(content["annotations"]), "image_id": row["coco_id"], "category_id": thing["category_id"],
                "bbox": thing["bbox_xywh"], "iscrowd": thing["iscrowd"],
                "segmentation": {"size": list(mask.shape), "counts": masks.compress(masks.encode(mask))},
            })  # fmt: skip
    options = {"kind": "coco", "images": str(DATA), "derived": [], "resize": "crop"}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    source = open_source({**options, "annotations": str(tmp_path / "instances.json")})
    classes = {category["id"]: n for n, category in enumerate(source.table.categories, 1)}
    for unit, row in enumerate(rows):
        item = source.read(unit, 256)[0]
        semantic = np.asarray(Image.open(DATA / row["semantic"]))
        left = (semantic.shape[1] - 256) // 2
        drawn = segmentation.read(item.channels["segmentation"][0, ::4, ::4])
        truth = np.vectorize(lambda k: classes.get(k, 0))(semantic)[:256:4, left : left + 256 : 4]
        things = {classes[thing["category_id"]] for thing in row["objects"]}
        same = drawn == np.where(np.isin(truth, list(things)), truth, 0)
        if semantic.shape[0] == 256:
            assert same.mean() > 0.9, row["file"]
        assert item.channels["box"].shape == (1, 256, 256, 3) and item.origin == row["flickr_url"]
