"""Turntables: objects in one piece, never cut off, seen from 24 sides; their annotations true to the pictures."""

import numpy as np
import pytest

from lvm.pictures import depth, keypoints, normals
from lvm.world.assembled import _depth_inside
from lvm.world.scene import generator
from lvm.world.turntables import (
    NUM_VIEWS,
    TURNTABLE_CHANNELS,
    sample_turntable,
    view_channels,
    views,
    visible_points,
)


def sample(count):
    return [sample_turntable(generator(0, "test", k)) for k in range(count)]


def test_the_camera_goes_round_in_steps_of_15_degrees():
    for turntable in sample(20):
        assert 1.5 <= turntable.radius <= 2.2 and abs(np.degrees(turntable.elevation)) <= 45
        places = np.array([turntable.camera(view).frame()[0] for view in range(NUM_VIEWS + 1)])
        np.testing.assert_allclose(np.linalg.norm(places, axis=1), turntable.radius, rtol=1e-5)
        np.testing.assert_allclose(places[:, 2], turntable.radius * np.sin(turntable.elevation), atol=1e-5)
        angles = np.unwrap(np.arctan2(places[:, 1], places[:, 0]))
        np.testing.assert_allclose(np.diff(angles), np.radians(15), atol=1e-4)


@pytest.mark.parametrize("size", [48, 256])
def test_view_24_is_view_0_again_and_half_a_turn_is_not(size):
    turntable = sample(1)[0]
    first, again, behind = (view_channels(turntable, view, size) for view in (0, NUM_VIEWS, NUM_VIEWS // 2))
    for name in TURNTABLE_CHANNELS:
        assert (np.abs(first[name].astype(int) - again[name]).max(-1) > 2).mean() < 0.002, name
    assert (np.abs(first["image"].astype(int) - behind["image"]).max(-1) > 20).mean() > 0.02


def test_an_object_has_two_to_five_parts_that_hang_together():
    numbers = []
    for turntable in sample(40):
        numbers.append(len(turntable.parts))
        for part in turntable.parts[1:]:
            foot = part.place(np.array([[0.0, 0.0, 0.1 * part.height]]) - [[0, 0, 0.12 * part.height]])
            assert max(_depth_inside(other, foot)[0] for other in turntable.parts if other is not part) > -0.01
    assert set(numbers) == {2, 3, 4, 5}


@pytest.mark.parametrize("size", [48, 256])
def test_the_mask_is_where_depth_is_known_and_never_touches_the_border(size):
    for turntable in sample(12 if size == 48 else 1):
        drawn = views(turntable, size, ("depth", "mask"))
        for shown in drawn.values():
            assert shown.shape == (NUM_VIEWS, size, size, 3) and shown.dtype == np.uint8
        np.testing.assert_array_equal(drawn["mask"] == 255, drawn["depth"] > 0)
        mask = drawn["mask"][..., 0] > 0
        assert not (mask[:, [0, -1]].any() or mask[:, :, [0, -1]].any())
        assert mask.mean((1, 2)).min() > 0.03


def test_every_view_shows_the_same_object():
    """Whatever a view sees lies on the object: its depth, brought back into the room."""
    for turntable in sample(4):
        for view in (0, 7, 15):
            drawn, camera = view_channels(turntable, view, 64), turntable.camera(view)
            position, forward, right, up = camera.frame()
            ys, xs = np.nonzero(drawn["mask"][..., 0])
            ahead = depth.read(drawn["depth"], *turntable.depth_range)[ys, xs, None]
            half = np.tan(camera.field_of_view / 2)
            across, above = (2 * (xs + 0.75) / 64 - 1) * half, (1 - 2 * (ys + 0.75) / 64) * half
            points = position + ahead * (forward + across[:, None] * right + above[:, None] * up)
            nearest = np.max([_depth_inside(part, points) for part in turntable.parts], axis=0)
            assert np.abs(nearest).max() < 0.02
            facing = normals.read(drawn["normal"])[ys, xs]
            assert (facing[:, 2] > -0.35).all()  # to the camera, but for perspective


def test_keypoints_lie_on_the_object_and_can_be_read_back():
    shown = hidden = 0
    for turntable in sample(10):
        assert 2 <= len(turntable.points) <= 6
        points = np.array(turntable.points, np.float32)
        assert np.abs(np.max([_depth_inside(part, points) for part in turntable.parts], axis=0)).max() < 0.01
        for view in (0, 9):
            drawn = view_channels(turntable, view, 256)
            places = visible_points(turntable, view, 256)
            seen = places[np.isfinite(places).all(1)]
            shown, hidden = shown + len(seen), hidden + len(places) - len(seen)
            found = keypoints.read(drawn["keypoints"], photo=drawn["image"])
            apart = np.abs(seen[:, None] - seen).max(-1) + 99 * np.eye(len(seen)) > 9
            if apart.all():
                assert len(found) == len(seen)
                assert all(np.abs(found - place).max(1).min() <= 1 for place in seen)
    assert shown > 40 and hidden > 20


def test_only_the_channels_asked_for_are_drawn():
    assert list(views(sample(1)[0], 16, ("image", "mask"))) == ["image", "mask"]
