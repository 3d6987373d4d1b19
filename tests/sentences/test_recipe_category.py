"""category: several pictures of one class in a row, then as many of the next."""

import pytest
from recipe_items import ITEMS, admitted, keys, names_of, read, units_of

from lvm.sentences import ANSWER, INPUT, Category


def test_a_category_sentence_shows_the_pictures_of_each_class_in_a_row():
    recipe = Category(classes=2, each=3)
    units = ["scene0", "scene3", "scene6", "scene2", "scene5", "scene8"]  # labels 0 0 0, 2 2 2
    assert read(recipe, *units) == [f"{unit} image" for unit in units]
    assert recipe.agree == "label" and recipe.together == 3 and recipe.units == 6
    assert recipe.roles().tolist() == [INPUT, ANSWER, ANSWER] * 2


@pytest.mark.parametrize(("classes", "each"), [(16, 1), (8, 2), (4, 4), (1, 16)])
def test_sixteen_pictures_of_the_paper_hold_one_two_four_or_sixteen_of_each_class(classes, each):
    recipe = Category(classes=classes, each=each)
    assert recipe.pictures == 16 and recipe.together == each
    shown = recipe.compose(units_of(recipe, 30), keys(30), ITEMS)
    labels = ITEMS.label[shown.item].reshape(30, classes, each)
    assert (labels == labels[..., :1]).all() and (shown.channel == 0).all()
    if each == 1:
        assert len({tuple(row) for row in labels[..., 0].tolist()}) > 1
    assert recipe.roles().tolist() == ([INPUT] + [ANSWER] * (each - 1)) * classes


def test_the_default_is_four_of_each_of_four_classes():
    assert Category() == Category(classes=4, each=4, channels=("image",))


def test_with_more_channels_each_picture_is_followed_by_its_annotation():
    recipe = Category(classes=2, each=2, channels=("image", "depth"))
    assert read(recipe, "scene0", "scene3", "scene2", "scene5") == [
        "scene0 image",
        "scene0 depth",
        "scene3 image",
        "scene3 depth",
        "scene2 image",
        "scene2 depth",
        "scene5 image",
        "scene5 depth",
    ]
    assert recipe.pictures == 8 and recipe.units == 4 and recipe.together == 2
    assert recipe.roles().tolist() == [INPUT, ANSWER, ANSWER, ANSWER] * 2  # the first of a class alone is given


def test_a_class_is_shown_in_stills_that_own_the_channel():
    scenes = {f"scene{i}" for i in range(12)}
    assert names_of(admitted(Category())) == scenes | {"bare0", "bare1"}  # what has no label, the plan leaves out
    assert names_of(admitted(Category(channels=("image", "depth")))) == scenes
    assert [condition.otherwise for condition in Category().conditions(ITEMS)] == [
        "clips",
        "excluded view",
        "no image of their own",
    ]
