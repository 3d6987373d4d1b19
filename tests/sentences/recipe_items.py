"""Items for recipes to choose from, small enough to look through: stills, clips, turntables and puzzles.

`Items` is at once what recipes see as `Kinds`, `Columns` and `Catalogue`.
"""

from collections import Counter

import numpy as np

from lvm.runtime.hashing import group_hash, hash64

STEADY = ("image", "depth", "normal", "gray")  # of a still, in its view 0
BY_VIEW = ("segmentation", "edge")  # of a still or clip, in its other views


class Items:
    """Rows of (id, view, label, number of pictures, channels)."""

    channels = STEADY + BY_VIEW

    def __init__(self, rows):
        self.names = [f"{id}.{view}" if view else id for id, view, *_ in rows]
        self.view = np.array([row[1] for row in rows], np.uint16)
        self.label = np.array([row[2] for row in rows], np.int32)
        self.group = np.array([group_hash(row[0]) for row in rows], np.uint64)
        self.num_pictures = np.array([row[3] for row in rows], np.int64)
        self.channel_mask = np.array([sum(1 << self.channels.index(c) for c in row[4]) for row in rows], np.int64)
        zero = {id: i for i, (id, view, *_) in enumerate(rows) if view == 0}
        self.view_0 = np.array([zero[row[0]] for row in rows])

    def owns(self, channel):
        return (self.channel_mask >> self.channels.index(channel)) & 1 == 1

    def has(self, channel):
        return self.owns(channel) | self.owns(channel)[self.view_0]

    def num_pictures_of(self, items):
        return self.num_pictures[items]

    def holds(self, shown):
        """Whether each picture exists, in its item or in the item's view 0."""
        own = (self.channel_mask[shown.item] >> shown.channel) & 1 == 1
        holder = np.where(own, shown.item, self.view_0[shown.item])
        there = (self.channel_mask[holder] >> shown.channel) & 1 == 1
        return there & (shown.frame >= 0) & (shown.frame < self.num_pictures[holder])


def _scene(i):
    yield f"scene{i}", 0, i % 3, 1, STEADY
    for v in range(2):
        yield f"scene{i}", 1 + (i + v) % 3, i % 3, 1, BY_VIEW


def _clip(i, length):
    yield f"clip{i}", 0, -1, length, ("image", "depth")
    for view in (1, 2):
        yield f"clip{i}", view, -1, length, ("segmentation",)


SCENES = [row for i in range(12) for row in _scene(i)]
BARE = [(f"bare{i}", 0, -1, 1, ("image",)) for i in range(2)]
CLIPS = [row for i, length in enumerate((16, 20, 40, 12, 3)) for row in _clip(i, length)]
OBJECTS = [(f"object{i}", 0, i % 2, n, ("image", "edge")) for i, n in enumerate((24, 24, 24, 24, 7))]
PUZZLES = [(f"puzzle{i}", 0, i % 2, 9, ("image",)) for i in range(6)]
ITEMS = Items(SCENES + BARE + CLIPS + OBJECTS + PUZZLES)


def keys(n, seed=0):
    return hash64(seed, np.arange(n))


def admitted(recipe, items=ITEMS):
    return np.flatnonzero(np.logical_and.reduce([condition.holds for condition in recipe.conditions(items)]))


def names_of(numbers):
    return {ITEMS.names[i] for i in numbers}


def number(name):
    return ITEMS.names.index(name)


def units_of(recipe, sentences, seed=0):
    """Units as a plan would draw them: admitted items, each `together` in a row agreeing."""
    rng, items = np.random.default_rng(seed), admitted(recipe)
    if recipe.agree == "none":
        return rng.choice(items, (sentences, recipe.units))
    column = getattr(ITEMS, recipe.agree)[items].astype(np.int64)
    values = np.unique(column[column >= 0] if recipe.agree == "label" else column)
    runs = sentences * recipe.units // recipe.together
    drawn = [rng.choice(items[column == value], recipe.together) for value in rng.choice(values, runs)]
    return np.array(drawn).reshape(sentences, recipe.units)


def read(recipe, *units, key=0):
    """One sentence as text: "scene0 depth", or "clip0 image 3" for a frame of a clip."""
    shown = recipe.compose(np.array([[number(unit) for unit in units]]), keys(1, key), ITEMS)
    assert ITEMS.holds(shown).all()
    return [
        f"{ITEMS.names[i]} {ITEMS.channels[c]}" + (f" {f}" if ITEMS.num_pictures[i] > 1 else "")
        for i, c, f in zip(shown.item[0], shown.channel[0], shown.frame[0])
    ]


def about_equal(drawn, options):
    """Whether all `options`, and nothing else, were drawn, each within five standard deviations of its share."""
    counts, share = Counter(drawn), len(drawn) / len(options)
    assert set(counts) == set(options)
    return all(abs(count - share) < 5 * share**0.5 for count in counts.values())
