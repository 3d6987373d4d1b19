"""Scores on pictures made by hand, where the right number is known."""

import numpy as np
import pytest

from lvm.evaluation import measures

BLACK, WHITE, RED, BLUE = (0, 0, 0), (255, 255, 255), (230, 30, 30), (40, 70, 235)


def plain(colour: tuple[int, int, int], size: int = 24) -> np.ndarray:
    return np.full((size, size, 3), colour, np.uint8)


def with_square(ground: np.ndarray, left: int, top: int, side: int, colour: tuple[int, int, int]) -> np.ndarray:
    picture = ground.copy()
    picture[top : top + side, left : left + side] = colour
    return picture


def outline(ground: np.ndarray, left: int, top: int, side: int, colour: tuple[int, int, int]) -> np.ndarray:
    picture = with_square(ground, left, top, side, colour)
    picture[top + 1 : top + side - 1, left + 1 : left + side - 1] = ground[
        top + 1 : top + side - 1, left + 1 : left + side - 1
    ]
    return picture


def test_psnr_is_that_of_a_known_error_and_finite_for_equal_pictures() -> None:
    truth = plain((100, 100, 100))
    assert measures.psnr(truth + np.uint8(10), truth) == pytest.approx(10 * np.log10(255**2 / 100))
    assert measures.psnr(truth, truth) == measures.MAX_PSNR


def test_psnr_does_not_wrap_around_at_255() -> None:
    assert measures.psnr(plain(WHITE), plain(BLACK)) == pytest.approx(0)


def test_miou_counts_each_class_of_the_truth_once() -> None:
    truth = with_square(plain(BLACK, 10), 0, 0, 5, RED)  # 25 red, 75 black
    answer = with_square(plain(BLACK, 10), 0, 0, 4, RED)  # 16 red, all inside
    palette = measures.colours_of(truth)
    assert measures.miou(answer, truth, palette) == pytest.approx((16 / 25 + 75 / 84) / 2)
    assert measures.miou(truth, truth, palette) == 1


def test_miou_snaps_blurred_colours_to_the_palette() -> None:
    truth = with_square(plain(BLACK), 4, 4, 10, RED)
    blurred = np.clip(truth.astype(int) + np.random.default_rng(0).integers(-60, 60, truth.shape), 0, 255)
    assert measures.miou(blurred.astype(np.uint8), truth, measures.colours_of(truth)) == 1


def test_miou_of_swapped_colours_is_zero() -> None:
    truth = with_square(plain(BLUE), 4, 4, 10, RED)
    swapped = with_square(plain(RED), 4, 4, 10, BLUE)
    assert measures.miou(swapped, truth, measures.colours_of(truth)) == 0


def test_colours_come_most_common_first_and_bounded() -> None:
    assert measures.colours_of(with_square(plain(BLUE), 0, 0, 3, RED)).tolist() == [list(BLUE), list(RED)]
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    assert len(measures.colours_of(noise)) == measures.MAX_PALETTE


def test_lines_off_by_one_pixel_match_and_by_three_do_not() -> None:
    truth = plain(BLACK)
    truth[:, 10] = WHITE
    near, far = plain(BLACK), plain(BLACK)
    near[:, 11] = WHITE
    far[:, 13] = WHITE
    assert measures.line_f1(near, truth) == 1
    assert measures.line_f1(far, truth) == 0


def test_half_the_lines_score_two_thirds() -> None:
    truth, answer = plain(BLACK), plain(BLACK)
    truth[:, 5] = truth[:, 18] = WHITE
    answer[:, 5] = WHITE
    assert measures.line_f1(answer, truth) == pytest.approx(2 / 3)


def test_dark_lines_on_a_light_ground_score_the_same() -> None:
    truth = plain(WHITE)
    truth[:, 10] = BLACK
    assert measures.line_f1(truth, truth) == 1
    assert measures.line_f1(plain(WHITE), truth) == 0


def test_an_empty_drawing_matches_only_an_empty_drawing() -> None:
    lines = plain(BLACK)
    lines[:, 10] = WHITE
    assert measures.line_f1(plain(BLACK), plain(BLACK)) == 1
    assert measures.line_f1(lines, plain(BLACK)) == 0


def test_boxes_of_the_right_place_and_colour_match_on_any_photo() -> None:
    photo = np.random.default_rng(0).integers(0, 120, (24, 24, 3)).astype(np.uint8)
    truth = outline(photo, 4, 4, 12, (250, 220, 30))
    assert measures.box_f1(truth, truth, photo) == 1
    assert measures.box_f1(photo, truth, photo) == 0
    assert measures.box_f1(outline(photo, 4, 4, 12, BLUE), truth, photo) == 0
    assert measures.box_f1(outline(photo, 12, 12, 10, (250, 220, 30)), truth, photo) < 0.5


def test_only_moving_pixels_are_scored() -> None:
    last = with_square(plain(BLACK), 2, 8, 6, WHITE)
    truth = with_square(plain(BLACK), 8, 8, 6, WHITE)
    spoiled = truth.copy()
    spoiled[20:, 20:] = RED  # where nothing moves
    assert measures.moving_psnr(spoiled, truth, last) == measures.MAX_PSNR
    assert measures.moving_psnr(last, truth, last) == pytest.approx(0)


def test_a_still_clip_has_no_score() -> None:
    assert np.isnan(measures.moving_psnr(plain(RED), plain(RED), plain(RED)))


def test_unknown_tasks_are_scored_by_psnr() -> None:
    assert measures.score_of("pose") is measures.PSNR
    assert measures.score_of("segmentation").metric == "miou"
