"""puzzles: choices in order, accuracies by likelihood and by painted cells, RAVEN's files in miniature, whole runs."""

import json
import pickle
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from suite_runs import evaluate, save_prompter
from tiny_prompter import TOKENS

from lvm.evaluation.cases import CONTROLS, NONE, RIGHT, SHUFFLED, WRONG_TASK
from lvm.evaluation.choice_measures import ninth_cell, root_mean_square, share_of_least
from lvm.evaluation.datasets.raven import RavenMatrices
from lvm.evaluation.suites.base import Context
from lvm.evaluation.suites.opening import open_suite
from lvm.evaluation.suites.puzzles import PuzzleSuite, by_likelihood
from lvm.runtime import UserError
from lvm.sources.base import BrokenItem
from lvm.world.puzzle_pictures import BLANK


@pytest.fixture(scope="module")
def prompter(tmp_path_factory) -> list[str]:
    """Ten pictures a window, so that nine panels fit."""
    return save_prompter(tmp_path_factory.mktemp("prompter"), max_position=10 * TOKENS)


run = partial(evaluate, "puzzles")


def suite_of(data: Path | str | None, *options: str, **changes) -> PuzzleSuite:
    given = {"data": None if data is None else str(data), "size": 96, "room": 12, "num_cases": 12, **changes}
    suite = open_suite("puzzles", Context(**given), options)
    assert isinstance(suite, PuzzleSuite)
    return suite


@pytest.fixture
def raven(tmp_path) -> Path:
    """Two kinds of five matrices, each of its test split; beside them one for training and arrays that need pickle."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "RAVEN-10000"
    for kind in ("center_single", "distribute_four"):
        (folder / kind).mkdir(parents=True)
        for k in range(6):
            panels = rng.integers(0, 256, (16, 8, 8), dtype=np.uint8).repeat(20, 1).repeat(20, 2)
            split = "test" if k else "train"
            given = {"image": panels, "target": np.int64(k % 8), "meta_matrix": np.zeros((8, 9), np.uint8)}
            np.savez_compressed(
                folder / kind / f"RAVEN_{k}_{split}.npz", **given, structure=np.array(["Scene", None], object)
            )
    return folder


# What is asked.


def test_the_ninth_cell_alone_tells_a_question_from_its_choices():
    suite = suite_of(None)
    for n in range(len(suite)):
        case = suite.case(n)
        query = case.prompts[RIGHT].pictures[-1]
        np.testing.assert_array_equal(case.choices[case.right_choice], case.truth[0])
        assert (ninth_cell(query) == BLANK).all() and len({c.tobytes() for c in case.choices}) == 8
        differs = (np.stack(case.choices) != query).any((0, -1))
        assert not differs[:62].any() and not differs[:, :62].any()
        assert len({ninth_cell(c).tobytes() for c in case.choices}) == 8


def test_pairs_follow_the_rules_of_the_query_and_those_of_the_control_do_not():
    suite = suite_of(None, size=24, world={"kind": "world", "num_scenes": 0, "num_clips": 0, "num_puzzles": 240})
    data = suite._data
    number_of = {data.read(i, 0)["image"].tobytes(): i for i in range(len(data))}
    for n in range(len(suite)):
        case = suite.case(n)
        for condition, same in ((RIGHT, True), (WRONG_TASK, False)):
            pictures = case.prompts[condition].pictures
            assert len(pictures) == 11
            for given, answer in zip(pictures[:-1:2], pictures[1:-1:2]):
                number = number_of[given.tobytes()]
                assert (data.labels[number] == case.label) is same
                np.testing.assert_array_equal(answer, data.read(number, 0)["solution"])
        assert [len(case.prompts[c].pictures) for c in (SHUFFLED, NONE)] == [11, 1]


def test_panels_are_shown_in_reading_order_and_controls_end_in_the_same_two():
    suite = suite_of(None, "form=panels")
    for n in range(len(suite)):
        case = suite.case(n)
        shown = {name: prompt.pictures for name, prompt in case.prompts.items()}
        assert {name: len(pictures) for name, pictures in shown.items()} == {
            RIGHT: 8,
            WRONG_TASK: 8,
            SHUFFLED: 8,
            NONE: 2,
        }
        assert all(np.array_equal(pictures[-2:], shown[RIGHT][-2:]) for pictures in shown.values())
        rows = {name: [picture.tobytes() for picture in pictures[:6]] for name, pictures in shown.items()}
        assert sorted(rows[SHUFFLED]) == sorted(rows[RIGHT]) and rows[WRONG_TASK] != rows[RIGHT]
        np.testing.assert_array_equal(case.choices[case.right_choice], case.truth[0])


# How it is judged.


@pytest.mark.parametrize("form", ["matrix", "panels"])
def test_each_choice_painted_is_taken_for_itself_also_under_noise(form):
    suite = suite_of(None, f"form={form}")
    rng = np.random.default_rng(0)
    for n in range(4):
        case = suite.case(n)
        for k, choice in enumerate(case.choices):
            noisy = np.clip(choice + rng.normal(0, 4, choice.shape), 0, 255).astype(np.uint8)
            assert suite.judge(case, [choice]).get("correct") == (k == case.right_choice)
            found = suite.judge(case, [noisy])
            assert found["correct"] == found["exact"] == (k == case.right_choice)
        coarse = np.clip(case.truth[0] + rng.normal(0, 60, case.truth[0].shape), 0, 255).astype(np.uint8)
        assert suite.judge(case, [coarse])["exact"] == 0


def test_differences_and_the_least_of_them_against_plain_arithmetic():
    rng = np.random.default_rng(0)
    picture, others = rng.integers(0, 256, (6, 5, 3), np.uint8), rng.integers(0, 256, (4, 6, 5, 3), np.uint8)
    for other, found in zip(others, root_mean_square(picture, others)):
        plain = (sum((int(a) - int(b)) ** 2 for a, b in zip(picture.ravel(), other.ravel())) / picture.size) ** 0.5
        assert found == pytest.approx(plain, abs=1e-9)
    assert share_of_least([3, 1, 2], 1) == 1 and share_of_least([3, 1, 2], 0) == 0
    assert share_of_least([1, 1, 2, 1], 3) == pytest.approx(1 / 3) and share_of_least([1, 1, 2], 2) == 0


def test_the_cell_is_the_last_of_nine_without_its_lines():
    for size in (16, 48, 64, 96, 256):
        cell = ninth_cell(np.zeros((size, size, 3), np.uint8))
        assert size / 3 - 2 * max(1, round(size / 40)) - 1 < cell.shape[0] <= size / 3


def test_the_prior_of_a_choice_is_taken_off_its_likelihood():
    def row(right, none):
        conditions = {RIGHT: {"choices": right}, NONE: {"choices": none}}
        return {"conditions": conditions, "right_choice": 2}

    rows = [row([5, 9, 7], [6, 9, 9]), row([9, 9, 3], [9, 9, 9]), row([1, 5, 5], [9, 5, 6])]
    assert by_likelihood(rows, RIGHT).tolist() == [0, 1, 0]
    assert by_likelihood(rows, RIGHT, NONE).tolist() == [1, 1, 0]
    assert by_likelihood(rows, SHUFFLED) is None


# RAVEN.


def test_ravens_files_are_read_as_they_are_distributed(raven):
    data = RavenMatrices(raven, 96)
    assert len(data) == 10 and set(data.labels) == {"center_single", "distribute_four"}
    assert data.ids[0] == "center_single/RAVEN_1_test"
    for i in range(len(data)):
        with np.load(data.files[i]) as arrays:
            image, target = arrays["image"], int(arrays["target"])
        assert data.right_choice(i) == target and data.panels(i).shape == (9, 96, 96, 3)
        np.testing.assert_array_equal(data.panels(i)[8], data.choices(i)[target])
        np.testing.assert_array_equal(data.filled(i)[target], data.read(i, 0)["solution"])
        assert (ninth_cell(data.read(i, 0)["image"]) == BLANK).all()
        assert abs(ninth_cell(data.filled(i)[3]).mean() - image[8 + 3].mean()) < 8
        first = data.read(i, 0)["image"][8:24, 8:24]  # within the first cell
        assert abs(first.mean() - image[0].reshape(32, 5, 32, 5).mean((1, 3))[8:24, 8:24].mean()) < 12


def test_matrices_in_pgms_shape_are_read_too(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (16, 160, 160), dtype=np.uint8)
    np.savez(tmp_path / "PGM_neutral_test_0.npz", image=image.reshape(160, 160, 16), target=np.array(5))
    data = RavenMatrices(tmp_path, 160)
    assert data.right_choice(0) == 5
    np.testing.assert_array_equal(data.panels(0)[..., 0], np.concatenate([image[:8], image[13:14]]))


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"image": np.zeros((16, 80, 80), np.uint8), "target": np.int64(1)}, r"image is uint8 \[16, 80, 80\]"),
        ({"image": np.zeros((16, 160, 160), np.uint8), "target": np.int64(8)}, "target is no number from 0 to 7"),
        ({"image": np.zeros((16, 160, 160), np.uint8)}, "has no array target"),
        ({"image": np.zeros((160, 160, 160, 4), np.uint8), "target": np.int64(1)}, "holds more than"),
    ],
)
def test_a_matrix_of_another_form_is_broken_not_guessed(tmp_path, arrays, told):
    np.savez_compressed(tmp_path / "a_test.npz", **arrays)
    with pytest.raises(BrokenItem, match=rf"a_test\.npz: {told}.*; expected FOLDER"):
        RavenMatrices(tmp_path, 48).read(0, 0)


def test_nothing_is_unpickled_and_damage_is_named(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    np.savez(tmp_path / "a_test.npz", image=np.array([Trap()], object), target=np.int64(1))
    np.savez(tmp_path / "b_test.npz", image=np.zeros((16, 160, 160), np.uint8), target=np.int64(1))
    whole = (tmp_path / "b_test.npz").read_bytes()
    (tmp_path / "b_test.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c_test.npz").write_bytes(pickle.dumps([1]))
    data = RavenMatrices(tmp_path, 48)
    for i in range(3):
        with pytest.raises(BrokenItem, match=r"_test\.npz: "):
            data.read(i, 0)
    assert not (tmp_path / "sprung").exists() and zipfile.is_zipfile(tmp_path / "a_test.npz")


def test_a_folder_without_matrices_is_told_the_tree(tmp_path):
    with pytest.raises(UserError, match=r"has no \.npz below it; expected FOLDER/KIND/NAME_test\.npz"):
        suite_of(tmp_path)


# Whole runs.


@pytest.mark.parametrize("form", ["matrix", "panels"])
def test_twenty_puzzles_within_twenty_seconds(prompter, tmp_path, form):
    began = time.process_time()  # of this process alone: others may be busy
    code, report = run(prompter, tmp_path / "out", "--targets", "20", f"form={form}")
    assert code == 0 and time.process_time() - began < 20
    found = report["tasks"][form]
    assert found["items"] == 20 and found["chance"] == report["settings"]["chance"] == 0.125
    assert set(found["controls"]) == {"wrong_task", "shuffled", "none"} == set(found["likelihood_over_controls"])
    assert set(found["prior_corrected"]) == {"right", "wrong_task", "shuffled"}
    rows = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").read_text().splitlines()]
    likely = [row["conditions"]["right"]["choice"] == row["right_choice"] for row in rows]
    assert found["likelihood"]["right"]["mean"] == pytest.approx(np.mean(likely), abs=0.1)  # ties apart
    assert sum(label["items"] for label in found["by_label"].values()) == 20
    mean = np.average(
        [label["likelihood"] for label in found["by_label"].values()],
        weights=[label["items"] for label in found["by_label"].values()],
    )
    assert mean == pytest.approx(found["likelihood"]["right"]["mean"])


@pytest.mark.parametrize("form", ["matrix", "panels"])
def test_raven_is_evaluated_and_a_broken_file_costs_its_cases_alone(prompter, tmp_path, raven, form, capsys):
    options = ("--data", str(raven), "--targets", "10", f"form={form}", *(["pairs=1"] if form == "matrix" else []))
    code, report = run(prompter, tmp_path / "whole", *options)
    assert code == 0 and set(report["tasks"][form]["by_label"]) == {"center_single", "distribute_four"}
    assert report["settings"]["data"] == "RAVEN-10000"
    (raven / "center_single/RAVEN_2_test.npz").write_bytes(b"PK")
    code, report = run(prompter, tmp_path / "broken", *options)
    assert code == 1 and 1 <= len(report["failed"]) < 10 and "RAVEN_2_test.npz" in capsys.readouterr().err


@pytest.mark.parametrize(("form", "told"), [("matrix", "no other class"), ("panels", "of one kind")])
def test_raven_of_one_kind_says_why_it_has_no_control_of_other_rules(raven, form, told):
    both = suite_of(raven, f"form={form}", *(["pairs=1"] if form == "matrix" else []))
    assert set(both.case(0).prompts) == {RIGHT, *CONTROLS} and "wrong_task" not in both.settings
    for kind in raven.iterdir():
        one = suite_of(kind, f"form={form}", *(["pairs=1"] if form == "matrix" else []))
        assert set(one.case(0).prompts) == {RIGHT, SHUFFLED, NONE} and told in one.settings["wrong_task"][form]


def test_options_and_data_that_cannot_be_are_told(tmp_path):
    with pytest.raises(UserError, match="the panels of a matrix are 9"):
        suite_of(None, "form=panels", room=6)
    with pytest.raises(UserError, match="pairs, choose, order and ensemble are of form=matrix"):
        suite_of(None, "form=panels", "pairs=2")
    with pytest.raises(UserError, match="exact -1"):
        suite_of(None, "exact=-1")
    with pytest.raises(UserError, match="num_puzzles is 0"):
        suite_of("world")
    write_pictures(tmp_path / "photos")
    (tmp_path / "photos.yaml").write_text(json.dumps({"kind": "pictures", "path": str(tmp_path / "photos")}))
    with pytest.raises(UserError, match="holds no matrices with choices"):
        suite_of(tmp_path / "photos.yaml")


def write_pictures(folder: Path) -> None:
    folder.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "a.png")
