"""video: frames painted, and scores that equal reference implementations."""

import json
import time

import numpy as np
import pytest
import torch
import torchmetrics.functional.image as reference
from small_clips import write_clips
from suite_runs import save_prompter
from tiny_prompter import SIZE

from lvm.commands.evaluate import main
from lvm.evaluation.ask import repaint
from lvm.evaluation.clips import baselines_of
from lvm.evaluation.measures import MOVING, moving_psnr, psnr
from lvm.evaluation.suites.base import Context
from lvm.evaluation.suites.opening import open_suite
from lvm.evaluation.video_measures import frame_scores, moving_iou, ssim
from lvm.inference.prompter import Prompter
from lvm.runtime import UserError

WORLD = "kind: world\nsplit: test\nnum_scenes: 0\nnum_clips: 60\nnum_frames: 6\n"
MEASURES = ("psnr", "ssim", "moving_psnr", "moving_iou")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def plain(*levels: int) -> list[np.ndarray]:
    return [np.full((SIZE, SIZE, 3), level, np.uint8) for level in levels]


def as_tensor(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).double()


# Scores.


@pytest.mark.parametrize("size", [(11, 11), (16, 16), (48, 61)])
def test_ssim_and_psnr_are_those_of_torchmetrics(size):
    """torchmetrics takes the mean over reflected borders too; scikit-image and the paper where the window fits."""
    truths = noise(6, *size, 3)
    for strength in (0, 8, 60, 255):
        answers = np.clip(truths + np.random.default_rng(1).normal(0, strength, truths.shape), 0, 255).astype(np.uint8)
        ours = ssim(answers, truths)
        for k in range(6):
            a, b = as_tensor(answers[k : k + 1]), as_tensor(truths[k : k + 1])
            _, everywhere = reference.structural_similarity_index_measure(
                a, b, data_range=255.0, return_full_image=True
            )
            assert ours[k] == pytest.approx(float(everywhere[..., 5:-5, 5:-5].mean()), abs=1e-4)
            if strength:
                theirs = reference.peak_signal_noise_ratio(a, b, data_range=255.0)
                assert psnr(answers[k], truths[k]) == pytest.approx(float(theirs), abs=1e-4)


def test_what_moves_is_what_differs_from_the_last_frame():
    last, truth, answer = plain(100, 100, 100)
    truth[:4], answer[2:6] = 100 + MOVING + 1, 100 - MOVING - 1
    answer[10:] = 100 + MOVING  # not enough
    assert moving_iou(answer, truth, last) == pytest.approx(2 / 6)
    assert moving_iou(truth, truth, last) == 1 and moving_iou(last, truth, last) == 0
    assert np.isnan(moving_iou(answer, last, last))
    a, b, c = noise(3, SIZE, SIZE, 3)
    where = np.abs(b.astype(float) - c).mean(-1) > MOVING
    given = np.abs(a.astype(float) - c).mean(-1) > MOVING
    assert moving_iou(a, b, c) == pytest.approx((where & given).sum() / (where | given).sum())
    error = ((a.astype(float) - b) ** 2)[where].mean()
    assert moving_psnr(a, b, c) == pytest.approx(10 * np.log10(255**2 / error))


def test_the_last_frame_shown_is_the_measure_of_every_frame():
    last, *truths = plain(0, 50, 100)
    found = frame_scores([last, truths[1]], truths, last)
    assert found["moving_iou"] == [0, 1] and found["psnr"][1] == found["moving_psnr"][1] == 100


def test_baselines_repeat_go_on_and_average():
    shown = plain(30, 10, 40)
    found = baselines_of(shown, 3)
    assert [picture[0, 0, 0] for picture in found["copy_last_frame"]] == [40, 40, 40]
    assert [picture[0, 0, 0] for picture in found["linear_extrapolation"]] == [70, 100, 130]
    assert [picture[0, 0, 0] for picture in found["mean_frame"]] == [27, 27, 27]
    assert [picture[0, 0, 0] for picture in baselines_of(plain(100, 180), 2)["linear_extrapolation"]] == [255, 255]
    assert set(baselines_of(shown[:1], 1)) == {"copy_last_frame"}


# The suite.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompter")
    save_prompter(folder)
    (folder / "world.yaml").write_text(WORLD)
    return folder


def run(folder, out, data, *rest):
    words = [str(folder / "model"), "--tokenizer", str(folder / "tokenizer"), "--data", str(data), "--suite", "video"]
    code = main([*words, "--workers", "0", "--exact", "--out", str(out), *rest])
    report = json.loads((out / "report.json").read_text())
    return code, report, [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def asked(folder, tmp_path_factory):
    began = time.monotonic()
    found = run(folder, tmp_path_factory.mktemp("out"), folder / "world.yaml", "--targets", "20", "frames=2")
    assert time.monotonic() - began < 20
    return found


def test_answers_are_scored_together_and_frame_by_frame(asked):
    code, report, rows = asked
    assert code == 0 and report["items"] == 20 and [m["name"] for m in report["measures"]] == list(MEASURES)
    assert report["settings"]["shown"] == [1, 3] and report["settings"]["frames"] == 2
    task = report["tasks"]["next_frames"]
    assert set(task["conditions"]) == {"right", "wrong_task", "shuffled", "none"}
    others = {"copy_last_frame", "linear_extrapolation", "mean_frame", "tokenizer_ceiling"}
    assert set(task["baselines"]) == others and set(task["controls"]) == {"wrong_task", "shuffled", "none"}
    for name in ("psnr", "ssim"):
        for kind in {*task["conditions"], *others}:
            together = (task["conditions"] | task["baselines"])[kind][name]["mean"]
            first, second = (found["mean"] for found in task["by_frame"][name][kind])
            assert together == pytest.approx((first + second) / 2) and first != second
        assert task["by_shown"][name]["1"] == task["conditions"]["none"][name]
        assert task["by_shown"][name]["3"] == task["conditions"]["right"][name]
    assert [found["mean"] for found in task["by_frame"]["moving_iou"]["copy_last_frame"]] == [0, 0]
    moving = [row["conditions"]["right"]["scores"]["moving_iou_1"] for row in rows]
    assert task["by_frame"]["moving_iou"]["right"][0]["items"] == sum(value is not None for value in moving) > 5


def test_answers_are_greedy_continuations_and_judged_as_written(folder, asked):
    _, _, rows = asked
    prompter = Prompter.from_pretrained(folder / "model", folder / "tokenizer", device="cpu")
    suite = open_suite("video", Context(str(folder / "world.yaml"), SIZE, 6, 20), ["frames=2"])
    for row in rows[:4]:
        case = suite.case(row["case"])
        last = case.prompts["none"].pictures[-1]
        for condition, shown in case.prompts.items():
            again = prompter.sequence(list(shown.pictures), 2, temperature=0).pictures[0]
            painted = repaint(prompter, row, condition)
            np.testing.assert_array_equal(painted, again)
            scores = row["conditions"][condition]["scores"]
            for k in range(2):
                # Painted anew in another batch, a pixel may round to the next gray level.
                assert scores[f"psnr_{k + 1}"] == pytest.approx(psnr(painted[k], case.truth[k]), abs=1e-3)
                iou = moving_iou(painted[k], case.truth[k], last)
                assert scores[f"moving_iou_{k + 1}"] == (pytest.approx(iou, abs=0.01) if np.isfinite(iou) else None)
        perfect = suite.judge(case, case.truth)
        assert perfect["psnr"] == 100 and perfect["ssim"] == pytest.approx(1)
        assert perfect["moving_iou_2"] == 1 or np.isnan(perfect["moving_iou_2"])


def test_one_frame_has_no_numbered_scores_and_a_still_clip_no_number_of_what_moves(folder, tmp_path):
    write_clips(tmp_path / "data", *[5] * 4)
    code, report, rows = run(folder, tmp_path / "out", tmp_path / "data", "--held-out", "1000", "frames=1")
    assert code == 0 and set(rows[0]["conditions"]["right"]["scores"]) == set(MEASURES)
    assert rows[0]["conditions"]["right"]["scores"]["moving_iou"] is None  # green grows by 5 a frame
    task = report["tasks"]["next_frames"]
    assert (
        "moving_iou" not in task["conditions"]["right"]
        and task["baselines"]["linear_extrapolation"]["psnr"]["mean"] == 100
    )


def test_frames_and_sizes_that_cannot_be(folder):
    data = str(folder / "world.yaml")
    assert open_suite("video", Context(data, SIZE, 6)).settings["frames"] == 1
    long = open_suite("video", Context(None, SIZE, 12)).settings
    assert (long["frames"], long["shown"]) == (4, [1, 7])
    asked = open_suite("video", Context(None, SIZE, 12), ["frames=1", "shown=[1,3,7,11,15]"]).settings
    assert (asked["frames"], asked["shown"]) == (1, [1, 3, 7, 11])
    for frames in (0, 5):
        with pytest.raises(UserError, match=f"frames={frames} must be from 1 to 4"):
            open_suite("video", Context(data, SIZE, 6), [f"frames={frames}"])
    with pytest.raises(UserError, match="8 pixels are too small for SSIM's window of 11"):
        open_suite("video", Context(data, 8, 6))
