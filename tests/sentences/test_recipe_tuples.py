"""tuples: several channels of an item in the order given, of several items."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from recipe_items import BY_VIEW, ITEMS, STEADY, admitted, keys, names_of, read, units_of

from lvm.sentences import ANSWER, INPUT, Pairs, Tuples


def test_a_tuple_shows_the_channels_in_the_order_given_and_then_the_next_item():
    assert read(Tuples(("image", "depth", "normal"), tuples=2), "scene7", "scene2") == [
        "scene7 image",
        "scene7 depth",
        "scene7 normal",
        "scene2 image",
        "scene2 depth",
        "scene2 normal",
    ]
    assert read(Tuples(("normal", "image"), tuples=1), "scene7") == ["scene7 normal", "scene7 image"]


def test_the_first_of_a_tuple_is_an_input_and_the_others_answer():
    recipe = Tuples(("image", "depth", "normal"), tuples=2)
    assert recipe.roles().tolist() == [INPUT, ANSWER, ANSWER] * 2
    assert recipe.pictures == 6 and recipe.units == 2
    assert Tuples(("image", "depth", "normal")).pictures == 15


@given(st.lists(st.sampled_from(STEADY + BY_VIEW), min_size=2, max_size=2, unique=True), st.integers(1, 5))
def test_a_tuple_of_two_is_a_pair(channels, count):
    two, pair = Tuples(tuple(channels), tuples=count), Pairs(*channels, pictures=2 * count)
    assert [c.otherwise for c in two.conditions(ITEMS)] == [c.otherwise for c in pair.conditions(ITEMS)]
    assert np.array_equal(admitted(two), admitted(pair))
    units = units_of(two, 5)
    one, other = two.compose(units, keys(5), ITEMS), pair.compose(units, keys(5), ITEMS)
    assert np.array_equal(one.item, other.item) and np.array_equal(one.channel, other.channel)
    assert two.roles().tolist() == pair.roles().tolist()


def test_an_item_fills_a_tuple_if_it_has_all_channels_and_one_of_its_own():
    steady = Tuples(("image", "depth", "normal"))
    assert names_of(admitted(steady)) == {f"scene{i}" for i in range(12)}  # not the bare ones, nor clips
    mixed = admitted(Tuples(("image", "depth", "edge")))
    assert len(mixed) == 24 and (ITEMS.view[mixed] > 0).all()
    assert set(ITEMS.view[admitted(Tuples(("image", "depth", "edge"), agree="view", exclude_views=(2,)))]) == {1, 3}
    said = [condition.otherwise for condition in steady.conditions(ITEMS)]
    assert said[0] == "clips" and said[2] == "none of image, depth, normal of their own"
