"""Skeletons: what is drawn is read back, on black and with joints missing or outside."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from lvm.pictures import skeletons
from lvm.world.figures import LIMBS, sample_figure

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


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), missing=st.sets(st.integers(0, 13), max_size=4))
def test_joints_off_the_frame_are_not_read_and_those_at_its_border_within_a_dot(seed, missing):
    joints = apart(160, 14, seed) - 32  # in and about 96 pixels
    joints[list(missing)] = np.nan
    width = 2
    read = skeletons.read(skeletons.draw([joints], LSP, black(96), width), 14, len(LSP), least=1)
    for k in range(14):
        if not (joints[k] > -width - 1).all() or not (joints[k] < 96 + width).all():
            assert np.isnan(read[k]).all()
        elif (joints[k] >= 0).all() and (joints[k] <= 95).all():
            cut = (joints[k] < width + 1).any() or (joints[k] > 94 - width).any()
            assert np.abs(read[k] - joints[k]).max() <= (width if cut else 1)


def crowd(number, seed):
    """People of the world at random in cells of 128 pixels, a third of them with joints missing at their ends."""
    random, people = np.random.default_rng(seed), []
    while len(people) < number:
        points = sample_figure(random).joints()[:, [0, 2]] * (1, -1)
        points = (points - points.min(0)) / np.ptp(points, axis=0).max() * 100 + 12 + (128 * len(people), 0)
        if random.random() < 0.3:
            points[[0, 6]] = np.nan
        near = np.linalg.norm(points[:, None] - points, axis=-1) + 1e3 * np.eye(14)
        if np.nanmin(near) > 6:
            people.append(points)
    return people


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), number=st.integers(0, 3))
def test_people_beside_each_other_are_read_one_by_one(seed, number):
    people = crowd(number, seed)
    drawn = skeletons.draw(people, LIMBS, np.zeros((128, 384, 3), np.uint8), 2)
    read = skeletons.read_people(drawn, 14, LIMBS)
    assert len(read) == number
    for found, true in zip(read, people):
        np.testing.assert_array_equal(np.isnan(found), np.isnan(true))
        assert np.nanmax(np.abs(found - true)) <= 1


def test_people_who_cross_are_told_apart():
    one = np.array([[10.0, 10], [80, 80], [80, 10]])
    other = np.array([[10.0, 84], [84, 14], [50, 90]])
    limbs = ((0, 1), (1, 2))
    read = skeletons.read_people(skeletons.draw([one, other], limbs, black(96), 2), 3, limbs)
    assert len(read) == 2
    for true in (one, other):
        assert min(np.abs(found - true).max() for found in read) <= 1


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


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_joints_are_found_in_a_blurred_drawing(seed):
    joints = apart(128, 14, seed)
    drawn = skeletons.draw([joints], LSP, black(128))
    blurred = np.asarray(Image.fromarray(drawn).filter(ImageFilter.GaussianBlur(1.5)))
    assert np.median(np.abs(skeletons.find(blurred, 14) - joints).max(1)) <= 1.5
    assert np.abs(skeletons.find(drawn, 14) - joints).max() <= 2
