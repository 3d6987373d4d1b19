"""What is drawn reads back."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lvm.pictures import boxes, depth, edges, normals, segmentation

SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS, st.integers(2, 256))
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


def test_near_is_bright_and_nothing_is_black():
    picture = depth.draw(np.array([[3.5, 8.0, np.inf]]), 3.5, 16.0)
    assert picture[0, 0, 0] == 255 and 0 < picture[0, 1, 0] < 255 and picture[0, 2, 0] == 0


@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_normals_read_back_within_a_degree_and_no_surface_stays_none(seed):
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(20, 20, 3)) * random.choice([0, 1, 1], (20, 20, 3))  # along axes and planes too
    bare = ~vectors.any(-1)
    vectors /= np.where(bare[..., None], 1, np.linalg.norm(vectors, axis=-1, keepdims=True))
    back = normals.read(normals.draw(vectors))
    assert not back[bare].any()
    cosines = np.clip((vectors * back).sum(-1)[~bare], -1, 1)
    assert np.degrees(np.arccos(cosines)).max() < 0.7


@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_edges_of_any_two_colours_read_back(seed):
    random = np.random.default_rng(seed)
    mask, line = random.random((20, 20)) > 0.7, random.integers(0, 256, 3)
    ground = (line + random.integers(1, 255, 3)) % 256
    np.testing.assert_array_equal(edges.read(edges.draw(mask, line, ground), line, ground), mask)


def test_a_box_is_drawn_inside_its_bounds():
    photo = np.zeros((20, 20, 3), np.uint8)
    drawn = boxes.draw(photo, [(3, 4, 12, 18)], (255, 0, 0), 2)
    ys, xs = np.nonzero(drawn[..., 0])
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == (3, 4, 11, 17)
    assert not drawn[6:16, 5:10].any() and not photo.any()
