"""colorization: ImageNet's pictures in both layouts, the published draws, LPIPS of local files, whole runs."""

import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from suite_runs import evaluate
from tiny_prompter import SIZE

from lvm.evaluation.datasets.imagenet import ImageNetVal, drawn_part, is_imagenet
from lvm.evaluation.suites.base import Context, PairSuite
from lvm.evaluation.suites.opening import open_suite
from lvm.runtime import UserError
from tokenizer.perceptual import LPIPS

CLASSES = ("n01440764", "n01443537", "n02098105")


@pytest.fixture
def by_class(tmp_path) -> Path:
    """Four pictures a class, numbered across classes as ImageNet's are, in val/."""
    rng = np.random.default_rng(0)
    for number in range(1, 13):
        folder = tmp_path / "imagenet" / "val" / CLASSES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8))
        coarse.resize((200, 150)).save(folder / f"ILSVRC2012_val_{number:08d}.JPEG")
    return tmp_path / "imagenet"


@pytest.fixture
def listed(tmp_path) -> Path:
    """1,200 names without a picture behind them: nothing is opened to list them."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for number in range(1, 1201):
        (folder / f"ILSVRC2012_val_{number:08d}.JPEG").touch()
    return folder


def suite_of(data: Path | None, *options: str, **changes) -> PairSuite:
    given = {"data": None if data is None else str(data), "size": SIZE, "room": 6, "num_cases": 4, **changes}
    return open_suite("colorization", Context(**given), options)


run = partial(evaluate, "colorization")


# ImageNet.


def test_classes_and_pictures_come_in_the_order_of_image_folder(by_class):
    for folder in (by_class, by_class / "val"):
        assert is_imagenet(folder)
        data = ImageNetVal(folder, SIZE)
        assert data.labels == [name for name in CLASSES for _ in range(4)]
        assert data.ids == sorted(data.ids) and len(data) == 12
    assert data.ids[0] == "n01440764/ILSVRC2012_val_00000003.JPEG"


def test_a_flat_folder_is_listed_without_opening_a_picture(listed):
    suite = suite_of(listed, num_cases=None)
    data = suite.cases.data
    assert isinstance(data, ImageNetVal) and len(data) == 1200 and len(suite) == 1000
    assert data.ids[:2] == ["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG"]
    assert set(data.labels) == {""}


def test_the_published_queries_and_supports_are_drawn(listed):
    """As the published code: numpy's seed 5, then 1,000 of all but the last; supports of the first 999."""
    suite = suite_of(listed, "queries=published", "supports=first_999", "pairs=1", num_cases=None)
    np.random.seed(5)
    published = np.random.choice(np.arange(0, 1200 - 1), size=1000, replace=False)
    (episodes,) = suite.cases.episodes
    assert len(suite) == 1000 and sorted(episodes.queries) == sorted(published.tolist())
    shown = {i for number in range(40) for i in episodes.pool(number)}
    assert max(shown) < 999 and len(shown) > 500
    assert any(episodes.query(number) >= 999 for number in range(1000))
    others = {i for number in range(40) for i in suite_of(listed).cases.episodes[0].pool(number)}
    assert max(others) >= 999


def test_too_few_pictures_for_the_published_draw(by_class):
    with pytest.raises(UserError, match=r"draws 1000 pictures and .* holds 12"):
        suite_of(by_class, "queries=published")
    with pytest.raises(UserError, match="options of ImageNet"):
        suite_of(None, "part=squash")


@pytest.mark.parametrize("size", [(200, 150), (113, 300), (109, 112), (60, 60)])
def test_the_published_cut_is_the_central_111_pixels(size, tmp_path):
    """As torchvision's CenterCrop: without shrinking, black around what is smaller."""
    width, height = size
    picture = np.random.default_rng(0).integers(1, 256, (height, width, 3)).astype(np.uint8)
    pad = [((max(0, 111 - n)) // 2, max(0, 111 - n + 1) // 2) for n in (height, width)]
    padded = np.pad(picture, (*pad, (0, 0)))
    top, left = (round((n - 111) / 2.0) for n in padded.shape[:2])
    wanted = padded[top : top + 111, left : left + 111]
    found = np.asarray(drawn_part(*size, "centre_111").cut(Image.fromarray(picture)))
    np.testing.assert_array_equal(found, wanted)


def test_the_square_is_cut_or_squashed(by_class):
    file = next((by_class / "val" / CLASSES[0]).iterdir())
    whole = Image.open(file).convert("RGB")
    wanted = {
        "squash": whole,
        "crop": whole.crop((25, 0, 175, 150)),
        "centre_111": whole.crop((44, 20, 155, 131)),
    }
    for part, cut in wanted.items():
        data = ImageNetVal(by_class, SIZE, part)
        drawn = data.read(data.ids.index(f"{CLASSES[0]}/{file.name}"), 0)
        np.testing.assert_array_equal(drawn["image"], np.asarray(cut.resize((SIZE, SIZE), Image.Resampling.BICUBIC)))
        luma = np.asarray(Image.fromarray(drawn["image"]).convert("L")).astype(int)
        assert np.abs(drawn["gray"][..., 0].astype(int) - luma).max() <= 1
    assert len({ImageNetVal(by_class, SIZE, part).fingerprint() for part in wanted}) == 3


def test_folders_without_pictures_show_the_expected_tree(tmp_path):
    for folder, message in ((tmp_path / "none", "is not a folder"), (tmp_path, "holds no pictures")):
        with pytest.raises(UserError, match=f"{message}; expected n01440764/"):
            suite_of(folder, "layout=imagenet")


# What is scored.


def test_the_truth_has_no_error_and_gray_is_scored_as_any_answer():
    suite = suite_of(None)
    case = suite.case(0)
    assert suite.judge(case, case.truth) == {"mse": 0.0, "psnr": 100.0}
    (gray,) = case.baselines["copy_query"]
    assert (gray == gray[..., :1]).all() and not (case.truth[0] == case.truth[0][..., :1]).all()
    std = np.array([0.229, 0.224, 0.225])
    error = (((gray.astype(float) - case.truth[0]) / 255 / std) ** 2).mean()
    assert suite.judge(case, (gray,))["mse"] == pytest.approx(error)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> list[Path]:
    """Of the layout of torchvision's VGG16 and of lpips' heads, drawn at random."""
    folder = tmp_path_factory.mktemp("lpips")
    generator = torch.Generator().manual_seed(0)
    tensors = {name: 0.03 * torch.randn(p.shape, generator=generator) for name, p in LPIPS().named_parameters()}
    heads = {f"lin{i}.model.1.weight": tensors.pop(f"heads.{i}").abs() for i in range(5)}
    torch.save(tensors, folder / "vgg16.pth")
    save_file(heads, folder / "heads.safetensors")
    return [folder / "vgg16.pth", folder / "heads.safetensors"]


def test_lpips_is_that_of_the_local_files(weights):
    suite = suite_of(None, f"lpips={weights[0]},{weights[1]}")
    assert [measure.name for measure in suite.measures] == ["mse", "psnr", "lpips"]
    case = suite.case(0)
    (answer,) = case.baselines["copy_last_answer"]
    pixels = [torch.from_numpy(p).permute(2, 0, 1)[None] / 255 for p in (answer, case.truth[0])]
    found = suite.judge(case, (answer,))["lpips"]
    assert found == pytest.approx(float(LPIPS.from_files(weights)(*pixels)), rel=1e-5) and found > 0
    assert suite.judge(case, case.truth)["lpips"] == 0
    assert len(suite.settings["lpips_weights"]) == 64 and suite_of(None).settings["lpips_weights"] is None


def test_lpips_without_its_files_is_refused(weights, tmp_path):
    with pytest.raises(UserError, match=r"nothing\.pth is no file"):
        suite_of(None, f"lpips={tmp_path}/nothing.pth")
    with pytest.raises(Exception, match=r"lin0\.model\.1\.weight is missing") as error:
        suite_of(None, f"lpips={weights[0]}")
    assert getattr(error.value, "user_error", False)


# Whole runs.


def test_twenty_pictures_in_twenty_seconds(saved_prompter, tmp_path):
    began = time.process_time()
    code, report = run(saved_prompter, tmp_path, "--targets", "20")
    assert time.process_time() - began < 20
    task = report["tasks"]["colorization"]
    assert code == 0 and task["items"] == 20 and task["measure"] == "mse"
    assert set(task["conditions"]) == {"right", "wrong_task", "shuffled", "none"}
    assert [row["scores"]["mse"] for row in report["published"]] == [1.13, 3.31, 0.43, 0.67, 0.51]


def test_photos_alone_have_a_wrong_task_and_a_damaged_one_is_counted(by_class, saved_prompter, tmp_path, capsys):
    data = ImageNetVal(by_class, SIZE)
    (by_class / "val" / data.ids[5]).write_bytes(b"\xff\xd8\xff")
    code, report = run(saved_prompter, tmp_path / "out", "--data", str(by_class), "--targets", "12", "pairs=1")
    failed = report["failed"]
    assert code == 1 and failed and all(data.ids[5] in row["file"] for row in failed)
    assert f"{len(failed)} of 12 cases failed" in capsys.readouterr().err
    task = report["tasks"]["colorization"]
    assert task["items"] == 12 - len(failed) and "wrong_task" in task["conditions"]
    assert report["settings"]["part"] == "crop" and report["settings"]["held_out"] == "all of it"
