"""verbatim: all pictures of an item as they are stored."""

from recipe_items import ITEMS, admitted, names_of, read

from lvm.sentences import ANSWER, INPUT, Verbatim


def test_verbatim_shows_all_of_an_item_in_order():
    assert read(Verbatim(pictures=20), "clip1") == [f"clip1 image {frame}" for frame in range(20)]
    assert read(Verbatim(pictures=1), "scene0") == ["scene0 image"]
    assert Verbatim().pictures == 16 and Verbatim().units == 1


def test_verbatim_admits_no_other_length():
    assert names_of(admitted(Verbatim(pictures=20))) == {"clip1"}
    assert names_of(admitted(Verbatim(pictures=9))) == {f"puzzle{i}" for i in range(6)}
    assert [condition.otherwise for condition in Verbatim().conditions(ITEMS)] == [
        "no image of their own",
        "not of 16 pictures",
    ]


def test_the_first_picture_is_an_input_and_the_others_answer():
    assert Verbatim(pictures=4).roles().tolist() == [INPUT, ANSWER, ANSWER, ANSWER]
    assert Verbatim(pictures=1).roles().tolist() == [INPUT]
