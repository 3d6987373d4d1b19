"""Run lengths are COCO's: its own tool's strings are read, and every mask comes back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvm.pictures import masks


def squares():
    mask = np.zeros((7, 9), bool)
    mask[2:5, 3:8] = True
    mask[0, 0] = True
    return mask


def bars():
    mask = np.zeros((40, 50), bool)
    mask[:, 20:45] = True
    mask[3, 22] = False
    mask[10:13, ::7] = True
    return mask


@pytest.mark.parametrize("mask, text", [(squares(), "01f02^O00000005"), (bars(), ":3e8000^N`2nHQj0Y5_SOaK")])
def test_strings_are_those_of_pycocotools(mask, text):
    assert masks.compress(masks.encode(mask)) == text
    assert np.array_equal(masks.decode(masks.decompress(text), *mask.shape), mask)


@given(st.integers(1, 12), st.integers(1, 12), st.randoms(use_true_random=False), st.floats(0, 1))
def test_every_mask_comes_back(height, width, random, share):
    mask = np.array([[random.random() < share for _ in range(width)] for _ in range(height)])
    runs = masks.encode(mask)
    assert sum(runs) == mask.size and sum(runs[1::2]) == mask.sum() == masks.area(mask)
    assert masks.decompress(masks.compress(runs)) == runs
    assert np.array_equal(masks.decode(runs, height, width), mask)


@given(st.lists(st.integers(0, 2**26), max_size=20))
def test_every_list_of_run_lengths_comes_back(runs):
    assert masks.decompress(masks.compress(runs)) == runs


@given(st.text(max_size=30))
def test_any_text_is_run_lengths_or_a_value_error(text):
    try:
        masks.decode(masks.decompress(text), 8, 8)
    except ValueError as error:
        assert "mask's" in str(error)


@pytest.mark.parametrize("runs", [[], [63], [65], [70, -6], [0, -1, 65]])
def test_run_lengths_that_do_not_fill_the_mask_are_refused(runs):
    with pytest.raises(ValueError, match="do not fill 8 x 8"):
        masks.decode(runs, 8, 8)


def test_small_shapes_lie_above_large_ones_whatever_their_order():
    large, small = np.array([[1.0, 1], [8, 1], [8, 8], [1, 8]]), np.array([[3.0, 3], [5, 3], [5, 5], [3, 5]])
    dot = np.zeros((10, 10), bool)
    dot[4, 4] = True
    painted = masks.paint([dot, [small], [large]], 10, 10)
    assert painted[4, 4] == 1 and painted[3, 3] == 2 and painted[1, 1] == 3 and painted[0, 0] == 0
    assert masks.area([large]) == 49 and masks.area([large, small]) == 53
    assert np.array_equal(masks.paint([[large], [small], dot], 10, 10), np.array([0, 3, 2, 1])[painted])


def test_a_shape_in_two_parts_is_one():
    parts = [np.array([[0.0, 0], [2, 0], [2, 2], [0, 2]]), np.array([[6.0, 6], [9, 6], [9, 9], [6, 9]])]
    painted = masks.paint([parts], 10, 10)
    assert painted[1, 1] == painted[8, 8] == 1 and painted[5, 5] == 0
