"""Depth: the stated map and its bound, unknown told from far, a range of its own for each picture."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvm.pictures import depth

SEEDS = st.integers(0, 2**32 - 1)


def sample(seed, shape=(11, 13)):
    """Depths from 1 mm to 10 km, some infinite, NaN, 0 or negative; and which are known."""
    random = np.random.default_rng(seed)
    depths = np.exp(random.uniform(np.log(1e-3), np.log(1e4), shape))
    kind = random.integers(0, 12, shape)
    for k, value in enumerate((np.inf, np.nan, 0.0, -1.0)):
        depths[kind == k] = value
    return depths, depths > 0


@given(SEEDS, st.floats(0.01, 10.0), st.floats(1.5, 1000.0))
@settings(max_examples=60, deadline=None)
def test_metres_read_back_within_half_a_level_and_unknown_is_told_from_far(seed, near, ratio):
    depths, known = sample(seed)
    far = near * ratio
    found = depth.read_metric(depth.draw_metric(depths, near, far), near, far)
    assert np.isnan(found[~known]).all() and not np.isnan(found[known]).any()
    off = np.abs(np.log(found[known] / np.clip(depths[known], near, far)))
    assert off.max() <= np.log(ratio) * 0.5 / 254 + 1e-9


def test_the_default_range_of_metres_errs_by_a_hundredth():
    metres = np.linspace(depth.NEAR_METRES, depth.FAR_METRES, 5000)[None]
    assert np.abs(depth.read_metric(depth.draw_metric(metres)) / metres - 1).max() < 0.0101


@given(SEEDS, st.floats(0.01, 10.0), st.floats(1.5, 1000.0))
@settings(max_examples=60, deadline=None)
def test_inverse_depth_reads_back_within_half_a_level_and_unknown_is_black(seed, near, ratio):
    depths, known = sample(seed)
    far = near * ratio
    picture = depth.draw(depths, near, far)
    assert not picture[~known].any() and (picture[..., 0] == picture[..., 2]).all()
    wanted = 1 / np.clip(depths[known], near, far)
    assert np.abs(1 / depth.read(picture, near, far)[known] - wanted).max() <= 0.51 * (1 / near - 1 / far) / 255


def test_a_relative_picture_uses_all_grays_whatever_the_unit():
    metres = np.random.default_rng(0).uniform(2, 30, (40, 40))
    metres[0, 0], metres[0, 1], metres[0, 2] = np.inf, np.nan, 0
    near, far = depth.percentiles(metres)
    assert 2 < near < 3 and 28 < far < 30
    picture = depth.draw(metres, near, far)
    assert picture.max() == 255 and picture.min() == 0
    feet = metres * 3.2808
    assert np.abs(picture.astype(int) - depth.draw(feet, *depth.percentiles(feet))).max() <= 1


def test_a_picture_without_depth_or_with_one_depth_has_a_range():
    for depths in (np.full((2, 2), np.nan), np.full((2, 2), 3.0), np.zeros((2, 2))):
        near, far = depth.percentiles(depths)
        assert 0 < near < far
        depth.draw(depths, near, far)


def test_disparity_is_inverse_depth():
    found = depth.from_disparity(np.array([[60.0, 0.0, -1.0, np.nan]]), focal=720, baseline=0.5)
    assert found[0, 0] == pytest.approx(6.0) and np.isnan(found[0, 1:]).all()
