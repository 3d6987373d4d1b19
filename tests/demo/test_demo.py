"""`lvm demo` from end to end on a net of seconds: the report, the second call, Ctrl-C, and mistakes in one line."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lvm.demo
from lvm.commands import main
from lvm.runtime.checkpoint import list_checkpoints
from tokenizer import VQGAN, VQGANConfig

ROOT = Path(__file__).parents[2]
NET = [
    "model.num_codes=32",
    "model.tokens_per_picture=4",
    "model.hidden_size=32",
    "model.intermediate_size=48",
    "model.num_layers=1",
    "model.max_position=64",
    "data.seq_len=64",
    "data.period=256",
    "trainer.batch_size=2",
    "trainer.compile=false",
    "trainer.log_every_steps=1",
    "trainer.num_threads=1",
]
STEPS = ["trainer.max_steps=4", "optim.warmup_steps=1"]
# Few scenes share one latent, so there are few latents.
WORLD = ["world.num_scenes=60", "world.num_clips=12", "world.num_latents=10", "world.latents_per_scene=4"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """An untrained tokenizer of four codes of 32 a picture."""
    small = {"hidden_channels": 8, "channel_mult": (1, 1, 1, 1), "num_res_blocks": 1, "norm_groups": 2}
    codes = {"z_channels": 4, "quantized_embed_dim": 4, "num_embeddings": 32, "resolution": 16}
    path = tmp_path_factory.mktemp("tokenizer") / "(small) one, 16 px"
    VQGAN(VQGANConfig(**small, **codes)).save_pretrained(path)
    return path


@pytest.fixture(scope="module", autouse=True)
def few_targets():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NUM_TARGETS", "NUM_CLIPS", "NUM_HELD_OUT_LATENT_TARGETS"):
            patch.setattr(lvm.demo, name, 6)
        yield


def lvm_demo(*arguments):
    """The exit code of `lvm demo` with these arguments."""
    with pytest.raises(SystemExit) as done:
        main(["demo", *map(str, arguments)])
    return done.value.code


def picture(path, seed, side=24, channels=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 3, channels), np.uint8).squeeze()
    Image.fromarray(pixels).resize((side, side)).save(path)
    return path


def folder_of_pictures(folder, pictures=40, clips=12):
    """Photos with depth maps, and clips of ten frames."""
    for n in range(pictures):
        picture(folder / "images" / f"{n}.png", n)
        picture(folder / "depth" / f"{n}.png", n + 1, channels=1)
    for n in range(clips):
        for frame in range(10):
            picture(folder / "frames" / f"clip{n}" / f"{frame:03}.png", 1000 * n + frame)
    return folder


def check_report(out, tasks, frames=True):
    """All keys that the report promises, and a page that needs nothing beside it."""
    report = json.loads((out / "report.json").read_text())
    assert report["seconds"] > 0 and report["parameters"] > 0 and report["tokens_seen"] > 0
    assert tasks <= set(report["tasks"])
    for row in report["tasks"].values():
        assert {"0", "1", "3", "5", "wrong"} == set(row["perplexity"]) and {"0", "5"} <= set(row["first_token"])
        assert all(value >= 1 for value in row["perplexity"].values())
        assert isinstance(row["metric"], str) and isinstance(row["higher_is_better"], bool)
        assert {"model", "copy_query", "copy_last_answer", "tokenizer_ceiling"} <= set(row)
        assert 0 <= row["right_task"] <= 1
    if frames:
        assert {"1", "3", "7"} <= set(report["frames"]["perplexity"])
        assert {"metric", "model", "copy_last_frame"} <= set(report["frames"])
    page = (out / "report.html").read_text()
    assert "<h2>Training" in page  # the loss curve
    assert page.count("data:image/png;base64,") > 10
    assert not re.search(r"""(?:src|href)=(?!["']?(?:data:|#))""", page), "the page refers to other files"
    Image.open(out / "sheet.png").verify()
    return report


def written(*folders):
    """Files with the time of their last change."""
    files = [file for folder in folders for file in folder.rglob("*") if file.suffix in (".tar", ".safetensors")]
    assert files
    return {file: file.stat().st_mtime_ns for file in files}


def test_the_world_becomes_a_report_and_a_second_call_reuses_store_and_training(tokenizer, tmp_path, capsys):
    call = ["--tokenizer", tokenizer, "--out", tmp_path, *NET, *STEPS, *WORLD]
    assert lvm_demo(*call) == 0
    names = {"segmentation", "depth", "normal", "edge", "box", "relit", "colorization", "inpainting"}
    report = check_report(tmp_path, names)
    assert set(report["held_out_latents"]["tasks"]) >= {"segmentation", "inpainting"}
    assert "report.html" in capsys.readouterr().out
    before = written(tmp_path, Path(os.environ["LVM_CACHE"]))
    assert lvm_demo(*call) == 0
    assert written(tmp_path, Path(os.environ["LVM_CACHE"])) == before
    again = json.loads((tmp_path / "report.json").read_text())
    assert again["tasks"] == report["tasks"] and again["tokens_seen"] == report["tokens_seen"]


def test_a_folder_of_pictures_becomes_a_report_one_truncated_picture_left_out(tokenizer, tmp_path, capsys):
    folder = folder_of_pictures(tmp_path / "my (own) pictures, one")
    file = folder / "images" / "7.png"
    file.write_bytes(file.read_bytes()[:60])
    out = tmp_path / "out"
    call = ["--pictures", folder, "--tokenizer", tokenizer, "--out", out, *NET, *STEPS, "data.held_out_per_mille=400"]
    assert lvm_demo(*call) == 0
    check_report(out, {"depth", "colorization", "inpainting", "denoising", "low_light"})
    assert "1 of 52 could not be read" in capsys.readouterr().out
    assert "7.png" in (out / "store" / "quarantine.jsonl").read_text()
    before = written(out)
    assert lvm_demo(*call) == 0
    assert written(out) == before


def test_ctrl_c_in_the_training_leaves_a_run_that_the_next_call_continues(tokenizer, tmp_path):
    net = [*NET, *WORLD, "optim.schedule_steps=100"]
    call = ["--tokenizer", tokenizer, "--out", tmp_path, *net]
    process = subprocess.Popen(
        [sys.executable, "-m", "lvm", "demo", *map(str, call), "trainer.max_steps=1000000"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 200
        while not any(file.stat().st_size for file in (tmp_path / "run").glob("metrics*/**/*.jsonl")):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate(timeout=5)
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in error, error
    assert out.rstrip().endswith("the same command continues it")
    step = int(list_checkpoints(tmp_path / "run" / "checkpoints")[-1].name.removeprefix("step-"))
    assert step > 0
    assert lvm_demo(*call, f"trainer.max_steps={step + 2}") == 0
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[-1].name == f"step-{step + 2:08}"
    check_report(tmp_path, {"segmentation"})


def empty(folder):
    (folder / "images").mkdir(parents=True)
    (folder / "notes.txt").write_text("no pictures here")


def lonely_annotations(folder):
    folder_of_pictures(folder, pictures=20, clips=0)
    picture(folder / "edges" / "lonely.png", 0, channels=1)


def many_truncated(folder):
    folder_of_pictures(folder, pictures=20, clips=0)
    for n in range(8):
        (folder / "images" / f"{n}.png").write_bytes(b"\x89PNG\r\n\x1a\n")


def too_few(folder):
    folder_of_pictures(folder, pictures=3, clips=0)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "is not a folder"),
        (empty, "holds no pictures"),
        (lonely_annotations, "lonely.png.*no picture of that name"),
        (many_truncated, r"\d\.png.* broken where"),
        (too_few, "fill a sentence"),
    ],
)
def test_a_folder_that_cannot_be_is_one_line_and_starts_no_run(tokenizer, tmp_path, capsys, prepare, message):
    prepare(tmp_path / "pictures")
    out = tmp_path / "out"
    assert lvm_demo("--pictures", tmp_path / "pictures", "--tokenizer", tokenizer, "--out", out, *NET, *STEPS) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and len(error.splitlines()) == 1
    assert not list(out.glob("r*")), "a run or a report"


def test_a_mended_folder_goes_on_under_the_same_name(tokenizer, tmp_path, capsys):
    folder = tmp_path / "pictures"
    many_truncated(folder)
    call = ["--pictures", folder, "--tokenizer", tokenizer, "--out", tmp_path / "out", *NET, *STEPS]
    assert lvm_demo(*call) == 2
    for n in range(8):
        (folder / "images" / f"{n}.png").unlink()
        (folder / "depth" / f"{n}.png").unlink()
    assert lvm_demo(*call) == 2
    assert "fill a sentence" in capsys.readouterr().err  # 12 are left


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["model.num_codes=64"], "64 codes.* has 32.*do not belong together"),
        (["trainer.max_stepz=4"], "max_steps"),
        (["optim.lr=-1"], "above 0"),
        (["--tokenizer", "nothing"], "neither a folder"),
    ],
)
def test_a_wrong_setting_is_one_line_before_anything_is_written(tokenizer, tmp_path, capsys, extra, message):
    picture(tmp_path / "pictures" / "a.png", 0)
    for where in ([], ["--pictures", tmp_path / "pictures"]):
        call = ["--tokenizer", tokenizer, *where, "--out", tmp_path / "out", *NET, *STEPS, *WORLD, *extra]
        if extra[0].startswith("--"):  # options come before overrides
            call = [*extra, *call[2:]]
        assert lvm_demo(*call) == 2
        error = capsys.readouterr().err
        assert re.search(message, error) and len(error.splitlines()) == 1
        assert not (tmp_path / "out").exists()
