"""annotations: some of an image and its annotations, one choice and one order for all tuples of a sentence."""

from itertools import permutations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from recipe_items import BY_VIEW, ITEMS, STEADY, about_equal, admitted, keys, names_of, read, units_of

from lvm.sentences import ANSWER, INPUT, Annotations

FIVE = ("image", "depth", "normal", "gray", "edge")


def test_the_reference_shows_three_tuples_of_all_five():
    recipe = Annotations(FIVE)
    assert recipe.pictures == 15 and recipe.units == 3
    assert recipe.roles().tolist() == [INPUT, ANSWER, ANSWER, ANSWER, ANSWER] * 3
    sentence = read(recipe, "scene1.2", "scene4.2", "scene7.2", key=3)
    order = [text.split()[1] for text in sentence[:5]]
    assert sorted(order) == sorted(FIVE)
    assert sentence == [f"{item} {channel}" for item in ("scene1.2", "scene4.2", "scene7.2") for channel in order]


@given(st.permutations(STEADY + BY_VIEW), st.integers(2, 6), st.integers(1, 4), st.integers(0, 2**32))
def test_all_tuples_of_a_sentence_share_a_choice_of_different_channels_in_one_order(channels, choose, tuples, seed):
    recipe = Annotations(tuple(channels), choose=choose, tuples=tuples)
    shown = recipe.compose(units_of(recipe, 10, seed), keys(10, seed), ITEMS)
    orders = shown.channel.reshape(10, tuples, choose)
    assert (orders == orders[:, :1]).all()
    assert all(len(set(order)) == choose for order in orders[:, 0].tolist())
    assert recipe.pictures == tuples * choose


def test_each_ordered_choice_is_drawn_about_equally_often():
    recipe = Annotations(("image", "depth", "normal", "gray"), choose=2, tuples=1)
    shown = recipe.compose(units_of(recipe, 6000), keys(6000), ITEMS)
    assert about_equal([tuple(order) for order in shown.channel.tolist()], list(permutations(range(4), 2)))


def test_each_order_of_all_channels_is_drawn_about_equally_often():
    recipe = Annotations(("normal", "image", "depth"), tuples=2)
    shown = recipe.compose(units_of(recipe, 3000), keys(3000), ITEMS)
    assert about_equal([tuple(order) for order in shown.channel[:, :3].tolist()], list(permutations(range(3))))


def test_an_item_must_have_all_candidates_even_where_some_are_chosen():
    recipe = Annotations(("image", "depth"), choose=2)
    assert names_of(admitted(recipe)) == {f"scene{i}" for i in range(12)}
    views = admitted(Annotations(FIVE, choose=2, agree="view", exclude_views=(3,)))
    assert set(ITEMS.view[views]) == {1, 2}
    assert np.isin(ITEMS.num_pictures[views], 1).all()
