"""Keypoints drawn as dots read back within half a pixel, wherever in the frame; those off it are not drawn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvm.pictures import keypoints
from lvm.pictures.skeletons import joint_colours

SEEDS = st.integers(0, 2**32 - 1)


def sample(seed, height, width, apart, number=12):
    """Points in and about the frame, some NaN; the pixels of any two are `apart` or more in x or in y."""
    random = np.random.default_rng(seed)
    points = []
    for point in random.uniform(-0.2, 1.2, (number, 2)) * (width, height):
        if random.random() < 0.3:  # to the frame's very border
            point[0] = random.choice([0.0, np.nextafter(width, 0), -1e-9, width])
        if all((np.abs(np.floor(point) - np.floor(other)) >= apart).any() for other in points):
            points.append(point)
    points = np.array(points)
    points[random.random(len(points)) < 0.1] = np.nan
    seen = (points >= 0).all(1) & (points < (width, height)).all(1)
    return points, seen


def grounds(seed, height, width):
    photo = np.random.default_rng(seed).integers(90, 165, (height, width, 3)).astype(np.uint8)
    return (np.zeros_like(photo), None), (photo, photo)


@given(SEEDS, st.integers(0, 3), st.integers(9, 60), st.integers(9, 60))
@settings(max_examples=60, deadline=None)
def test_red_dots_apart_read_back_within_half_a_pixel(seed, half, height, width):
    points, seen = sample(seed, height, width, 2 * half + 2)
    wanted = points[seen]
    for ground, photo in grounds(seed, height, width):
        found = keypoints.read(keypoints.draw(ground, points, half=half), photo=photo, half=half)
        assert len(found) == len(wanted)
        for point in wanted:
            assert np.abs(found - point).max(1).min() <= 0.5


@given(SEEDS, st.integers(0, 3), st.integers(9, 60), st.integers(9, 60))
@settings(max_examples=60, deadline=None)
def test_dots_of_a_colour_each_keep_their_names_and_may_touch(seed, half, height, width):
    points, seen = sample(seed, height, width, 2 * half + 1)
    colours = joint_colours(len(points))
    for ground, photo in grounds(seed, height, width):
        found = keypoints.read_each(keypoints.draw(ground, points, colours, half), colours, photo, half)
        assert np.isnan(found).any(1).tolist() == (~seen).tolist()
        assert (np.abs(found[seen] - points[seen]) <= 0.5).all()


def test_the_default_dot_is_seven_pixels_of_256_and_the_photo_stays():
    photo = np.full((256, 256, 3), 90, np.uint8)
    drawn = keypoints.draw(photo, np.array([[100.5, 40.5]]))
    ys, xs = np.nonzero((drawn != photo).any(-1))
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (97, 103, 37, 43) and (photo == 90).all()
    np.testing.assert_array_equal(keypoints.read(drawn, photo=photo), [[100.5, 40.5]])


def test_no_points_draw_nothing_and_specks_are_left_out():
    black = np.zeros((32, 32, 3), np.uint8)
    assert not keypoints.draw(black, np.zeros((0, 2))).any() and keypoints.read(black).shape == (0, 2)
    assert keypoints.draw(black, np.zeros((0, 2)), np.zeros((0, 3))).shape == black.shape
    speck = keypoints.draw(black, np.array([[5.0, 5.0]]), half=0)
    assert len(keypoints.read(speck)) == 1 and len(keypoints.read(speck, least=2)) == 0
    assert np.isnan(keypoints.read_each(speck, np.array([keypoints.RED]), least=2)).all()


def test_a_colour_too_few_is_an_error():
    with pytest.raises(ValueError):
        keypoints.draw(np.zeros((8, 8, 3), np.uint8), np.ones((3, 2)), np.zeros((2, 3)))


@given(SEEDS, st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_faint_dots_are_found_the_clearest_first(seed, half):
    """Dots mixed with the photo at known strengths: those of enough strength come back, in their order."""
    points, seen = sample(seed, 60, 60, 4 * half + 3)
    inside = seen & (points >= half).all(1) & (points < 60 - half).all(1)
    points = points[inside]
    strengths = np.random.default_rng(seed).permutation(len(points)) / max(1, len(points)) * 0.9 + 0.05
    photo = np.random.default_rng(seed).integers(40, 60, (60, 60, 3), dtype=np.uint8)
    picture = photo.astype(float)
    for point, strength in zip(points, strengths):
        drawn = keypoints.draw(photo, point[None], half=half).astype(float)
        picture += strength * (drawn - photo)
    found = keypoints.find(np.rint(picture).astype(np.uint8), photo, half=half, least=0.3)
    clear = np.flatnonzero(strengths > 0.32)
    wanted = points[clear[np.argsort(-strengths[clear])]]
    assert len(found) >= len(wanted) and np.abs(found[: len(wanted)] - wanted).max(initial=0) <= 0.5
    assert len(found) <= (strengths > 0.28).sum()
    assert len(keypoints.find(photo, photo)) == 0 and len(keypoints.find(picture.astype(np.uint8), photo, most=1)) <= 1
