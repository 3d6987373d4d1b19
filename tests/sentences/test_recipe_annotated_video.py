"""annotated_video: frames of clips and an annotation of each, frame by frame or one block after the other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_items import ITEMS, about_equal, admitted, keys, names_of, number, read, units_of

from lvm.runtime import UserError
from lvm.sentences import ANSWER, INPUT, AnnotatedVideo

MASKED = ("image", "segmentation")
SHORT = ("clip4.1",)  # of three frames, so that there is one start


def test_interleaved_each_frame_is_followed_by_its_annotation():
    assert read(AnnotatedVideo(MASKED, frames=3, clips=1, layout="interleave"), *SHORT) == [
        "clip4.1 image 0",
        "clip4.1 segmentation 0",
        "clip4.1 image 1",
        "clip4.1 segmentation 1",
        "clip4.1 image 2",
        "clip4.1 segmentation 2",
    ]


def test_in_blocks_the_frames_come_first_and_then_their_annotations():
    assert read(AnnotatedVideo(MASKED, frames=3, clips=1, layout="block"), *SHORT) == [
        "clip4.1 image 0",
        "clip4.1 image 1",
        "clip4.1 image 2",
        "clip4.1 segmentation 0",
        "clip4.1 segmentation 1",
        "clip4.1 segmentation 2",
    ]


@given(st.sampled_from([MASKED, ("segmentation", "depth", "image")]), st.integers(2, 5), st.integers(1, 3))
def test_both_layouts_show_the_same_pictures_unit_by_unit(channels, frames, clips):
    """As the reference does with einops: `(b x) t s -> b (x t s)` is block, `-> b (x s t)` is interleave."""
    options = {"channels": channels, "frames": frames, "clips": clips, "strides": (1, 2, 3)}
    block, interleave = (AnnotatedVideo(**options, layout=layout) for layout in ("block", "interleave"))
    units = units_of(block, 10)
    one, other = block.compose(units, keys(10), ITEMS), interleave.compose(units, keys(10), ITEMS)
    shape = (10, clips, len(channels), frames)  # b x t s
    for field in ("item", "channel", "frame"):
        by_channel = getattr(one, field).reshape(shape)
        assert np.array_equal(getattr(other, field), by_channel.swapaxes(2, 3).reshape(10, -1))
    bits = [ITEMS.channels.index(channel) for channel in channels]
    assert (one.channel.reshape(shape) == np.array(bits)[:, None]).all()
    shown_frames = one.frame.reshape(shape)
    assert (shown_frames == shown_frames[:, :, :1]).all() and (np.diff(shown_frames) > 0).all()


def test_with_both_a_coin_for_the_sentence_says_the_layout_of_all_its_clips():
    recipe = AnnotatedVideo(MASKED, frames=4, clips=2, layout="both")
    shown = recipe.compose(units_of(recipe, 1000), keys(1000), ITEMS)
    seg = ITEMS.channels.index("segmentation")
    block, interleave = (0, 0, 0, 0, seg, seg, seg, seg) * 2, (0, seg) * 8
    assert about_equal([tuple(row) for row in shown.channel.tolist()], [block, interleave])


def test_start_and_stride_are_drawn_for_each_clip_about_equally_often():
    recipe = AnnotatedVideo(MASKED, frames=3, clips=2, strides=(1, 2), layout="block")
    units = np.tile([number("clip3.1"), number("clip3.2")], (10000, 1))
    frame = recipe.compose(units, keys(10000), ITEMS).frame.reshape(10000, 2, 2, 3)[:, :, 0]
    first, step = frame[..., 0], frame[..., 1] - frame[..., 0]
    assert about_equal([tuple(steps) for steps in step.tolist()], [(1, 1), (1, 2), (2, 1), (2, 2)])
    slow = (step == 1).all(1)
    starts = [(a, b) for a in range(10) for b in range(10)]  # of 12 frames, spans of 3
    assert about_equal([tuple(start) for start in first[slow].tolist()], starts)


def test_the_first_picture_of_each_clip_is_an_input_and_all_others_answer_in_every_layout():
    for layout in ("interleave", "block", "both"):
        recipe = AnnotatedVideo(MASKED, layout=layout)
        assert recipe.roles().tolist() == ([INPUT] + [ANSWER] * 7) * 2
        assert recipe.pictures == 16 and recipe.units == 2


def test_a_clip_is_admitted_if_it_is_long_enough_and_has_all_channels():
    recipe = AnnotatedVideo(MASKED, frames=12, agree="view")
    assert names_of(admitted(recipe)) == {f"clip{i}.{view}" for i in range(4) for view in (1, 2)}
    assert names_of(admitted(AnnotatedVideo(("image", "depth"), frames=12))) == {f"clip{i}" for i in range(4)}
    assert set(ITEMS.view[admitted(AnnotatedVideo(MASKED, exclude_views=(1,)))]) == {2}


def test_a_stride_longer_than_every_clip_is_refused_though_its_channels_lie_in_different_views():
    with pytest.raises(UserError, match="stride 14 needs clips of 43 pictures for 4 frames, the longest holds 40;"):
        AnnotatedVideo(MASKED, strides=(14,)).check(ITEMS)
    AnnotatedVideo(MASKED, strides=(13,)).check(ITEMS)
    with pytest.raises(UserError, match="the longest holds 24; use strides up to 7"):  # edge: of objects alone
        AnnotatedVideo(("image", "edge"), strides=(8,)).check(ITEMS)
