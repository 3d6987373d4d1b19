"""multiview: consecutive views of objects, round a turntable or along a path."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_items import ITEMS, about_equal, admitted, keys, names_of, number, read

from lvm.runtime import UserError
from lvm.sentences import ANSWER, INPUT, Multiview

MASKED = ("image", "edge")


def views_of(recipe, draws, name="object0"):
    """View numbers [draws, views] of sentences of one object."""
    return recipe.compose(np.full((draws, 1), number(name)), keys(draws), ITEMS).frame


def test_sixteen_views_in_a_row_go_round_the_turntable_from_any_start():
    recipe = Multiview(around=True)
    assert recipe.pictures == 16 and recipe.units == 1
    views = views_of(recipe, 24 * 200)
    assert about_equal(views[:, 0].tolist(), range(24))
    assert (np.diff(views, axis=1) % 24 == 1).all()
    assert any(row[-1] < row[0] for row in views.tolist())


def test_a_path_that_does_not_close_is_left_at_its_ends():
    views = views_of(Multiview(), 9 * 200)
    assert about_equal(views[:, 0].tolist(), range(9))
    assert (np.diff(views, axis=1) == 1).all()


@given(st.integers(2, 24), st.integers(1, 24), st.booleans(), st.booleans())
def test_views_are_evenly_spread_and_none_is_shown_twice(views, stride, around, reverse):
    recipe = Multiview(views=views, strides=(stride,), around=around, reverse=reverse)
    shown = views_of(recipe, 50)
    steps = np.diff(shown, axis=1) % 24
    expected = min(stride, 23 // (views - 1))
    assert set(steps[:, 0].tolist()) <= ({expected, 24 - expected} if reverse else {expected})
    assert (steps == steps[:, :1]).all()
    assert all(len(set(row)) == views for row in shown.tolist())


def test_stride_and_direction_are_drawn_about_equally_often():
    recipe = Multiview(views=4, strides=(1, 3), around=True, reverse=True)
    views = views_of(recipe, 8000)
    assert about_equal(((views[:, 1] - views[:, 0]) % 24).tolist(), [1, 3, 24 - 1, 24 - 3])
    assert about_equal(views[:, 0].tolist(), range(24))


def test_the_objects_of_a_sentence_start_and_turn_apart_from_one_another():
    recipe = Multiview(views=2, objects=2, around=True, reverse=True)
    units = np.tile([number("object0"), number("object1")], (20000, 1))
    views = recipe.compose(units, keys(20000), ITEMS).frame.reshape(20000, 2, 2)
    turns = (views[..., 1] - views[..., 0]) % 24
    assert about_equal([tuple(turn) for turn in turns.tolist()], [(a, b) for a in (1, 23) for b in (1, 23)])
    assert about_equal(((views[:, 1, 0] - views[:, 0, 0]) % 24).tolist(), range(24))


def test_in_blocks_each_object_shows_its_views_and_then_their_masks():
    recipe = Multiview(views=7, objects=2, channels=MASKED)
    assert (
        read(recipe, "object4", "object4")
        == [
            *(f"object4 image {view}" for view in range(7)),
            *(f"object4 edge {view}" for view in range(7)),
        ]
        * 2
    )


def test_interleaved_each_view_is_followed_by_its_mask():
    recipe = Multiview(views=7, channels=MASKED, layout="interleave")
    assert read(recipe, "object4") == [f"object4 {channel} {view}" for view in range(7) for channel in MASKED]


def test_a_sentence_of_co3d_holds_four_objects_of_four_views_and_masks():
    recipe = Multiview(views=4, objects=4, channels=MASKED)
    assert recipe.pictures == 32 and recipe.units == 4
    assert recipe.roles().tolist() == ([INPUT] + [ANSWER] * 7) * 4
    sentence = read(recipe, "object0", "object1", "object2", "object3")
    assert [text.rsplit(" ", 1)[0] for text in sentence] == [
        f"object{i} {channel}" for i in range(4) for channel in ("image",) * 4 + ("edge",) * 4
    ]
    for first in range(0, 32, 8):
        views = [text.rsplit(" ", 1)[1] for text in sentence[first : first + 8]]
        assert views[:4] == views[4:]


def test_the_first_view_is_an_input_and_all_others_answer():
    assert Multiview().roles().tolist() == [INPUT] + [ANSWER] * 15


def test_an_object_is_admitted_if_it_has_the_views_and_channels():
    assert names_of(admitted(Multiview(channels=MASKED, agree="label"))) == {f"object{i}" for i in range(4)}
    assert names_of(admitted(Multiview(views=7, channels=MASKED))) == {f"object{i}" for i in range(5)}
    other_view = Multiview(views=3, channels=("image", "segmentation"), exclude_views=(1,))
    assert set(ITEMS.view[admitted(other_view)]) == {2}


def test_a_stride_that_comes_past_its_start_is_refused():
    for around in (False, True):
        Multiview(views=12, strides=(2,), around=around, channels=MASKED).check(ITEMS)
        with pytest.raises(UserError, match="stride 2 needs clips of 25 pictures for 13 frames, the longest holds 24"):
            Multiview(views=13, strides=(2,), around=around, channels=MASKED).check(ITEMS)
