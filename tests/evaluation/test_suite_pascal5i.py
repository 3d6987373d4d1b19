"""pascal5i: the published arithmetic, Pascal-5i's layout in miniature, any folder of masks, the world's objects."""

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_voc import PER_CLASS, VOID, write_voc
from suite_runs import evaluate
from tiny_prompter import SIZE
from torchmetrics.classification import BinaryAccuracy, BinaryJaccardIndex

from lvm.evaluation.annotated import HeldOut
from lvm.evaluation.suites.base import Context
from lvm.evaluation.suites.opening import open_suite
from lvm.evaluation.suites.pascal5i import Pascal5i, class_miou
from lvm.evaluation.two_colours import PALETTES, mask_scores
from lvm.runtime import UserError
from lvm.sources.base import BrokenItem

WORLD = "kind: world\nsplit: test\nnum_scenes: 0\nnum_clips: 0\nnum_objects: 120\nchannels: [image, gray, {}]\n"


@pytest.fixture
def voc(tmp_path) -> Path:
    return write_voc(tmp_path / "data")


def context(data: Path | None, **changes) -> Context:
    return Context(**{"data": str(data), "size": SIZE, "room": 6, "num_cases": 12, **changes})


def suite_of(data: Path | None, *options: str, **changes) -> Pascal5i:
    return open_suite("pascal5i", context(data, **changes), options)


run = partial(evaluate, "pascal5i")


# The arithmetic.


def published_round(picture: np.ndarray, options: list[tuple[int, int, int]]) -> np.ndarray:
    """`round_image` of the published code, with no colour shift."""
    pixels, colours = torch.tensor(picture.astype(np.int32)), torch.tensor(options)
    near = ((pixels.unsqueeze(-1) - colours.view(-1, 1, 1, 3).permute(1, 2, 3, 0)) ** 2).float().mean(dim=2)
    return colours[near.argmin(-1)].numpy()


def published_scores(ours: np.ndarray, target: np.ndarray, figure: tuple[int, int, int]) -> dict[str, float]:
    """`_calc_metric` of the published code."""
    original, found = (target == np.array(figure)).all(2), (ours == np.array(figure)).all(2)
    return {
        "iou": np.sum(np.float32(original & found)) / np.sum(np.float32(original | found)),
        "accuracy": np.sum(np.float32((target == ours).all(axis=2))) / (ours.shape[0] * ours.shape[1]),
    }


@pytest.mark.parametrize("palette", PALETTES)
def test_scores_are_those_of_the_published_code_and_of_torchmetrics(palette):
    rng, colours = np.random.default_rng(1), PALETTES[palette]
    for _ in range(20):
        answer, target = rng.integers(0, 256, (2, 32, 40, 3)).astype(np.uint8)
        options = [colours.figure, colours.ground]
        wanted = published_scores(published_round(answer, options), published_round(target, options), colours.figure)
        found, true = colours.read(answer), colours.read(target)
        scores = mask_scores(found, true)
        for name, value in wanted.items():
            assert scores[name] == pytest.approx(value, abs=1e-6)
        given = torch.tensor(found), torch.tensor(true)
        assert scores["iou"] == pytest.approx(float(BinaryJaccardIndex()(*given)), abs=1e-6)
        assert scores["accuracy"] == pytest.approx(float(BinaryAccuracy()(*given)), abs=1e-6)
        inverse = float(BinaryJaccardIndex()(~given[0], given[1]))
        assert scores["colour_blind_iou"] == pytest.approx(max(scores["iou"], inverse), abs=1e-6)
        np.testing.assert_array_equal(colours.read(colours.draw(true)), true)


def test_an_inverted_answer_is_right_to_who_is_colour_blind():
    mask = np.zeros((8, 8), bool)
    mask[2:5, 3:6] = True
    found = mask_scores(~mask, mask)
    assert found["iou"] == 0 and found["colour_blind_iou"] == 1 and found["accuracy"] == 0
    assert np.isnan(mask_scores(mask & False, mask & False)["iou"])


def test_an_iou_of_a_class_is_of_sums_over_its_episodes():
    rng = np.random.default_rng(2)
    rows, sums = [], {label: np.zeros(2) for label in "ab"}
    for n in range(12):
        label = "ab"[n % 3 == 0]
        found, true = rng.random((2, 9, 9)) > 0.3 + 0.03 * n
        sums[label] += [(found & true).sum(), (found | true).sum()]
        scores = mask_scores(found, true)
        rows.append({"label": label, "conditions": {"right": {"scores": scores}, "none": {}}, "baselines": {}})
    report = class_miou(rows)
    of_class = {label: inside / outside for label, (inside, outside) in sums.items()}
    assert report["class_miou"] == {"right": pytest.approx(np.mean(list(of_class.values())))}
    assert report["classes"]["b"] == {"episodes": 4, "right": pytest.approx(of_class["b"])}


# Pascal-5i.


def test_queries_are_the_lists_in_order_and_pairs_are_other_pictures_of_the_class(voc):
    suite = suite_of(voc.parents[1], "pairs=2", num_cases=5 * PER_CLASS + 3)
    assert len(suite) == 4 * (5 * PER_CLASS + 3)
    start = 2 * (5 * PER_CLASS + 3)  # of fold 2
    lines = (voc / "splits/pascal/val/fold2.txt").read_text().split()
    cases = [suite.case(start + n) for n in range(5 * PER_CLASS + 3)]
    assert {case.task for case in cases} == {"fold2"}
    assert [case.id for case in cases] == [*lines, *(f"{line}#1" for line in lines[:3])]  # gone through again
    own = {case.truth[0].tobytes(): case.label for case in cases}
    for case in cases:
        shown = case.prompts["right"].pictures
        assert [own[mask.tobytes()] for mask in shown[1::2]] == [case.label] * 2
        assert case.truth[0].tobytes() not in [mask.tobytes() for mask in shown[1::2]]
    again = suite_of(voc.parents[1], "pairs=2", num_cases=5 * PER_CLASS + 3).case(start + 7)
    np.testing.assert_array_equal(np.stack(again.prompts["right"].pictures), cases[7].prompts["right"].pictures)


def test_a_mask_is_the_class_alone_resized_and_snapped_as_published(voc):
    suite = suite_of(voc, "fold=1", "palette=purple_yellow", num_cases=5 * PER_CLASS)
    for case in (suite.case(n) for n in range(5)):
        name, k = case.id.split("__")
        mask = np.array(Image.open(voc / "SegmentationClassAug" / f"{name}.png"))
        assert {VOID, int(k)} <= set(np.unique(mask).tolist())
        mask[mask != int(k)] = 0
        mask[mask == int(k)] = 255
        resized = np.asarray(Image.fromarray(mask).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        rounded = published_round(np.repeat(resized[..., None], 3, 2), [(255, 255, 255), (0, 0, 0)])
        wanted = np.where(rounded == 255, [0xFD, 0xE7, 0x25], [0x44, 0x01, 0x54])
        np.testing.assert_array_equal(case.truth[0], wanted)
        assert suite.judge(case, case.truth)["iou"] == 1


def test_lists_may_lie_elsewhere_and_one_fold_needs_its_own_alone(voc, tmp_path):
    shutil.move(voc / "splits", tmp_path / "lists")
    with pytest.raises(UserError, match=r"holds no lists of folds.*expected VOC2012/\{JPEGImages"):
        suite_of(voc)
    (tmp_path / "lists/pascal/val/fold0.txt").unlink()
    suite = suite_of(voc, f"lists={tmp_path / 'lists/pascal'}", "fold=3")
    assert {suite.case(n).task for n in range(len(suite))} == {"fold3"}
    with pytest.raises(UserError, match=r"fold0.txt is missing; expected"):
        suite_of(voc, f"lists={tmp_path / 'lists/pascal'}")


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no pictures": (lambda voc: shutil.rmtree(voc / "JPEGImages"), "JPEGImages is missing; expected VOC2012"),
    "no masks": (lambda voc: shutil.rmtree(voc / "SegmentationClassAug"), "Aug is missing .*expected VOC2012"),
    "a mask": (
        lambda voc: (voc / "SegmentationClassAug/2007_000003.png").unlink(),
        r"Aug lacks 1 of 100 masks of the lists, the first 2007_000003.png; expected VOC2012/\{JPEGImages",
    ),
    "all pictures": (lambda voc: empty(voc / "JPEGImages"), "lacks 100 of 100 pictures"),
    "a line": (
        lambda voc: (voc / "splits/pascal/val/fold0.txt").write_text("2007_000000\n"),
        "line 1: '2007_000000' is",
    ),
    "a class of another fold": (
        lambda voc: (voc / "splits/pascal/val/fold0.txt").write_text("2007_000000__01\n2007_000000__06\n"),
        "line 2: class 6 is not of fold 0, whose classes are 1 to 5",
    ),
    "an empty class": (
        lambda voc: (voc / "splits/pascal/val/fold0.txt").write_text("2007_000000__01\n"),
        "no picture of bicycle, bird, boat, bottle",
    ),
    "a way out": (lambda voc: (voc / "splits/pascal/val/fold0.txt").write_text("../../x__01\n"), "is not like"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_tree_is_one_line_that_says_what_is_missing(voc, name):
    damage, wanted = DAMAGE[name]
    damage(voc)
    with pytest.raises(UserError, match=wanted) as error:
        suite_of(voc)
    assert "\n" not in str(error.value)


def test_other_bad_input_is_refused(voc, tmp_path):
    with pytest.raises(UserError, match="fold is 4; use one of 'all', 0, 1, 2, 3"):
        suite_of(voc, "fold=4")
    with pytest.raises(
        UserError, match=r"no class to ask about .*: aeroplane \(4 others to show, 9 wanted\).* 12 more;"
    ):
        suite_of(voc, "pairs=9", room=30)
    (tmp_path / "sbd/dataset/cls").mkdir(parents=True)
    (tmp_path / "sbd/dataset/cls/2008_000002.mat").write_bytes(b"MATLAB")
    with pytest.raises(UserError, match=r"\.mat files, which are not read; give VOC2012 with the merged masks as PNG"):
        suite_of(tmp_path / "sbd")


def test_masks_that_cannot_be_used_fail_their_cases_alone(voc):
    masks = voc / "SegmentationClassAug"
    Image.new("L", (7, 9), 1).save(masks / "2007_000000.png")
    Image.new("L", (60, 40), 9).save(masks / "2007_000001.png")
    Image.new("RGB", (48, 64)).save(masks / "2007_000002.png")
    (voc / "JPEGImages/2007_000003.jpg").write_bytes(b"no picture")
    suite = suite_of(voc, "fold=0", "pairs=1", num_cases=5 * PER_CLASS)
    wanted = {0: "7 x 9, its picture 48 x 64", 1: "no pixel of class 2, bicycle", 2: "mode RGB", 3: "not a picture"}
    for n, reason in wanted.items():
        with pytest.raises(BrokenItem, match=reason):
            suite.case(n)
    suite.case(4)


def test_a_run_names_the_picture_that_fails_and_the_same_command_mends_it(voc, saved_prompter, tmp_path, capsys):
    broken = voc / "JPEGImages/2007_000007.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:20])
    options = ["--data", str(voc), "fold=1", "pairs=1", "--targets", str(5 * PER_CLASS)]
    code, report = run(saved_prompter, tmp_path / "out", *options)
    assert code == 1 and "2007_000007.jpg" in capsys.readouterr().err
    assert report["failed"] and {Path(row["file"]).name for row in report["failed"]} == {"2007_000007.jpg"}
    broken.write_bytes(whole)
    code, report = run(saved_prompter, tmp_path / "out", *options)
    assert code == 0 and not report["failed"]
    fold = report["tasks"]["fold1"]
    assert set(fold["conditions"]) == {"right", "wrong_task", "shuffled", "none"}
    assert set(fold["classes"]) == {"bus", "car", "cat", "chair", "cow"}
    assert fold["class_miou"]["tokenizer_ceiling"] <= 1 and fold["items"] == 5 * PER_CLASS
    assert report["settings"]["masks"].startswith("other classes and void (255) are ground")


# Any folder, and the world.


def write_folder(root: Path, classes: list[str], number: int = 4) -> Path:
    rng = np.random.default_rng(3)
    for label in classes:
        for part in ("images", "masks"):
            (root / part / label).mkdir(parents=True)
        for n in range(number):
            Image.fromarray(rng.integers(0, 256, (30, 40, 3)).astype(np.uint8)).save(root / f"images/{label}/{n}.jpg")
            mask = np.zeros((30, 40, 3), np.uint8)
            mask[5 : 15 + n, 10:30] = (255, 255, 255) if n % 2 else (200, 30, 90)
            Image.fromarray(mask).save(root / f"masks/{label}/{n}.png")
    return root


def test_a_folder_of_masks_has_its_classes_by_name_in_four_runs(tmp_path, saved_prompter, capsys):
    names = ["ant", "bee", "cat", "dog", "elk", "fox"]
    root = write_folder(tmp_path / "own", names)
    suite = suite_of(root, "pairs=1", kept_out=HeldOut(1000))
    folds = [list(classes) for classes in suite.settings["classes"].values()]
    assert folds == [["ant", "bee"], ["cat", "dog"], ["elk"], ["fox"]]
    case = suite.case(0)
    assert set(map(tuple, case.truth[0].reshape(-1, 3).tolist())) == {(0, 0, 0), (255, 255, 255)}
    assert 0.15 < (case.truth[0] > 0).mean() < 0.35
    (root / "images/ant/1.jpg").write_bytes(b"")
    code, report = run(
        saved_prompter, tmp_path / "out", "--data", str(root), "--held-out", "1000", "pairs=1", "--targets", "2"
    )
    assert code == 1 and "ant/1.jpg" in capsys.readouterr().err and len(report["unreadable"]) == 1
    assert len(report["tasks"]) == 4


def blacken(mask: Path) -> None:
    Image.new("RGB", (40, 30)).save(mask)


def test_a_mask_without_a_figure_fails_its_case_alone(tmp_path, saved_prompter, capsys):
    root = write_folder(tmp_path / "own", ["ant", "bee"])
    blacken(root / "masks/bee/2.png")
    words = ["--data", str(root), "--held-out", "1000", "pairs=1", "--targets", "4"]
    code, report = run(saved_prompter, tmp_path / "out", *words)
    assert code == 1 and [row["file"] for row in report["failed"]] == ["bee/2"]
    assert "bee/2: its truth shows no figure at 16 x 16 pixels" in capsys.readouterr().err
    assert [report["tasks"][name]["items"] for name in ("fold0", "fold1")] == [4, 3]


def test_classes_of_which_nothing_is_asked_are_named(tmp_path, capsys):
    root = write_folder(tmp_path / "own", ["ant", "bee", "cat", "dog", "elk", "fox"])
    for n in range(4):
        (root / f"masks/bee/{n}.png").unlink()
    for n in range(1, 4):
        (root / f"masks/dog/{n}.png").unlink()
    held_out = HeldOut(0, tuple(f"{label}/{n}" for label in ("ant", "bee", "dog", "elk", "fox") for n in range(4)))
    suite = suite_of(root, "pairs=2", kept_out=held_out)
    left_out = "bee (no segmentation), cat (none may be asked), dog (0 others to show, 2 wanted)"
    assert f"pascal5i: 3 of 6 classes are not asked about: {left_out}\n" in capsys.readouterr().err
    assert {suite.case(n).label for n in range(len(suite))} == {"ant", "elk", "fox"}
    assert list(suite.settings["classes"]) == ["fold0", "fold2", "fold3"]  # of ant and cat, dog, elk, fox
    with pytest.raises(UserError, match="no class of fold1 is left"):
        suite_of(root, "pairs=2", "fold=1", kept_out=held_out)
    with pytest.raises(UserError, match=r"no class to ask about .*: ant \(3 others to show, 4 wanted\), bee"):
        suite_of(root, "pairs=4", room=10, kept_out=held_out)
    suite_of(write_folder(tmp_path / "whole", ["ant"]), "pairs=2", kept_out=HeldOut(1000))
    assert not capsys.readouterr().err.partition("whole")[1]


def test_lists_are_of_voc_alone(tmp_path):
    root = write_folder(tmp_path / "own", ["ant", "bee"])
    for data in (None, root):
        with pytest.raises(UserError, match="lists=somewhere is an option of VOC2012 alone"):
            open_suite("pascal5i", Context(data and str(data), SIZE, 6, kept_out=HeldOut(1000)), ("lists=somewhere",))


def test_a_folder_that_cannot_be_asked_says_why(tmp_path):
    two = write_folder(tmp_path / "two", ["ant", "bee"])
    with pytest.raises(UserError, match="fold3 of two has no pictures; there are fold0, fold1"):
        suite_of(two, "fold=3", kept_out=HeldOut(1000))
    shutil.rmtree(two / "masks")
    with pytest.raises(UserError, match=r"has no masks .*expected images/CLASS/x.jpg with masks/CLASS/x.png"):
        suite_of(two)
    plain = tmp_path / "plain"
    for part in ("images", "masks"):
        (plain / part).mkdir(parents=True)
        Image.new("L", (20, 20), 255).save(plain / part / "x.png")
    with pytest.raises(UserError, match="has masks but no classes"):
        suite_of(plain)


def test_the_worlds_objects_are_asked_in_four_folds_within_seconds(saved_prompter, tmp_path):
    began = time.monotonic()
    (tmp_path / "world.yaml").write_text(WORLD.format("object_mask, object_box"))
    code, report = run(
        saved_prompter, tmp_path / "out", "--data", str(tmp_path / "world.yaml"), "--targets", "5", "pairs=2"
    )
    assert code == 0 and report["items"] == 20 and time.monotonic() - began < 20
    assert list(report["tasks"]) == ["fold0", "fold1", "fold2", "fold3"]
    seen = [set(classes) for classes in report["settings"]["classes"].values()]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 17
    for fold in report["tasks"].values():
        assert set(fold["controls"]) == {"wrong_task", "shuffled", "none"}
        assert fold["baselines"]["copy_last_answer"]["iou"]["mean"] > fold["baselines"]["copy_query"]["iou"]["mean"]
    assert report["published"][-1]["scores"]["fold1"] == 0.5129 and report["published"][-1]["caveat"]


def test_a_mask_that_a_resize_has_blurred_keeps_its_size(tmp_path):
    """Masks of one's own in a channel that is resized as photos are: a bright rim is no figure."""
    for folder in ("images/a", "wholes/a"):
        (tmp_path / folder).mkdir(parents=True)
    for k in range(4):
        Image.fromarray(np.full((90, 90, 3), 20 * k, np.uint8)).save(tmp_path / f"images/a/{k}.png")
        mask = np.zeros((90, 90), np.uint8)
        mask[30:60, 30:60] = 200 if k else 255
        Image.fromarray(mask).save(tmp_path / f"wholes/a/{k}.png")
    source = tmp_path / "source.yaml"
    source.write_text(f"kind: pictures\npath: {tmp_path}\nchannels: {{wholes: object_mask}}\n")
    suite = suite_of(source, "pairs=2", kept_out=HeldOut())
    for i in range(4):
        figure = suite.case(i).truth[0].any(-1)
        assert figure.sum() == pytest.approx((SIZE / 3) ** 2, rel=0.3)
