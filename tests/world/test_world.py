"""The world: exact, deterministic, its splits disjoint, its annotations true to the picture."""

import numpy as np
import pytest

from lvm.pictures import edges, segmentation
from lvm.runtime import UserError
from lvm.sources.world import WorldConfig, WorldSource
from lvm.world.annotate import LATENT_CHANNELS, STEADY_CHANNELS, class_map, make_latents, sampled, visible_boxes
from lvm.world.render import cast
from lvm.world.scene import CLASSES


def small(**changes):
    return WorldSource(WorldConfig(**{"num_scenes": 20, "num_clips": 3, **changes}))


def assert_same(one, other):
    assert [(a.id, a.view, list(a.channels)) for a in one] == [(b.id, b.view, list(b.channels)) for b in other]
    for a, b in zip(one, other):
        for name in a.channels:
            np.testing.assert_array_equal(a.channels[name], b.channels[name])


def test_a_unit_depends_on_seed_split_and_index_alone():
    assert_same(small().read(7, 32), small(num_scenes=500).read(7, 32))
    other_seed, other_split = small(seed=1).read(7, 32)[0], small(split="test").read(7, 32)[0]
    here = small().read(7, 32)[0]
    assert (here.channels["image"] != other_seed.channels["image"]).mean() > 0.2
    assert (here.channels["image"] != other_split.channels["image"]).mean() > 0.2
    assert len({here.group, other_seed.group, other_split.group}) == 3


def test_a_scene_holds_every_channel_once_steady_and_once_for_each_latent():
    world = small(latents_per_scene=3)
    items = world.read(0, 48)
    assert [item.view for item in items] == [0] + [1 + v for v in world.latents_of(0)]
    assert tuple(items[0].channels) == STEADY_CHANNELS
    assert set(items[0].channels) | set(items[1].channels) == set(STEADY_CHANNELS + LATENT_CHANNELS)
    for item in items:
        for picture in item.channels.values():
            assert picture.shape == (1, 48, 48, 3) and picture.dtype == np.uint8
    assert items[0].meta["scene"]["things"]


@pytest.mark.parametrize("size", [32, 64, 256])
def test_segmentation_reads_back_to_the_classes_it_was_drawn_from(size):
    world = small()
    for i in range(3):
        scene = world.scene(i)
        surfaces = cast(scene, size)
        labels = class_map(scene, surfaces)
        latent = world.latents[i]
        drawn = world.draw(i, [i], size)[1]["segmentation"]
        np.testing.assert_array_equal(segmentation.read(drawn, latent.palette[: len(CLASSES)]), labels)


def test_only_the_channels_asked_for_are_drawn():
    world = small(channels=("image", "edge"))
    assert world.channels == ("image", "edge")
    assert [list(item.channels) for item in world.read(0, 32)] == [["image"], ["edge"], ["edge"]]
    np.testing.assert_array_equal(world.read(0, 32)[1].channels["edge"], small().read(0, 32)[1].channels["edge"])


def test_nearer_things_hide_farther_ones():
    world = small(num_things=(4, 6))
    for i in range(5):
        surfaces = cast(world.scene(i), 48)
        for index, body in enumerate(world.scene(i).things):
            seen = surfaces.depth[surfaces.thing == index]
            if len(seen):  # whatever is seen of a body lies within its bounds
                centre = np.hypot(body.x, body.y - (-6.0))
                assert abs(np.median(seen) - centre) < 2.5
        # a ray's depth is never beyond the ground it would have hit
        assert (surfaces.point[surfaces.thing >= 0][:, 2] > -1e-2).all()


def test_boxes_hold_exactly_what_is_seen_of_a_thing():
    world = small()
    scene = world.scene(3)
    surfaces = cast(scene, 64)
    ids = sampled(surfaces.thing)
    for left, top, right, bottom in visible_boxes(scene, surfaces):
        touching = [k for k in range(len(scene.things)) if (ids[top:bottom, left:right] == k).any()]
        assert any(
            (np.argwhere(ids == k).min(0) == (top, left)).all()
            and (np.argwhere(ids == k).max(0) == (bottom - 1, right - 1)).all()
            for k in touching
        )


def test_edges_lie_where_the_segmentation_changes():
    world = small()
    for i in range(4):
        drawn = world.draw(i, [0], 64)[1]
        line = edges.read(drawn["edge"], world.latents[0].line, (0, 0, 0))
        labels = segmentation.read(drawn["segmentation"], world.latents[0].palette)
        change = labels[1:, 1:] != labels[:-1, 1:]
        near = line[1:, 1:] | line[:-1, 1:]
        assert near[change].mean() > 0.95
        assert line.mean() < 0.45


def test_latents_differ_and_the_held_out_tenth_is_never_drawn():
    world = small(num_scenes=400)
    palettes = {latent.palette.tobytes() for latent in make_latents(0, 72)}
    assert len(palettes) == 72
    assert len(world.held_out_latents) == 7
    drawn = [v for i in range(400) for v in world.latents_of(i)]
    assert set(drawn) == set(range(65))
    assert np.bincount(drawn).max() < 3 * np.bincount(drawn).mean()


def test_clips_move_by_several_pixels_a_frame():
    world = small(num_clips=6)
    shares = []
    for i in range(20, 26):
        frames = world.read(i, 48)[0].channels["image"].astype(int)
        assert frames.shape == (16, 48, 48, 3)
        shares.append((np.abs(np.diff(frames, axis=0)).max(-1) > 25).mean())
    assert min(shares) > 0.01 and np.mean(shares) > 0.05


def test_every_object_kind_and_ground_appears():
    world = small(num_scenes=200)
    kinds = {thing.kind for i in range(100) for thing in world.scene(i).things}
    assert kinds == {0, 1, 2, 3}
    assert {world.scene(i).texture for i in range(100)} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "changes", [{"num_things": (3, 2)}, {"num_things": (0, 2)}, {"latents_per_scene": 80}, {"channels": ("edge",)}]
)
def test_an_impossible_world_is_refused(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        small(**changes)
