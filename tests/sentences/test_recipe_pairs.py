"""pairs: input, answer, input, answer, ... of several items."""

import numpy as np
from recipe_items import ITEMS, about_equal, admitted, keys, names_of, read, units_of

from lvm.sentences import ANSWER, INPUT, Pairs


def test_the_pairs_of_the_paper_alternate_image_and_annotation():
    assert read(Pairs("image", "depth", pictures=4), "scene7", "scene2") == [
        "scene7 image",
        "scene7 depth",
        "scene2 image",
        "scene2 depth",
    ]
    eight = Pairs("image", "depth")
    assert eight.units == 8 and eight.pictures == 16
    assert eight.roles().tolist() == [INPUT, ANSWER] * 8


def test_what_a_view_lacks_is_read_from_its_view_0():
    pair = Pairs("image", "edge", pictures=2)
    assert read(pair, "scene3.1") == ["scene3.1 image", "scene3.1 edge"]  # found by `read` though view 1 has no image


def test_with_either_a_coin_for_the_sentence_says_which_channel_asks():
    pair = Pairs("image", "depth", pictures=4, either=True)
    forth = ["scene7 image", "scene7 depth", "scene2 image", "scene2 depth"]
    back = ["scene7 depth", "scene7 image", "scene2 depth", "scene2 image"]
    drawn = [tuple(read(pair, "scene7", "scene2", key=key)) for key in range(600)]
    assert about_equal(drawn, [tuple(forth), tuple(back)])
    assert pair.roles().tolist() == [INPUT, ANSWER] * 2


def test_without_either_the_input_always_asks():
    pair = Pairs("image", "depth", pictures=4)
    shown = pair.compose(units_of(pair, 500), keys(500), ITEMS)
    assert (shown.channel == np.array([0, 1, 0, 1])).all()


def test_a_pair_is_admitted_once_for_what_the_item_itself_holds():
    """A view that only borrows both channels would repeat its view 0; one that owns either is a pair of its own."""
    scenes = {f"scene{i}" for i in range(12)}
    assert names_of(admitted(Pairs("image", "depth"))) == scenes
    assert names_of(admitted(Pairs("gray", "image"))) == scenes
    for recipe in (Pairs("image", "edge"), Pairs("segmentation", "image"), Pairs("edge", "segmentation")):
        items = admitted(recipe)
        assert (ITEMS.view[items] > 0).all() and len(items) == 24


def test_excluded_views_are_never_admitted():
    assert set(ITEMS.view[admitted(Pairs("image", "edge", agree="view", exclude_views=(2, 3)))]) == {1}


def test_clips_are_no_pairs_though_they_hold_both_channels():
    assert (ITEMS.num_pictures[admitted(Pairs("image", "depth"))] == 1).all()
    assert ITEMS.has("depth")[ITEMS.num_pictures > 1].any()


def test_what_is_left_out_of_pairs_is_said_in_words_that_plans_count():
    said = [(condition.otherwise, condition.lacks) for condition in Pairs("image", "depth").conditions(ITEMS)]
    assert said == [
        ("clips", False),
        ("excluded view", False),
        ("neither image nor depth of their own", False),
        ("no image", True),
        ("no depth", True),
    ]
