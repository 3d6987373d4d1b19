"""The settings of a report: which part of a picture is drawn, by which filter, and what a control is made of."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_voc import write_voc
from tiny_prompter import write_lines

from lvm.evaluation.clips import DRAWN
from lvm.evaluation.suites.base import Context
from lvm.evaluation.suites.opening import open_suite

SIZE, ROOM = 16, 12
RNG = np.random.default_rng(0)


def settings(suite: str, data: Path | None, *options: str):
    encode = lambda pictures: np.zeros((len(pictures), 16), np.int64)
    context = Context(None if data is None else str(data), SIZE, ROOM, num_cases=2, encode=encode, decode=encode)
    return open_suite(suite, context, options).settings


def noise(*size: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (*size, 3)).astype(np.uint8))


def millimetres() -> Image.Image:
    return Image.fromarray(RNG.integers(1000, 5000, (20, 30)).astype(np.uint16))


@pytest.fixture(scope="module")
def cropped(tmp_path_factory) -> Path:
    """A source whose YAML says so: photos with masks, boxes, dots and depth, and clips."""
    home = tmp_path_factory.mktemp("cropped")
    (home / "files" / "depth" / "cat").mkdir(parents=True)
    for folder in ("images", "masks", "filled", "dots"):
        (home / "files" / folder / "cat").mkdir(parents=True)
        for k in range(8):
            noise(20, 30).save(home / "files" / folder / "cat" / f"{k}.png")
    for k in range(8):
        millimetres().save(home / "files" / "depth" / "cat" / f"{k}.png")
    for k in range(4):
        (home / "files" / "frames" / str(k)).mkdir(parents=True)
        for frame in range(8):
            noise(20, 30).save(home / "files" / "frames" / str(k) / f"{frame:04d}.png")
    channels = "{filled: object_box, dots: keypoints}"
    (home / "cropped.yaml").write_text(
        f"kind: pictures\nname: cropped\npath: {home / 'files'}\nresize: crop\nchannels: {channels}\n"
    )
    return home / "cropped.yaml"


@pytest.mark.parametrize(
    "suite", ["perplexity", "failures", "pascal5i", "detection", "depth", "colorization", "keypoints"]
)
def test_the_resize_of_a_source_is_told(suite, cropped):
    told = settings(suite, cropped)
    assert told["resize"] == "crop" and "nearest pixel" in told["filter"]


@pytest.mark.parametrize("suite", ["context", "video"])
def test_the_resize_of_clips_is_told(suite, cropped):
    told = settings(suite, cropped, "shown=[1,3]")
    assert told["resize"] == "crop" and told["filter"] == "bicubic"


@pytest.mark.parametrize("suite", ["colorization", "detection", "puzzles", "video"])
def test_the_world_is_drawn_at_the_size_asked_for(suite):
    told = settings(suite, None)
    assert told["resize"] == DRAWN and "filter" not in told


def test_public_layouts_tell_their_own(tmp_path):
    voc = write_voc(tmp_path, per_class=12, classes=range(5))
    assert "masks bicubic and cut at half" in settings("pascal5i", voc, "fold=0")["resize"]
    assert "corners to the nearest pixel" in settings("detection", voc)["resize"]
    (tmp_path / "imagenet").mkdir()
    for k in range(1, 9):
        noise(20, 30).save(tmp_path / "imagenet" / f"ILSVRC2012_val_{k:08d}.JPEG")
    assert "central 111 x 111" in settings("colorization", tmp_path / "imagenet", "part=centre_111")["resize"]
    (tmp_path / "raven" / "center_single").mkdir(parents=True)
    for k in range(9):
        panels = np.zeros((16, 160, 160), np.uint8)
        np.savez(tmp_path / "raven" / "center_single" / f"RAVEN_{k}_test.npz", image=panels, target=np.int64(k % 8))
    assert "480 pixels a side, box" in settings("puzzles", tmp_path / "raven")["resize"]
    told = settings("puzzles", tmp_path / "raven", "form=panels")
    assert "160 pixels a side, box" in told["resize"]
    assert "row" in told["nearest_pair"] and "shuffled" not in told  # its conditions are told whole
    for name, picture in (("rgb", noise(20, 30)), ("depth", millimetres())):
        (tmp_path / "nyu" / name).mkdir(parents=True)
        for k in range(1, 9):
            picture.save(tmp_path / "nyu" / name / f"{k:04d}.png")
    told = settings("depth", tmp_path / "nyu", "layout=nyuv2", "resize=crop")
    assert told["resize"] == "crop" and "distances the nearest pixel" in told["filter"]


def test_the_margin_about_an_object_is_told(tmp_path):
    line = {"box": [5, 5, 30, 25], "label": "car", "keypoints": [[10, 10]]}
    write_lines(tmp_path / "val.jsonl", [line | {"image": f"{k}.jpg"} for k in range(8)])
    told = settings("keypoints", tmp_path / "val.jsonl")
    assert "0.1 of its larger side added" in told["resize"] and told["filter"] == "bicubic"


def test_thumbnails_and_the_shuffling_of_pairs_are_told(cropped):
    one, five = (settings("colorization", cropped, f"pairs={pairs}") for pairs in (1, 5))
    assert "16 x 16" in one["nearest_pair"]
    assert one["shuffled"] == "the input before itself" and "next pair" in five["shuffled"]
