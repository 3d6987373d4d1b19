"""puzzles: nine panels of a matrix, of which the last answers."""

from recipe_items import ITEMS, admitted, names_of, read, units_of

from lvm.sentences import ANSWER, INPUT, Puzzles


def test_a_puzzle_shows_its_panels_in_reading_order_and_the_ninth_answers():
    assert read(Puzzles(), "puzzle2") == [f"puzzle2 image {panel}" for panel in range(9)]
    assert Puzzles().roles().tolist() == [INPUT] * 8 + [ANSWER]
    assert Puzzles().pictures == 9 and Puzzles().units == 1


def test_the_puzzles_of_a_sentence_follow_one_another_and_may_share_their_rules():
    recipe = Puzzles(puzzles=2, agree="label")
    assert read(recipe, "puzzle1", "puzzle5") == [
        f"{puzzle} image {panel}" for puzzle in ("puzzle1", "puzzle5") for panel in range(9)
    ]
    assert recipe.roles().tolist() == ([INPUT] * 8 + [ANSWER]) * 2
    assert recipe.agree == "label" and recipe.together == 2
    labels = ITEMS.label[units_of(recipe, 20)]
    assert (labels[:, 0] == labels[:, 1]).all() and set(labels[:, 0]) == {0, 1}


def test_only_items_of_nine_pictures_are_puzzles():
    assert names_of(admitted(Puzzles())) == {f"puzzle{i}" for i in range(6)}
    said = [condition.otherwise for condition in Puzzles().conditions(ITEMS)]
    assert said == ["no image of their own", "not of 9 pictures"]
