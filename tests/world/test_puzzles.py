"""Puzzles: their rules give the answer and nothing else, and the choices alone do not."""

import itertools
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest

from lvm.world import puzzle_pictures
from lvm.world.puzzles import LEVELS, NUM_PLAIN, RULE_SETS, predictions, sample_puzzle
from lvm.world.scene import generator


def sample(count, first=0):
    return [sample_puzzle(generator(0, "test", k), k % len(RULE_SETS)) for k in range(first, first + count)]


def column(puzzle, name):
    return [getattr(panel, name) for panel in puzzle.panels]


def test_the_first_eight_panels_determine_the_ninth():
    for puzzle in sample(10 * len(RULE_SETS)):
        for name in LEVELS:
            *given, ninth = column(puzzle, name)
            assert predictions(name, given) == {ninth}
        assert puzzle.choices[puzzle.answer] == puzzle.panels[8]


def test_a_puzzle_obeys_the_rules_it_names():
    for puzzle in sample(5 * len(RULE_SETS)):
        assert puzzle.rules == RULE_SETS[puzzle.rule_set] and 1 <= len(puzzle.rules) <= 3
        for name in LEVELS:
            rows = np.array(column(puzzle, name)).reshape(3, 3)
            steps = np.diff(rows, axis=1) % (8 if name == "rotation" else 100)
            rule = puzzle.rules.get(name, "same")
            if rule == "same":
                assert len(set(rows.flat)) == 1
            elif rule == "constant":
                assert (steps == 0).all() and len(set(rows[:, 0])) == 3
            elif rule == "progression":
                assert len(set(steps.flat)) == 1 and steps[0, 0] != 0
            elif rule == "distribute":
                assert len({frozenset(row) for row in rows.tolist()}) == 1 and len(set(rows[0])) == 3
            elif rule == "arithmetic":
                a, b, c = rows.T
                assert (a + b == c).all() or (a - b == c).all()
            else:
                assert rule == "xor" and (rows[:, 0] ^ rows[:, 1] == rows[:, 2]).all() and rows.all()


def test_shapes_that_turn_point_somewhere_and_others_never_turn():
    for puzzle in sample(3 * len(RULE_SETS)):
        for panel in (*puzzle.panels, *puzzle.choices):
            assert (panel.shape >= NUM_PLAIN) == ("rotation" in puzzle.rules)
            assert panel.rotation == 0 or "rotation" in puzzle.rules


def test_every_distractor_breaks_a_rule_and_all_choices_look_different():
    for puzzle in sample(3 * len(RULE_SETS)):
        for k, choice in enumerate(puzzle.choices):
            allowed = all(getattr(choice, name) in predictions(name, column(puzzle, name)[:8]) for name in LEVELS)
            assert allowed == (k == puzzle.answer)
        pictures = puzzle_pictures.choices(puzzle, 48).astype(int)
        assert all(np.abs(a - b).max(-1).mean() > 1 for a, b in itertools.combinations(pictures, 2))


def test_the_majority_of_choices_does_not_know_the_answer():
    for puzzle in sample(5 * len(RULE_SETS)):
        votes = {name: Counter(getattr(choice, name) for choice in puzzle.choices) for name in LEVELS}
        assert sorted(tuple(count.values()) for count in votes.values()) == [(4, 4)] * 3 + [(8,)] * 3


def test_what_answers_are_like_does_not_tell_one_from_its_distractors():
    """The best guess from the choices and all that is known of answers under these rules: chance is one in eight."""
    seen = sample(160 * len(RULE_SETS))
    usual = Counter()
    for puzzle in seen:
        usual.update((puzzle.rule_set, name, getattr(puzzle.panels[8], name)) for name in LEVELS)
    unseen = sample(60 * len(RULE_SETS), first=len(seen))
    right = 0
    for puzzle in unseen:
        scores = [
            sum(np.log(1e-3 + usual[puzzle.rule_set, name, getattr(choice, name)]) for name in LEVELS)
            for choice in puzzle.choices
        ]
        right += int(np.argmax(scores)) == puzzle.answer
    assert abs(right / len(unseen) - 1 / 8) < 0.03  # three and a half standard errors
    places = np.bincount([puzzle.answer for puzzle in unseen], minlength=8)
    assert places.min() > 0.6 * places.mean()


@pytest.mark.parametrize("size", [48, 96, 256])
def test_a_matrix_shows_its_panels_and_a_blank_cell(size):
    puzzle = sample(1, first=8)[0]
    blank, solved = puzzle_pictures.matrix(puzzle, size), puzzle_pictures.matrix(puzzle, size, puzzle.panels[8])
    assert blank.shape == (size, size, 3) and blank.dtype == np.uint8
    third = size // 3
    cell = blank[-third + 4 : -4, -third + 4 : -4]
    assert (cell == puzzle_pictures.BLANK).all()
    changed = (blank != solved).any(-1)
    changed[-third - 2 :, -third - 2 :] = False
    assert not changed.any()
    assert len(np.unique(solved[-third + 4 : -4, -third + 4 : -4].reshape(-1, 3), axis=0)) > 2
    assert puzzle_pictures.panels(puzzle, size).shape == (9, size, size, 3)
    np.testing.assert_array_equal(
        puzzle_pictures.panels(puzzle, size)[8], puzzle_pictures.choices(puzzle, size)[puzzle.answer]
    )


def test_a_panel_shows_as_many_shapes_as_it_counts():
    from lvm.pictures import pieces

    for puzzle in sample(len(RULE_SETS)):
        for shown in puzzle.panels:
            ink = np.abs(puzzle_pictures.panel(puzzle, shown, 96).astype(int) - puzzle_pictures.PAPER).max(-1) > 60
            found = [piece for piece in pieces.find(ink.astype(np.int64)) if piece.size > 8]
            assert len(found) == (shown.count or bin(shown.places).count("1"))


def test_shapes_stay_inside_their_panel():
    for puzzle in sample(3 * len(RULE_SETS)):
        for shown in puzzle.panels:
            picture = puzzle_pictures.panel(puzzle, shown, 48).astype(int)
            rim = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
            assert np.abs(rim - puzzle_pictures.PAPER).max() == 0


def test_the_same_generator_gives_the_same_puzzle():
    assert [asdict(puzzle) for puzzle in sample(24)] == [asdict(puzzle) for puzzle in sample(24)]
