"""docs/evaluation.md: each `lvm evaluate` it shows runs, on its data in miniature; so does its suite."""

import importlib
import json
import re
import shlex
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_clips import write_clips
from small_voc import write_voc
from tiny_prompter import TOKENS, small_model, small_vqgan, write_lines

from lvm.commands.evaluate import main
from lvm.evaluation.annotated import HeldOut
from lvm.evaluation.cases import CONTROLS
from lvm.evaluation.datasets.keypoint_lines import KeypointLines
from lvm.evaluation.suites import SUITES, opening
from lvm.runtime import UserError
from lvm.runtime.files import read_json

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"
PICTURES = 16  # of the net's context, as the paper's
RNG = np.random.default_rng(0)


def shown_commands() -> list[list[str]]:
    lines = [line.strip() for line in PAGE.read_text().replace("\\\n", " ").splitlines() if line.startswith("    ")]
    return [shlex.split(line)[2:] for line in lines if line.startswith("lvm evaluate ")]


def as_test(words: list[str]):
    return pytest.param(words, id=" ".join(words), marks=[pytest.mark.slow] * ("all" in words))


def noise(height: int = 30, width: int = 40) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3)).astype(np.uint8))


def write_imagenet(folder: Path) -> None:
    """1,010 pictures, fewer of which the published draw leaves out than asks about; all are one file."""
    folder.mkdir()
    noise().save(folder / "ILSVRC2012_val_00000001.JPEG")
    for number in range(2, 1011):
        (folder / f"ILSVRC2012_val_{number:08d}.JPEG").hardlink_to(folder / "ILSVRC2012_val_00000001.JPEG")


def write_labelled(folder: Path) -> None:
    for name in ("images", "segmentation", "depth", "normal", "edge"):
        (folder / name).mkdir(parents=True)
        for k in range(7):
            gray = name in ("segmentation", "depth", "edge")
            picture = noise().convert("L") if gray else noise()
            picture.save(folder / name / f"{k}.{'jpg' if name == 'images' else 'png'}")


def write_nyu(folder: Path) -> None:
    for name in ("rgb", "depth"):
        (folder / name).mkdir(parents=True)
    for k in range(1, 9):
        noise(48, 64).save(folder / "rgb" / f"{k:04d}.png")
        depth = Image.fromarray(RNG.integers(1000, 5000, (48, 64)).astype(np.uint16))
        depth.save(folder / "depth" / f"{k:04d}.png")
    (folder / "test.txt").write_text("0001\n0002\n")


def write_keypoints(file: Path) -> None:
    (file.parent / "Images").mkdir(parents=True)
    lines = []
    for k in range(7):
        noise().save(file.parent / "Images" / f"{k}.jpg")
        points = [[10, 10], None, [20, 15]]
        lines.append({"image": f"Images/{k}.jpg", "box": [5, 5, 30, 25], "label": "car", "keypoints": points})
    write_lines(file, lines)


def write_raven(folder: Path) -> None:
    for kind in ("center_single", "distribute_four"):
        (folder / kind).mkdir(parents=True)
        for k in range(7):
            panels = RNG.integers(0, 256, (16, 160, 160)).astype(np.uint8)
            np.savez(folder / kind / f"RAVEN_{k}_test.npz", image=panels, target=np.int64(k))


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Where the page's commands are given: data under the names that it uses, a tokenizer and a net of a moment."""
    home = tmp_path_factory.mktemp("page")
    vq = small_vqgan()
    vq.save_pretrained(home / "TOKENIZER")
    small_model(vq, max_position=PICTURES * TOKENS).save_pretrained(home / "MODEL")
    voc = write_voc(home, per_class=12)
    shutil.copytree(voc / "splits", home / "visual_prompting" / "evaluate" / "splits")
    write_imagenet(home / "IMAGENET")
    write_labelled(home / "IMAGENET_LABELLED")
    write_nyu(home / "NYU")
    write_keypoints(home / "pascal3d" / "val.jsonl")
    write_raven(home / "RAVEN")
    write_clips(home / "KINETICS", *[20] * 4)
    return home


def in_miniature(words: list[str]) -> list[str]:
    """Fewer queries, of the tiny net; without what needs weights or a store of a training."""
    words = ["MODEL" if word == "runs/3b" else "TOKENIZER" if word.startswith("world-") else word for word in words]
    if "--targets" in words:
        del words[(at := words.index("--targets")) : at + 2]
    words = [word for word in words if not word.startswith(("lpips=", "train="))]
    return [*words, "--targets", "1", "--workers", "0"]


@pytest.mark.parametrize("words", map(as_test, shown_commands()))
def test_a_shown_evaluation_runs(words, home, monkeypatch, tmp_path):
    monkeypatch.chdir(home)
    words = in_miniature(words)
    words[words.index("--out") + 1] = str(tmp_path / "out")
    assert main(words) == 0
    for name in SUITES if "all" in words else [""]:
        report = read_json(tmp_path / "out" / name / "report.json")
        for task, row in report["tasks"].items():
            assert set(row["controls"]) == set(CONTROLS), (name, task)
        assert not report["failed"] and not report["unreadable"]


def test_the_suite_of_the_page_runs_with_controls_and_baselines(home, monkeypatch, tmp_path):
    source = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)[-1]
    module = types.ModuleType("lvm.evaluation.suites.inpainting")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, "the page's suite", "exec"), module.__dict__)
    words = [str(home / "MODEL"), "--tokenizer", str(home / "TOKENIZER"), "--targets", "3", "--workers", "0"]
    with pytest.raises(UserError, match="inpainting"):
        main([*words, "--suite", "inpainting", "--out", str(tmp_path / "out")])
    monkeypatch.setattr(opening, "SUITES", (*SUITES, "inpainting"))
    assert main([*words, "--suite", "inpainting", "--out", str(tmp_path / "out"), "pairs=2"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    row = report["tasks"]["inpainting"]
    assert report["settings"]["pairs"] == 2 and row["items"] == 3
    assert set(row["controls"]) == set(CONTROLS)
    assert {"copy_query", "nearest_pair", "tokenizer_ceiling"} <= set(row["baselines"])
    assert row["conditions"]["right"]["psnr"]["mean"] > 0


@pytest.mark.parametrize("suite", ["pascal5i", "detection", "colorization", "perplexity", "context"])
def test_every_published_row_is_on_the_page(suite):
    text = PAGE.read_text()
    rows = importlib.import_module(f"lvm.evaluation.suites.{suite}").PUBLISHED
    assert rows
    for row in rows:
        name = row.name if suite not in ("perplexity", "context") else row.name.removeprefix("LVM").strip()
        scale, digits = (100, 2) if suite in ("pascal5i", "detection") else (1, 2 if suite == "colorization" else 1)
        numbers = ", ".join(f"{scale * score:.{digits}f}" for score in row.scores.values())
        assert f"{name} {numbers}" in text, row.name


# MATLAB files: what SciPy would read of them.


def snippet(word: str) -> str:
    """The page's Python that has the word."""
    (found,) = (text for text in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if word in text)
    return found


def run_with_matlab_files(text: str, contents: dict, monkeypatch) -> None:
    scipy = types.ModuleType("scipy")
    scipy.io = types.ModuleType("scipy.io")
    scipy.io.loadmat = lambda file, **how: contents[Path(file).stem]
    monkeypatch.setitem(sys.modules, "scipy", scipy)
    monkeypatch.setitem(sys.modules, "scipy.io", scipy.io)
    exec(text, {})


def test_the_masks_of_sbd_become_pictures_beside_those_of_voc(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    sbd, own = Path("benchmark_RELEASE/dataset/cls"), Path("SegmentationClass")
    for folder in (sbd, own):
        folder.mkdir(parents=True)
    contents = {}
    for name, value in (("both", 3), ("sbd", 7)):
        (sbd / f"{name}.mat").touch()
        mask = np.full((4, 6), value, np.uint8)
        contents[name] = {"GTcls": types.SimpleNamespace(Segmentation=mask)}
    Image.fromarray(np.full((4, 6), 255, np.uint8)).save(own / "both.png")
    run_with_matlab_files(snippet("GTcls"), contents, monkeypatch)
    found = {file.stem: np.asarray(Image.open(file)) for file in Path("SegmentationClassAug").iterdir()}
    assert {name: (mask.shape, mask.max()) for name, mask in found.items()} == {
        "both": ((4, 6), 255),
        "sbd": ((4, 6), 7),
    }


def test_of_pascal_3d_only_whole_objects_of_the_val_list_become_lines(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    lists = Path("PASCAL/VOCdevkit/VOC2012/ImageSets/Main")
    for folder in (lists, Path("Annotations/car_pascal"), Path("Images/car_pascal")):
        folder.mkdir(parents=True)
    (lists / "val.txt").write_text("one\ntwo\n")
    seen = types.SimpleNamespace(location=np.array([11.0, 5.0]), status=1)
    hidden = types.SimpleNamespace(location=np.array([]), status=2)
    anchors = types.SimpleNamespace(_fieldnames=["wheel", "lamp"], wheel=seen, lamp=hidden)

    def thing(**change) -> types.SimpleNamespace:
        given = {"class": "car", "bbox": np.array([1.0, 1, 30, 25]), "anchors": anchors}
        given |= {"occluded": 0, "truncated": 0, "difficult": np.array([])}  # empty where nobody said so
        return types.SimpleNamespace(**given | change)

    others = [thing(occluded=1), thing(truncated=1), thing(difficult=1), thing(anchors=np.array([]))]
    objects = {"one": thing(), "two": np.array([*others, thing()], object), "train": thing()}
    contents = {}
    for name, found in objects.items():
        Path(f"Annotations/car_pascal/{name}.mat").touch()
        noise().save(f"Images/car_pascal/{name}.jpg")
        contents[name] = {"record": types.SimpleNamespace(filename=f"{name}.jpg", objects=found)}
    run_with_matlab_files(snippet("anchors"), contents, monkeypatch)
    lines = KeypointLines(Path("val.jsonl"), 16, HeldOut())
    assert lines.groups == ["Images/car_pascal/one.jpg", "Images/car_pascal/two.jpg"]
    assert {"image", "keypoints"} <= set(lines.read(0, 0)) and lines.labels == ["car", "car"]
    assert lines.lines[0].box == (0, 0, 29, 24)
    np.testing.assert_array_equal(lines.lines[0].points, [[np.nan, np.nan], [10, 4]])


def test_every_suite_and_every_option_is_on_the_page():
    text = PAGE.read_text()
    table = text.partition("## Suites")[2].partition("## The paper")[0]
    for name in SUITES:
        row = next(line for line in table.splitlines() if line.startswith(f"| `{name}`"))
        own = set(re.findall(r"`(\w+)`", row.split("|")[-2]))
        options = importlib.import_module(f"lvm.evaluation.suites.{name}").Options
        assert set(options.__dataclass_fields__) - {"pairs", "choose", "order", "pool", "ensemble"} == own, name
