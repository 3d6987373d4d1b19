"""What holds for the sentences of every recipe, whatever its options."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_items import BY_VIEW, ITEMS, STEADY, admitted, keys, units_of

from lvm.runtime import UserError, build
from lvm.sentences import ANSWER, INPUT, RECIPES

AGREE = st.sampled_from(["none", "label", "view", "group"])
STRIDES = st.lists(st.integers(1, 5), min_size=1, max_size=3)
BOTH = st.booleans()
FEW = st.integers(1, 3)


def channels_of(names, least):
    return st.lists(st.sampled_from(names), min_size=least, max_size=4, unique=True)


@st.composite
def annotations(draw):
    channels = draw(channels_of(STEADY + BY_VIEW, 2))
    choose = draw(st.none() | st.integers(2, len(channels)))
    return {"channels": channels, "choose": choose, "tuples": draw(FEW), "agree": draw(AGREE)}


OPTIONS = {
    "single": {"channel": st.sampled_from(STEADY + BY_VIEW)},
    "category": {"classes": FEW, "each": FEW, "channels": channels_of(STEADY + BY_VIEW, 1)},
    "pairs": {
        "input": st.sampled_from(STEADY),
        "output": st.sampled_from(STEADY + BY_VIEW),
        "pictures": st.integers(1, 8).map(lambda pairs: 2 * pairs),
        "agree": AGREE,
        "either": BOTH,
    },
    "tuples": {"channels": channels_of(STEADY + BY_VIEW, 2), "tuples": FEW, "agree": AGREE},
    "annotations": annotations(),
    "video": {"frames": st.integers(2, 9), "strides": STRIDES, "reverse": BOTH},
    "annotated_video": {
        "channels": st.sampled_from([("image", "segmentation"), ("image", "depth", "segmentation")]),
        "frames": st.integers(2, 5),
        "clips": FEW,
        "strides": STRIDES,
        "layout": st.sampled_from(["interleave", "block", "both"]),
        "agree": st.sampled_from(["none", "view", "group"]),
    },
    "multiview": {
        "views": st.integers(2, 9),
        "objects": FEW,
        "channels": st.sampled_from([("image",), ("image", "edge")]),
        "strides": STRIDES,
        "reverse": BOTH,
        "around": BOTH,
        "layout": st.sampled_from(["interleave", "block"]),
        "agree": st.sampled_from(["none", "label", "group"]),
    },
    "puzzles": {"puzzles": FEW, "agree": st.sampled_from(["none", "label"])},
    "verbatim": {"pictures": st.sampled_from([1, 9, 16, 20, 24])},
}


@st.composite
def recipes(draw):
    name = draw(st.sampled_from(sorted(OPTIONS)))
    options = OPTIONS[name]
    values = draw(st.fixed_dictionaries(options) if isinstance(options, dict) else options)
    return build(RECIPES[name], values, name)


def equal(one, other):
    return all(np.array_equal(getattr(one, field), getattr(other, field)) for field in ("item", "channel", "frame"))


def test_every_recipe_is_known_by_its_name_and_drawn_here():
    assert {name: recipe.name for name, recipe in RECIPES.items()} == {name: name for name in OPTIONS}


@given(recipes(), st.integers(0, 2**32))
@settings(max_examples=150)
def test_a_sentence_has_as_many_pictures_and_roles_as_declared_and_all_of_them_exist(recipe, seed):
    shown = recipe.compose(units_of(recipe, 20, seed), keys(20, seed), ITEMS)
    for numbers in (shown.item, shown.channel, shown.frame):
        assert numbers.shape == (20, recipe.pictures)
    assert ITEMS.holds(shown).all()
    roles = recipe.roles()
    assert roles.shape == (recipe.pictures,) and roles.dtype == np.int8
    assert set(roles.tolist()) <= {INPUT, ANSWER} and roles[0] == INPUT


@given(recipes(), st.integers(0, 2**32))
@settings(max_examples=100)
def test_the_pictures_of_a_unit_stand_together_in_the_order_of_units_so_those_that_agree_do(recipe, seed):
    units = units_of(recipe, 5, seed)
    shown = recipe.compose(units, keys(5, seed), ITEMS)
    each = recipe.pictures // recipe.units
    assert np.array_equal(shown.item, np.repeat(units, each, axis=1))
    assert recipe.units % recipe.together == 0
    if recipe.agree != "none":
        column = getattr(ITEMS, recipe.agree)[shown.item].reshape(5, -1, recipe.together * each)
        assert (column == column[..., :1]).all()


@given(recipes(), st.integers(0, 2**32))
@settings(max_examples=100)
def test_composing_a_batch_equals_composing_one_by_one_and_again(recipe, seed):
    units, noise = units_of(recipe, 6, seed), keys(6, seed)
    batch = recipe.compose(units, noise, ITEMS)
    assert equal(recipe.compose(units, noise, ITEMS), batch)
    for i in range(6):
        one = recipe.compose(units[i : i + 1], noise[i : i + 1], ITEMS)
        for field in ("item", "channel", "frame"):
            assert np.array_equal(getattr(one, field)[0], getattr(batch, field)[i])


@given(recipes())
@settings(max_examples=100)
def test_no_picture_is_shown_twice_for_one_unit(recipe):
    distinct = len({recipe.input, recipe.output}) if recipe.name == "pairs" else recipe.pictures // recipe.units
    shown = recipe.compose(units_of(recipe, 20), keys(20), ITEMS)
    pictures = (shown.channel * 1000 + shown.frame).reshape(20 * recipe.units, -1)
    assert {len(set(row)) for row in pictures.tolist()} == {distinct}


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("single", {"channel": "depht"}),
        ("category", {"channels": ["image", "depht"]}),
        ("pairs", {"input": "image", "output": "depht"}),
        ("tuples", {"channels": ["image", "depht"]}),
        ("annotations", {"channels": ["image", "depth", "depht"], "choose": 2}),
        ("video", {"channel": "depht"}),
        ("annotated_video", {"channels": ["image", "depht"]}),
        ("multiview", {"channels": ["image", "depht"]}),
        ("puzzles", {"channel": "depht"}),
        ("verbatim", {"channel": "depht"}),
    ],
)
def test_a_channel_the_store_does_not_know_is_refused_with_those_it_does(recipe, options):
    with pytest.raises(UserError, match="unknown channel 'depht'; this store holds image, depth, normal"):
        admitted(build(RECIPES[recipe], options, recipe))


@pytest.mark.parametrize(
    ("recipe", "options", "says"),
    [
        ("category", {"classes": 0}, "category.classes is 0; use 1 or more"),
        ("category", {"each": 0}, "category.each is 0; use 1 or more"),
        ("category", {"channels": []}, r"category.channels is \[\]; name 1 or more, each once"),
        ("pairs", {"input": "image", "output": "depth", "pictures": 7}, "even number of pictures, not 7; use 8"),
        ("tuples", {"channels": ["image"]}, r"tuples.channels is \['image'\]; name 2 or more, each once"),
        ("tuples", {"channels": ["image", "image"]}, "name 2 or more, each once"),
        ("tuples", {"channels": ["image", "depth"], "tuples": 0}, "tuples.tuples is 0; use 1 or more"),
        ("annotations", {"channels": ["image", "depth"], "choose": 3}, "annotations.choose is 3; use 2 to 2"),
        ("annotations", {"channels": ["image", "depth"], "choose": 1}, "annotations.choose is 1; use 2 to 2"),
        ("annotations", {"channels": ["image", "depth"], "tuples": 0}, "annotations.tuples is 0; use 1 or more"),
        ("annotations", {"channels": ["image"]}, "name 2 or more, each once"),
        ("video", {"frames": 1}, "video.frames is 1; use 2 or more, or the recipe single"),
        ("video", {"strides": [0]}, r"video.strides is \[0\]; use numbers of 1 or more"),
        ("video", {"strides": []}, r"video.strides is \[\]; use numbers of 1 or more"),
        ("annotated_video", {"channels": ["image"]}, "name 2 or more, each once"),
        ("annotated_video", {"channels": ["image", "edge"], "frames": 1}, "annotated_video.frames is 1; use 2 or more"),
        ("annotated_video", {"channels": ["image", "edge"], "clips": 0}, "annotated_video.clips is 0; use 1 or more"),
        ("annotated_video", {"channels": ["image", "edge"], "strides": [-1]}, "use numbers of 1 or more"),
        ("annotated_video", {"channels": ["image", "edge"], "layout": "blok"}, "layout is 'blok'; use one of"),
        ("multiview", {"views": 1}, "multiview.views is 1; use 2 or more"),
        ("multiview", {"objects": 0}, "multiview.objects is 0; use 1 or more"),
        ("multiview", {"channels": ["image", "image"]}, "name 1 or more, each once"),
        ("multiview", {"strides": [1, 0]}, "use numbers of 1 or more"),
        ("puzzles", {"puzzles": 0}, "puzzles.puzzles is 0; use 1 or more"),
        ("puzzles", {"agree": "view"}, "agree is 'view'; use one of 'none', 'label'"),
        ("verbatim", {"pictures": 0}, "verbatim.pictures is 0; use 1 or more"),
    ],
)
def test_an_option_that_cannot_be_is_refused_with_its_value_and_what_can(recipe, options, says):
    with pytest.raises(UserError, match=says):
        build(RECIPES[recipe], options, recipe)
