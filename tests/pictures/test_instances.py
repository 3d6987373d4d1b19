"""Instances: the map reads back exactly up to the instances' numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvm.pictures import instances, segmentation

SEEDS = st.integers(0, 2**32 - 1)


def same_up_to_numbers(a, b):
    pairs = np.unique(np.stack([a.reshape(-1), b.reshape(-1)]), axis=1)
    return len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1] and ((a == 0) == (b == 0)).all()


@given(SEEDS, st.integers(1, 255), st.integers(1, 20), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_touching_scattered_and_single_pixel_instances_read_back(seed, most, height, width):
    random = np.random.default_rng(seed)
    numbers = np.concatenate([[0], random.choice(np.arange(-500, 500), most - 1, replace=False)])
    labels = random.choice(numbers, (height, width))
    found = instances.read(instances.draw(labels))
    assert same_up_to_numbers(labels, found)
    np.testing.assert_array_equal(found, instances.by_size(labels))


@given(SEEDS, st.integers(1, 14))
@settings(max_examples=40, deadline=None)
def test_masks_that_overlap_read_back_as_what_is_seen_of_them(seed, number):
    random = np.random.default_rng(seed)
    masks = np.zeros((number, 24, 24), bool)
    for mask in masks:
        (left, right), (top, bottom) = (np.sort(random.choice(25, 2, replace=False)) for _ in range(2))
        mask[top:bottom, left:right] = True
    palette = segmentation.PALETTE[: number + 1]
    found = instances.read(instances.draw(instances.from_masks(masks), palette), palette)
    seen = [mask & ~masks[n + 1 :].any(0) for n, mask in enumerate(masks)]
    wanted = {mask.tobytes() for mask in seen if mask.any()}
    assert {(found == k).tobytes() for k in range(1, found.max() + 1)} == wanted
    sizes = np.bincount(found.reshape(-1))[1:]
    assert (np.diff(sizes) <= 0).all()


def test_specks_are_dropped_and_nothing_is_black():
    labels = np.zeros((8, 8), int)
    labels[:4], labels[7, 7] = 9, 3
    drawn = instances.draw(labels)
    assert instances.read(drawn).max() == 2 and instances.read(drawn, least=2).max() == 1
    assert not instances.draw(np.zeros((4, 4), int)).any() and not instances.read(np.zeros((4, 4, 3), np.uint8)).any()


def test_more_instances_than_colours_are_an_error_with_both_numbers():
    with pytest.raises(ValueError, match="5 instances in a picture, and 4 colours"):
        instances.draw(np.arange(6).reshape(2, 3), segmentation.PALETTE[:5])
