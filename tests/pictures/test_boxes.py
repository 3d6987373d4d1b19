"""Boxes: outlined and filled ones read back exactly on black and on a photo, where they stand apart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvm.pictures import boxes, pieces, segmentation

SEEDS = st.integers(0, 2**32 - 1)
LINE = (250, 220, 30)


def grounds(seed, height, width):
    """Black, and a photo without the line's colour or one of the palette's."""
    photo = np.random.default_rng(seed).integers(86, 127, (height, width, 3)).astype(np.uint8)
    return (np.zeros_like(photo), None), (photo, photo)


def sample_boxes(seed, size=40, least_gap=1, number=12):
    """Boxes anywhere, down to one pixel, `least_gap` pixels apart or more; at times the whole picture."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(number):
        (left, right), (top, bottom) = (np.sort(random.choice(size + 1, 2, replace=False)).tolist() for _ in range(2))
        if random.random() < 0.3:
            right, bottom = left + 1, top + 1
        if all(
            left >= c + least_gap or a >= right + least_gap or top >= d + least_gap or b >= bottom + least_gap
            for a, b, c, d in found
        ):
            found.append((left, top, right, bottom))
    return found


@given(SEEDS, st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_outlined_boxes_that_do_not_touch_read_back_exactly(seed, width):
    wanted = sample_boxes(seed)
    for ground, photo in grounds(seed, 40, 40):
        drawn = boxes.draw(ground, wanted, LINE, width)
        assert boxes.read(drawn, LINE, photo) == boxes.read(drawn, LINE, photo, width) == sorted(wanted)


def sample_crossing(seed, size, number, gap):
    """Boxes of which no two sides, left and right or top and bottom, are nearer than `gap`."""
    random = np.random.default_rng(seed)
    taken, found = ([], []), []
    for _ in range(40 * number):
        sides = [np.sort(random.integers(0, size + 1, 2)).tolist() for _ in range(2)]
        if len(found) < number and all(
            high - low >= gap and all(abs(a - b) >= gap for a in (low, high) for b in others)
            for (low, high), others in zip(sides, taken)
        ):
            for others, pair in zip(taken, sides):
                others.extend(pair)
            (left, right), (top, bottom) = sides
            found.append((left, top, right, bottom))
    return found


@given(SEEDS, st.integers(1, 6), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_boxes_that_cross_are_told_apart_by_the_width_of_their_lines(seed, number, width):
    wanted = sample_crossing(seed, 120, number, 2 * width + 1)
    for ground, photo in grounds(seed, 120, 120):
        assert boxes.read(boxes.draw(ground, wanted, LINE, width), LINE, photo, width) == sorted(wanted)


def test_a_box_within_a_box_is_read_too():
    wanted = [(0, 0, 30, 30), (3, 3, 20, 20), (21, 5, 24, 6)]
    assert boxes.read(boxes.draw(np.zeros((30, 40, 3), np.uint8), wanted, LINE, 2), LINE) == sorted(wanted)


def test_specks_are_left_out_and_touching_lines_read_as_one():
    black = np.zeros((30, 30, 3), np.uint8)
    drawn = boxes.draw(black, [(2, 2, 10, 10), (20, 20, 21, 21)], LINE, 2)
    assert boxes.read(drawn, LINE, least=2) == [(2, 2, 10, 10)]
    assert boxes.read(black, LINE) == [] and boxes.read_filled(black) == ([], [])
    assert boxes.read(boxes.draw(black, [(2, 2, 10, 10), (10, 10, 20, 20)], LINE, 2), LINE) == [(2, 2, 20, 20)]


@given(SEEDS, st.integers(2, 256))
@settings(max_examples=40, deadline=None)
def test_filled_boxes_of_classes_read_back_exactly(seed, num_colours):
    wanted = sample_boxes(seed)
    classes = np.random.default_rng(seed).integers(1, num_colours, len(wanted)).tolist()
    palette = segmentation.PALETTE[:num_colours]
    for ground, photo in grounds(seed, 40, 40):
        found, of_class = boxes.read_filled(boxes.draw_filled(ground, wanted, classes, palette), palette, photo)
        assert list(zip(found, of_class)) == sorted(zip(wanted, classes))


def test_filled_boxes_of_two_classes_may_share_a_side_and_those_of_one_a_corner():
    wanted, classes = [(0, 0, 4, 4), (4, 0, 8, 4), (8, 4, 9, 5)], [1, 2, 2]
    drawn = boxes.draw_filled(np.zeros((8, 9, 3), np.uint8), wanted, classes)
    assert boxes.read_filled(drawn) == (wanted, classes)


@pytest.mark.parametrize("k", [0, 256, -1])
def test_a_class_without_a_colour_is_named(k):
    with pytest.raises(ValueError, match=f"class {k}"):
        boxes.draw_filled(np.zeros((4, 4, 3), np.uint8), [(0, 0, 2, 2)], [k])


def flooded(values, corners):
    """Pieces by a plain flood, in reading order."""
    labels, number = np.zeros(values.shape, int), 0
    for y, x in np.argwhere(values).tolist():
        if labels[y, x]:
            continue
        number += 1
        edge = [(y, x)]
        while edge:
            a, b = edge.pop()
            if labels[a, b]:
                continue
            labels[a, b] = number
            for c in range(max(0, a - 1), min(len(values), a + 2)):
                for d in range(max(0, b - 1), min(values.shape[1], b + 2)):
                    if values[c, d] == values[y, x] and (corners or a == c or b == d):
                        edge.append((c, d))
    return labels


@given(SEEDS, st.integers(1, 12), st.integers(1, 12), st.booleans())
@settings(max_examples=80, deadline=None)
def test_pieces_are_those_of_a_flood(seed, height, width, corners):
    values = np.random.default_rng(seed).integers(0, 3, (height, width))
    labels = pieces.label(values, corners)
    np.testing.assert_array_equal(labels, flooded(values, corners))
    for k, (left, top, right, bottom) in pieces.bounds(labels).items():
        ys, xs = np.nonzero(labels == k)
        assert (left, top, right, bottom) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    found = pieces.find(values, corners)
    assert [piece.size for piece in found] == np.bincount(labels.reshape(-1))[1:].tolist()
    assert all(values[p.box[1] : p.box[3], p.box[0] : p.box[2]].max() >= p.value > 0 for p in found)
