"""video: frames of one clip at an even stride."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_items import ITEMS, about_equal, admitted, keys, names_of, number, read

from lvm.runtime import UserError
from lvm.sentences import ANSWER, INPUT, Video


@given(st.integers(2, 12), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 2**32), st.booleans())
@settings(max_examples=80)
def test_a_video_shows_frames_of_one_clip_at_one_stride_inside_it(frames, strides, seed, reverse):
    recipe = Video(frames=frames, strides=tuple(strides), reverse=reverse)
    units = np.repeat(admitted(recipe), 20)[:, None]
    shown = recipe.compose(units, keys(len(units), seed), ITEMS)
    assert (shown.item == units).all()
    length = ITEMS.num_pictures[units[:, 0]]
    assert shown.frame.min() >= 0 and (shown.frame.max(1) < length).all()
    steps = np.diff(shown.frame, axis=1)
    assert (steps == steps[:, :1]).all()
    assert reverse or (steps > 0).all()
    shrunk = np.minimum(np.array(sorted(set(strides)))[None], ((length - 1) // (frames - 1))[:, None])
    assert (np.abs(steps[:, :1]) == shrunk).any(1).all()


def test_a_clip_of_just_enough_frames_is_shown_whole():
    assert read(Video(frames=16, strides=(4,)), "clip0") == [f"clip0 image {frame}" for frame in range(16)]


def test_every_start_stride_and_direction_is_drawn_about_equally_often():
    recipe = Video(frames=4, strides=(1, 2), reverse=True)
    frame = recipe.compose(np.full((20000, 1), number("clip1")), keys(20000), ITEMS).frame
    step, first = frame[:, 1] - frame[:, 0], frame.min(1)
    assert about_equal(step.tolist(), [1, 2, -1, -2])
    assert about_equal(first[np.abs(step) == 1].tolist(), range(17))  # of 20 frames, spans of 4
    assert about_equal(first[np.abs(step) == 2].tolist(), range(14))  # spans of 7


def test_a_clip_is_admitted_from_the_frames_a_sentence_takes():
    long = {"clip0", "clip1", "clip2", "object0", "object1", "object2", "object3"}
    assert names_of(admitted(Video(frames=16))) == long
    assert names_of(admitted(Video(frames=12))) == long | {"clip3"}
    said = [condition.otherwise for condition in Video(frames=16).conditions(ITEMS)]
    assert said == ["no image of their own", "fewer than 16 frames"]


def test_every_picture_of_a_clip_after_the_first_is_an_answer():
    assert Video(frames=4).roles().tolist() == [INPUT, ANSWER, ANSWER, ANSWER]
    assert Video().pictures == 16 and Video().units == 1


def test_a_stride_longer_than_every_clip_is_refused_with_the_longest_that_fits():
    with pytest.raises(UserError, match=r"stride 3 needs clips of 46 pictures for 16 frames, the longest holds 40"):
        Video(frames=16, strides=(1, 3)).check(ITEMS)
    with pytest.raises(UserError, match="use strides up to 2"):
        Video(frames=16, strides=(3,)).check(ITEMS)
    Video(frames=16, strides=(1, 2)).check(ITEMS)
    Video(frames=100, strides=(1,)).check(ITEMS)  # that no clip is long enough, the conditions say
