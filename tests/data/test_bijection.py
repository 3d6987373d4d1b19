"""The keyed permutation: a bijection, invertible, in two levels, the same alone and in a batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvm.data.bijection import permute, permute_in_blocks

KEY = st.integers(0, 2**64 - 1)


@given(st.integers(1, 3000), KEY)
@settings(max_examples=60, deadline=None)
def test_permute_is_a_permutation_and_its_inverse_undoes_it(size, key):
    x = np.arange(size)
    image = permute(x, size, np.uint64(key))
    assert np.array_equal(np.sort(image), x)
    assert np.array_equal(permute(image, size, np.uint64(key), inverse=True), x)


@given(st.integers(1, 2000), st.integers(1, 300), KEY)
@settings(max_examples=80, deadline=None)
def test_two_levels_are_a_permutation_that_keeps_blocks_together(size, block, key):
    image = permute_in_blocks(np.arange(size), size, np.uint64(key), block)
    assert np.array_equal(np.sort(image), np.arange(size))
    changes = np.count_nonzero(np.diff(image // block))
    assert changes == -(-size // block) - 1  # each block is visited in one go


@given(
    st.lists(st.tuples(st.integers(1, 500), st.integers(0, 2**32), KEY), min_size=1, max_size=20), st.integers(1, 60)
)
@settings(max_examples=40, deadline=None)
def test_elements_of_many_permutations_in_one_call_equal_single_calls(rows, block):
    size, x, key = (np.array(column, dtype) for column, dtype in zip(zip(*rows), (np.int64, np.int64, np.uint64)))
    x = x % size
    together = permute_in_blocks(x, size, key, block)
    alone = [int(permute_in_blocks(*row, block)[0]) for row in zip(x, size, key)]
    assert together.tolist() == alone


def test_the_short_last_block_is_permuted_like_the_others():
    places = [
        int(np.flatnonzero(permute_in_blocks(np.arange(35), 35, np.uint64(key), 10) >= 30)[0]) for key in range(60)
    ]
    assert set(places) == {0, 10, 20, 30}


def test_keys_give_orders_without_visible_structure():
    size = 1000
    images = np.stack([permute(np.arange(size), size, np.uint64(key)) for key in range(50)])
    assert np.abs(images.mean(0) - size / 2).max() < 6 * size / np.sqrt(12 * 50)  # no place prefers small numbers
    assert abs(np.corrcoef(images[:, :-1].ravel(), images[:, 1:].ravel())[0, 1]) < 0.02  # nor follows its neighbour


@pytest.mark.parametrize("size", [2**40 + 7])
def test_large_sizes_stay_inside_and_distinct(size):
    image = permute(np.arange(20_000), size, np.uint64(3))
    assert image.min() >= 0 and image.max() < size and len(np.unique(image)) == 20_000
