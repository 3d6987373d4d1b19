"""Skeletons: what is drawn is read back, on black and with joints missing or outside."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvm.pictures import skeletons

LSP = ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 12), (12, 9), (9, 10), (10, 11), (12, 13))


def black(size):
    return np.zeros((size, size, 3), np.uint8)


def apart(size, num_joints, seed):
    """Joints on a shuffled grid: no dot covers another."""
    random = np.random.default_rng(seed)
    cells = random.permutation(36)[:num_joints]
    step = size / 6
    return np.stack([cells % 6, cells // 6], 1) * step + step / 2 + random.uniform(-step / 8, step / 8, (num_joints, 2))


@pytest.mark.parametrize("size", [128, 256])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), missing=st.sets(st.integers(0, 13), max_size=6))
def test_joints_are_read_back_within_a_pixel(size, seed, missing):
    joints = apart(size, 14, seed)
    joints[list(missing)] = np.nan
    read = skeletons.read(skeletons.draw([joints], LSP, black(size)), 14, len(LSP))
    assert np.isnan(read).any(1).tolist() == [k in missing for k in range(14)]
    known = sorted(set(range(14)) - missing)
    assert np.abs(read[known] - joints[known]).max() <= 1


def test_joints_outside_the_picture_draw_what_is_inside():
    joints = np.array([[-40.0, 30.0], [30.0, 30.0], [30.0, 200.0]])
    drawn = skeletons.draw([joints], ((0, 1), (1, 2)), black(64))
    read = skeletons.read(drawn, 3, 2)
    assert np.isnan(read[[0, 2]]).all() and np.abs(read[1] - joints[1]).max() <= 1
    colours = skeletons.limb_colours(2)
    assert (drawn[30, 5] == colours[0]).all() and (drawn[60, 30] == colours[1]).all()


def test_every_part_has_a_colour_of_its_own():
    for joints, limbs in ((14, 14), (17, 19)):
        colours = np.concatenate([skeletons.joint_colours(joints), skeletons.limb_colours(limbs), np.zeros((1, 3))])
        distance = np.abs(colours[:, None].astype(int) - colours[None].astype(int)).sum(-1)
        assert distance[~np.eye(len(colours), dtype=bool)].min() >= 40


def test_the_photo_stays_beside_the_skeleton():
    photo = np.random.default_rng(0).integers(0, 256, (96, 96, 3)).astype(np.uint8)
    before = photo.copy()
    drawn = skeletons.draw([np.array([[20.0, 20.0], [20.0, 70.0]])], ((0, 1),), photo)
    assert (photo == before).all()
    changed = (drawn != photo).any(-1)
    assert changed[20:70, 20].mean() > 0.95 and not changed[:, 30:].any()


def test_nobody_is_an_empty_drawing():
    assert not skeletons.draw([], LSP, black(32)).any()
    assert not skeletons.draw([np.full((14, 2), np.nan)], LSP, black(32)).any()
