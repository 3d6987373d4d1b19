"""What is drawn reads back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvm.pictures import boxes, depth, derive, edges, normals, segmentation
from lvm.runtime import UserError


@given(st.integers(0, 2**32 - 1), st.integers(2, 256))
@settings(max_examples=25, deadline=None)
def test_segmentation_is_its_own_inverse(seed, num_classes):
    labels = np.random.default_rng(seed).integers(0, num_classes, (9, 7))
    palette = segmentation.PALETTE[:num_classes]
    np.testing.assert_array_equal(segmentation.read(segmentation.draw(labels, palette), palette), labels)


def test_the_palette_keeps_its_first_colours_far_apart():
    first = segmentation.PALETTE[:16].astype(int)
    distance = np.sqrt(((first[:, None] - first[None]) ** 2).sum(-1)) + 1e6 * np.eye(16)
    assert distance.min() > 120
    assert len(np.unique(segmentation.PALETTE, axis=0)) == 256


@given(st.floats(3.5, 16.0))
@settings(max_examples=50, deadline=None)
def test_depth_reads_back_within_half_a_gray_level(metres):
    picture = depth.draw(np.full((2, 2), metres), 3.5, 16.0)
    step = (1 / 3.5 - 1 / 16) / 255
    assert np.abs(1 / depth.read(picture, 3.5, 16.0) - 1 / metres).max() <= 0.51 * step


def test_near_is_bright_and_nothing_is_black():
    picture = depth.draw(np.array([[3.5, 8.0, np.inf]]), 3.5, 16.0)
    assert picture[0, 0, 0] == 255 and 0 < picture[0, 1, 0] < 255 and picture[0, 2, 0] == 0


def test_normals_read_back_within_a_degree():
    vectors = np.random.default_rng(0).normal(size=(32, 32, 3))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    back = normals.read(normals.draw(vectors))
    assert np.degrees(np.arccos(np.clip((vectors * back).sum(-1), -1, 1))).max() < 0.7
    assert not normals.read(normals.draw(np.zeros((2, 2, 3)))).any()


def test_edges_read_back():
    mask = np.random.default_rng(0).random((20, 20)) > 0.7
    np.testing.assert_array_equal(edges.read(edges.draw(mask, (250, 220, 30)), (250, 220, 30), (0, 0, 0)), mask)


def test_a_box_is_drawn_inside_its_bounds():
    photo = np.zeros((20, 20, 3), np.uint8)
    drawn = boxes.draw(photo, [(3, 4, 12, 18)], (255, 0, 0), 2)
    ys, xs = np.nonzero(drawn[..., 0])
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == (3, 4, 11, 17)
    assert not drawn[6:16, 5:10].any() and not photo.any()


@pytest.mark.parametrize("name", derive.DERIVED)
def test_derived_channels_are_keyed_and_keep_the_shape(name):
    photo = np.random.default_rng(1).integers(60, 200, (24, 30, 3)).astype(np.uint8)
    first, again = derive.derive(name, photo, 0.7, 5), derive.derive(name, photo, 0.7, 5)
    np.testing.assert_array_equal(first, again)
    assert first.shape == photo.shape and first.dtype == np.uint8 and (first != photo).any()
    if name in ("masked", "noisy"):
        assert (first != derive.derive(name, photo, 0.7, 6)).any()


def test_degradation_grows_with_strength():
    photo = np.full((32, 32, 3), 128, np.uint8)
    for name in ("masked", "noisy", "dark"):
        errors = [np.abs(derive.derive(name, photo, s, 3).astype(int) - 128).mean() for s in (0.0, 0.5, 1.0)]
        assert errors[0] < errors[1] < errors[2], name


def test_an_unknown_derived_channel_is_named():
    with pytest.raises(UserError, match="sepia"):
        derive.derive("sepia", np.zeros((4, 4, 3), np.uint8))
