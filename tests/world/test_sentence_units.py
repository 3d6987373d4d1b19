"""What the world's objects, turntables, puzzles and clips are as items: names, labels, channels, splits."""

import json

import numpy as np
import pytest

from lvm.pictures import segmentation
from lvm.pictures.pieces import bounds
from lvm.runtime import UserError, build
from lvm.sources import open_source
from lvm.sources.world import KINDS, WorldConfig, WorldSource
from lvm.world.annotate import CLIP_CHANNELS, LATENT_CHANNELS, OBJECT_CHANNELS, class_map, sampled
from lvm.world.objects import OBJECT_CLASSES
from lvm.world.puzzles import RULE_SETS
from lvm.world.render import cast
from lvm.world.scene import CLASSES
from lvm.world.scene import KINDS as THINGS


def small(**changes):
    counts = {f"num_{kind}s": number for kind, number in zip(KINDS, (2, 2, 34, 2, 24))}
    return WorldSource(WorldConfig(**{**counts, **changes}))


def test_units_are_numbered_kind_after_kind():
    world = small()
    assert len(world) == 64 and [world.units(kind).start for kind in KINDS] == [0, 2, 4, 38, 40]
    assert world.unit_id(4) == "world-0-train-object-0000000"
    assert world.unit_id(39) == "world-0-train-turntable-0000001"
    assert world.unit_id(63) == "world-0-train-puzzle-0000023"
    assert len({world.unit_id(i) for i in range(64)}) == 64
    with pytest.raises(IndexError):
        world.read(64, 16)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [48, 256])
def test_a_unit_is_the_same_twice_whatever_else_there_is(kind, size):
    few = {"num_frames": 3, "clip_channels": ("image", "edge")}
    one, other = small(**few), small(**few, num_scenes=7, num_objects=50)
    i, j = one.units(kind)[1], other.units(kind)[1]
    for a, b in zip(one.read(i, size), other.read(j, size), strict=True):
        assert (a.id, a.group, a.view, a.label, a.meta) == (b.id, b.group, b.view, b.label, b.meta)
        assert {*a.channels} <= {*one.channels}
        for name, pictures in a.channels.items():
            assert pictures.shape == (a.num_pictures, size, size, 3) and pictures.dtype == np.uint8
            np.testing.assert_array_equal(pictures, b.channels[name])
        json.dumps(a.meta)


def test_splits_and_seeds_share_nothing():
    worlds = small(), small(split="test"), small(seed=1)
    for kind in KINDS[2:]:
        first = [[item for item in world.read(world.units(kind)[0], 32)] for world in worlds]
        assert len({item.group for items in first for item in items}) == 3
        pictures = [items[0].channels["image"] for items in first]
        for k in range(3):
            assert (pictures[k] != pictures[k - 1]).any(-1).mean() > 0.02


# Objects.


def names_of(scene):
    """What a class says is in the scene: kinds from the top, the small one beside left out."""
    if scene.figures:
        return "person"
    stack = [body for body in scene.things if (body.x, body.y) == (0.0, 0.0)]
    return " on ".join(THINGS[body.kind] for body in sorted(stack, key=lambda body: -body.z))


def test_the_label_of_an_object_names_what_stands_there():
    world = small()
    assert len(OBJECT_CLASSES) == 17 and world.labels[:17] == OBJECT_CLASSES
    for i in world.units("object"):
        assert world.labels[world.label(i)] == names_of(world.scene(i))
    assert [world.label(i) for i in world.units("object")] == [*range(17), *range(17)]


@pytest.mark.parametrize("size", [48, 256])
def test_an_object_is_the_largest_thing_in_its_picture_and_is_seen_whole(size):
    world = small(num_objects=17 * 6 if size == 48 else 17)
    cut = 0
    for i in world.units("object"):
        scene = world.scene(i)
        surfaces = cast(scene, size)
        ids = sampled(surfaces.thing)
        own = [k for k, body in enumerate(scene.things) if (body.x, body.y) == (0.0, 0.0)]
        mine = np.isin(ids, own) if not scene.figures else ids == len(scene.things)
        others = (ids >= 0) & ~mine
        assert mine.mean() > (0.015 if scene.figures else 0.05) and others.sum() < 0.6 * mine.sum()
        cut += mine[[0, -1]].any() or mine[:, [0, -1]].any()
        wanted = {CLASSES.index("figure")} if scene.figures else {1 + scene.things[k].kind for k in own}
        assert wanted <= set(np.unique(class_map(scene, surfaces)))
    assert cut == 0


def test_objects_have_the_channels_of_scenes():
    world = small(latents_per_scene=3)
    items = world.read(world.units("object")[0], 48)
    assert [item.view for item in items] == [0] + [1 + v for v in world.latents_of(4)]
    assert list(items[0].channels) == ["image", "depth", "normal", "gray", *OBJECT_CHANNELS]
    assert all(set(item.channels) == set(LATENT_CHANNELS) and item.label == 0 for item in items[1:])
    person = world.read(world.units("object")[16], 48)[0]
    assert "pose" in person.channels and person.channels["pose"].any() and person.label == 16
    few = small(channels=("image", "edge")).read(4, 48)
    assert [list(item.channels) for item in few] == [["image"], ["edge"], ["edge"]]


def test_labels_are_there_where_something_has_one():
    assert small(num_objects=0, num_puzzles=0).labels == ()
    labels = small().labels
    assert len(labels) == len(set(labels)) == 17 + len(RULE_SETS)
    assert labels[17] == "shape distribute" and small(num_objects=0).labels == labels


# Turntables and puzzles.


def test_a_turntable_is_one_item_of_24_pictures():
    world = small()
    (item,) = world.read(world.units("turntable")[0], 32)
    assert list(item.channels) == ["image", "depth", "normal", "mask", "keypoints"]
    assert item.num_pictures == 24 and item.label == -1 and item.group == item.id
    (item,) = small(channels=("image", "mask", "edge")).read(world.units("turntable")[0], 32)
    assert list(item.channels) == ["image", "mask"]


def test_a_puzzle_is_a_matrix_and_a_clip_of_its_panels():
    world = small()
    for i in world.units("puzzle"):
        matrix, panels = world.read(i, 32)
        assert list(matrix.channels) == ["image", "solution"] and list(panels.channels) == ["image"]
        assert matrix.num_pictures == 1 and panels.num_pictures == 9
        assert panels.id == f"{matrix.id}-panels" and panels.group == matrix.group == matrix.id
        rules = ", ".join(f"{name} {rule}" for name, rule in matrix.meta["puzzle"]["rules"].items())
        assert world.labels[matrix.label] == world.labels[panels.label] == rules
    matrix, _ = small(channels=("image",)).read(world.units("puzzle")[0], 32)
    assert list(matrix.channels) == ["image"]


# Clips.


@pytest.mark.parametrize("size", [48, 256])
def test_an_annotated_clip_is_under_one_trained_latent(size):
    world, plain = small(clip_channels=CLIP_CHANNELS, num_frames=3), small(num_frames=3)
    steady, drawn = world.read(2, size)
    (latent,) = world.latents_of(2)
    assert latent < world.num_trained_latents and (steady.view, drawn.view) == (0, 1 + latent)
    assert steady.id == drawn.id and steady.num_pictures == drawn.num_pictures == 3
    assert list(steady.channels) == ["image", "depth", "normal", "gray", "mask"]
    assert set(drawn.channels) == set(LATENT_CHANNELS) and drawn.label == -1
    np.testing.assert_array_equal(steady.channels["image"], plain.read(2, size)[0].channels["image"])
    palette = world.latents[latent].palette[: len(CLASSES)]
    for scene, shown, mask in zip(world.clip(0)[1], drawn.channels["segmentation"], steady.channels["mask"]):
        labels = class_map(scene, cast(scene, size))
        np.testing.assert_array_equal(segmentation.read(shown, palette), labels)
        np.testing.assert_array_equal(mask[..., 0] == 255, labels > 0)


def test_the_latents_of_clips_differ():
    world = small(num_clips=200)
    assert len({world.latents_of(i)[0] for i in world.units("clip")}) > 50


# Options.


@pytest.mark.parametrize(
    "changes",
    [
        {"num_scenes": -1},
        {"num_clips": -1},
        {"num_frames": 0},
        {"num_objects": -1},
        {"num_turntables": -1},
        {"num_puzzles": -2},
        {"clip_channels": ("depth",)},
        {"clip_channels": ("image", "pose")},
        {"channels": ("image", "colour")},
    ],
)
def test_an_impossible_world_is_refused_in_one_line(changes):
    with pytest.raises(UserError, match=next(iter(changes))) as refused:
        small(**changes)
    assert "\n" not in str(refused.value)


def test_the_shipped_world_of_sentences_has_some_of_everything():
    world = open_source("world_sentences")
    assert all(world.counts.values())
    assert {"mask", "keypoints", "solution", "segmentation"} <= set(world.channels)
    assert build(WorldConfig, {"clip_channels": ["image", "mask"]}).clip_channels == ("image", "mask")


def test_objects_are_shown_by_their_mask_and_by_the_box_about_it():
    world = small(num_objects=17, channels=("image", "segmentation", *OBJECT_CHANNELS))
    for unit in world.units("object"):
        steady = world.read(unit, 48)[0].channels
        mask, box = (steady[name][0, ..., 0] > 0 for name in OBJECT_CHANNELS)
        assert mask.any() and list(bounds(mask).values()) == list(bounds(box).values()) and not (mask & ~box).any()
        (left, top, right, bottom), *others = bounds(box).values()
        assert not others and box[top:bottom, left:right].all()
    scene = world.read(world.units("scene")[0], 48)[0].channels
    assert not {*OBJECT_CHANNELS} & {*scene} and {*OBJECT_CHANNELS} < {*world.channels}
    assert not {*OBJECT_CHANNELS} & {*small(num_objects=0).channels}
