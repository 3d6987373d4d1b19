"""single: one picture, of a still that owns the channel."""

from recipe_items import ITEMS, admitted, keys, names_of, read

from lvm.sentences import INPUT, Single


def test_a_single_is_one_picture_and_an_input():
    assert read(Single(), "scene3") == ["scene3 image"]
    assert read(Single("edge"), "scene3.1") == ["scene3.1 edge"]
    assert Single().roles().tolist() == [INPUT]


def test_a_single_is_of_every_still_that_owns_the_channel_and_of_no_clip():
    scenes = {f"scene{i}" for i in range(12)}
    assert names_of(admitted(Single())) == scenes | {"bare0", "bare1"}
    assert names_of(admitted(Single("depth"))) == scenes
    edges = admitted(Single("edge"))
    assert len(edges) == 24 and (ITEMS.view[edges] > 0).all()
    shown = Single("edge").compose(edges[:, None], keys(24), ITEMS)
    assert (shown.item[:, 0] == edges).all() and (shown.frame == 0).all()
