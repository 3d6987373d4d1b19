"""Each recipe shows the right pictures in the right order, and admits only what it can show."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvm.runtime import UserError
from lvm.runtime.hashing import hash64
from lvm.sentences import ANSWER, INPUT, RECIPES, Pairs, Single, Video

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from fakes import BY_VIEW, STEADY, FakeStore

STORE = FakeStore(scenes=12, clips=8, frames=(16, 20, 40, 9))


def admitted(recipe, store=STORE):
    return np.flatnonzero(np.logical_and.reduce([kept for _, kept in recipe.conditions(store)]))


def keys(n, seed=0):
    return hash64(seed, np.arange(n))


@given(st.sampled_from(STEADY + BY_VIEW), st.sampled_from(STEADY + BY_VIEW), st.integers(1, 10))
@settings(max_examples=60, deadline=None)
def test_pairs_alternate_input_and_output_of_the_same_items(source, answer, pairs):
    recipe = Pairs(source, answer, pictures=2 * pairs)
    items = admitted(recipe)
    assert len(items) and recipe.units == pairs
    units = items[np.arange(3 * pairs) % len(items)].reshape(3, pairs)
    shown = recipe.compose(units, keys(3), STORE)
    assert np.array_equal(shown.item[:, 0::2], units) and np.array_equal(shown.item[:, 1::2], units)
    names = np.array(STORE.channels)[shown.channel]
    assert (names[:, 0::2] == source).all() and (names[:, 1::2] == answer).all()
    assert (shown.frame == 0).all()
    STORE.pictures(shown.item.ravel(), shown.channel.ravel(), shown.frame.ravel())  # all of them exist
    assert recipe.roles().tolist() == [INPUT, ANSWER] * pairs


def test_a_pair_is_admitted_once_for_what_the_item_itself_holds():
    """A view that only borrows both channels would repeat its view 0; one that owns either is a pair of its own."""
    assert (STORE.view[admitted(Pairs("image", "depth"))] == 0).all()
    assert (STORE.view[admitted(Pairs("gray", "image"))] == 0).all()
    for recipe in (Pairs("image", "edge"), Pairs("masked", "image"), Pairs("noisy", "dark")):
        items = admitted(recipe)
        assert (STORE.view[items] > 0).all() and len(items) == 24


def test_excluded_views_are_never_admitted():
    recipe = Pairs("image", "edge", agree="view", exclude_views=(2, 3))
    assert set(STORE.view[admitted(recipe)]) == {1}


def test_clips_are_neither_singles_nor_pairs():
    assert (STORE.num_pictures[admitted(Single())] == 1).all()
    assert (STORE.num_pictures[admitted(Pairs("image", "image"))] == 1).all()


@given(st.sampled_from(STEADY + BY_VIEW))
def test_a_single_is_one_picture_of_an_item_that_owns_the_channel(channel):
    recipe = Single(channel)
    items = admitted(recipe)
    shown = recipe.compose(items[:, None], keys(len(items)), STORE)
    assert shown.item.shape == (12 if channel in STEADY else 24, 1)
    assert (shown.channel == STORE.channels.index(channel)).all() and recipe.roles().tolist() == [INPUT]


@given(st.integers(2, 9), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 2**32), st.booleans())
@settings(max_examples=80, deadline=None)
def test_a_video_shows_frames_of_one_clip_at_one_stride_inside_it(frames, strides, seed, reverse):
    recipe = Video(frames=frames, strides=tuple(strides), reverse=reverse)
    items = admitted(recipe)
    assert (STORE.num_pictures[items] >= frames).all()
    units = np.repeat(items, 20)[:, None]
    shown = recipe.compose(units, keys(len(units), seed), STORE)
    assert (shown.item == units).all()
    length = STORE.num_pictures[units[:, 0]].astype(int)
    assert shown.frame.min() >= 0 and (shown.frame.max(1) < length).all()
    steps = np.diff(shown.frame, axis=1)
    assert (steps == steps[:, :1]).all()
    assert reverse or (steps > 0).all()
    shrunk = np.minimum(np.array(sorted(set(strides)))[None], ((length - 1) // (frames - 1))[:, None])
    assert (np.abs(steps[:, :1]) == shrunk).any(1).all()


def test_videos_draw_every_start_and_stride_and_half_of_them_backwards():
    recipe = Video(frames=4, strides=(1, 2), reverse=True)
    (clip,) = np.flatnonzero(STORE.num_pictures == 20)[:1]
    shown = recipe.compose(np.full((4000, 1), clip), keys(4000), STORE)
    steps = shown.frame[:, 1] - shown.frame[:, 0]
    assert set(steps.tolist()) == {1, 2, -1, -2}
    assert abs((steps < 0).mean() - 0.5) < 0.05 and abs((np.abs(steps) == 1).mean() - 0.5) < 0.05
    assert set(shown.frame.min(1)[np.abs(steps) == 1].tolist()) == set(range(17))


def test_every_picture_of_a_clip_after_the_first_is_an_answer():
    assert Video(frames=4).roles().tolist() == [INPUT, ANSWER, ANSWER, ANSWER]


def test_a_stride_longer_than_every_clip_is_refused_with_the_longest_that_fits():
    with pytest.raises(UserError, match=r"stride 3 needs clips of 46 pictures .* 40; use strides up to 2"):
        Video(frames=16, strides=(1, 3)).conditions(STORE)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Pairs("image", "depth", pictures=7), "even number of pictures, not 7; use 8"),
        (lambda: Video(frames=1), "use 2 or more"),
        (lambda: Video(strides=(0,)), "use numbers of 1 or more"),
        (lambda: Pairs("image", "depht").conditions(STORE), "unknown channel 'depht'; this store holds image, depth"),
    ],
)
def test_options_that_cannot_be_are_refused(make, says):
    with pytest.raises(UserError, match=says):
        make()


def test_composing_a_batch_equals_composing_one_by_one():
    for recipe in (Pairs("image", "edge", pictures=4), Video(frames=4, strides=(1, 2, 3), reverse=True), Single()):
        items = admitted(recipe)
        units = items[np.arange(6 * recipe.units) % len(items)].reshape(6, recipe.units)
        batch = recipe.compose(units, keys(6), STORE)
        for i in range(6):
            one = recipe.compose(units[i : i + 1], keys(6)[i : i + 1], STORE)
            for field in ("item", "channel", "frame"):
                assert np.array_equal(getattr(one, field)[0], getattr(batch, field)[i])


def test_every_recipe_names_as_many_roles_as_pictures():
    options = {"pairs": {"input": "image", "output": "depth"}}
    for name, recipe in RECIPES.items():
        built = recipe(**options.get(name, {}))
        assert len(built.roles()) == built.pictures


def test_verbatim_shows_all_of_an_item_in_order_and_admits_no_other_length():
    recipe = RECIPES["verbatim"](pictures=20)
    items = admitted(recipe)
    assert len(items) and (STORE.num_pictures[items] == 20).all() and recipe.units == 1
    shown = recipe.compose(items[:, None], keys(len(items)), STORE)
    assert (shown.frame == np.arange(20)).all() and (shown.item == items[:, None]).all()
    assert recipe.roles().tolist() == [INPUT] + [ANSWER] * 19
    assert RECIPES["verbatim"](pictures=1).roles().tolist() == [INPUT]
    with pytest.raises(UserError, match=r"verbatim\.pictures is 0; use 1 or more"):
        RECIPES["verbatim"](pictures=0)
