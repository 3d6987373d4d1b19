"""detection: boxes read back as published, VOC2012's layout in miniature, unsafe XML refused, the world's objects."""

import shutil
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_voc import write_boxes, write_voc
from suite_runs import evaluate
from tiny_prompter import SIZE

from lvm.evaluation import filled_boxes
from lvm.evaluation.annotated import HeldOut
from lvm.evaluation.datasets.voc_boxes import parse_xml, read_annotation
from lvm.evaluation.filled_boxes import box_scores
from lvm.evaluation.suites.base import Context, PairSuite
from lvm.evaluation.suites.detection import LARGEST
from lvm.evaluation.suites.opening import open_suite
from lvm.runtime import UserError
from lvm.sources.base import BrokenItem

WORLD = "kind: world\nsplit: test\nnum_scenes: 0\nnum_clips: 0\nnum_objects: 120\nchannels: [image, gray, {}]\n"


@pytest.fixture
def voc(tmp_path) -> Path:
    return write_voc(tmp_path / "data", classes=range(4), per_class=6)


def suite_of(data: Path, *options: str, largest: float = 0.9, **changes) -> PairSuite:
    context = Context(**{"data": str(data), "size": SIZE, "room": 6, **changes})
    return open_suite("detection", context, ("pairs=2", f"largest={largest}", *options))


run = partial(evaluate, "detection")


# The arithmetic.


def published_rectangle(white: np.ndarray) -> np.ndarray:
    """`to_rectangle` of the published code: the pieces by flood fill, the rectangle about the largest."""
    todo, pieces = set(map(tuple, np.argwhere(white).tolist())), []
    while todo:
        piece, edge = set(), [min(todo)]
        while edge:
            y, x = edge.pop()
            if (y, x) in todo:
                todo.remove((y, x))
                piece.add((y, x))
                edge += [(y + a, x + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
        pieces.append(piece)
    found = np.zeros_like(white)
    if pieces:
        ys, xs = zip(*max(pieces, key=len))
        found[min(ys) : max(ys) + 1, min(xs) : max(xs) + 1] = True
    return found


def test_a_box_and_its_iou_are_those_of_the_published_code():
    rng = np.random.default_rng(0)
    for n in range(60):
        answer = rng.integers(0, 256, (14, 14, 3)).astype(np.uint8)
        answer[rng.random((14, 14)) < 0.35 + 0.008 * n] = 0
        left, top = (int(v) for v in rng.integers(0, 10, 2))
        right, bottom = int(rng.integers(left + 1, 15)), int(rng.integers(top + 1, 15))
        truth = filled_boxes.draw((left, top, right, bottom), 14)
        white = ((answer.astype(int) - 255) ** 2).sum(-1) <= (answer.astype(int) ** 2).sum(-1)
        given, true = published_rectangle(white), truth[..., 0] == 255
        wanted = (given & true).sum() / (given | true).sum()
        found = box_scores(answer, truth)
        assert found["iou"] == pytest.approx(wanted, abs=1e-6) and found["hit"] == (wanted >= 0.5)
        assert filled_boxes.read(truth) == (left, top, right, bottom)


def test_nothing_white_finds_nothing_and_no_true_box_is_no_score():
    black, box = np.zeros((9, 9, 3), np.uint8), filled_boxes.draw((2, 3, 5, 8), 9)
    assert box_scores(black, box) == {"iou": 0.0, "hit": 0.0}
    assert all(np.isnan(value) for value in box_scores(box, black).values())


def test_a_box_of_a_picture_keeps_a_pixel_and_stays_inside():
    assert filled_boxes.scaled((10, 20, 30, 60), 40, 80, 16) == (4, 4, 12, 12)
    assert filled_boxes.scaled((399, 0, 400, 1), 400, 300, 16) == (15, 0, 16, 1)
    assert filled_boxes.scaled((-1, -1, 401, 301), 400, 300, 16) == (0, 0, 16, 16)


# VOC2012.


def test_queries_are_of_the_val_list_and_pairs_of_the_train_list(voc):
    suite = suite_of(voc.parents[1])
    val = (voc / "ImageSets/Main/val.txt").read_text().split()
    cases = [suite.case(n) for n in range(len(suite))]
    assert sorted(case.id for case in cases) == sorted(val)
    from_val = {case.prompts["none"].pictures[0].tobytes() for case in cases}
    for case in cases:
        assert not from_val & {picture.tobytes() for picture in case.prompts["right"].pictures[:-1:2]}
        marked = read_annotation(voc / "Annotations" / f"{case.id}.xml")
        _, left, top, right, bottom = marked.objects[0]
        wide, high = SIZE / marked.width, SIZE / marked.height
        found = filled_boxes.read(case.truth[0])
        assert np.abs(np.array(found) - [left * wide, top * high, right * wide, bottom * high]).max() <= 1
        assert suite.judge(case, case.truth)["iou"] == 1


def test_pictures_of_one_small_object_alone_are_asked(voc):
    val = (voc / "ImageSets/Main/val.txt").read_text().split()
    size = Image.open(voc / "JPEGImages" / f"{val[0]}.jpg").size
    write_boxes(voc, val[0], size, [("bird", 1, 1, 9, 9), ("bird", 11, 11, 19, 19)])
    size = Image.open(voc / "JPEGImages" / f"{val[1]}.jpg").size
    write_boxes(voc, val[1], size, [("bicycle", 1, 1, *size)])
    assert sorted(suite_of(voc).case(n).id for n in range(len(val) - 2)) == sorted(val[2:])
    shares = [read_annotation(file).share for file in (voc / "Annotations").iterdir() if file.stem not in val[:2]]
    few = suite_of(voc, f"largest={np.median(shares)}", "pairs=1")
    assert 0 < len(few) < len(val) - 2
    with pytest.raises(UserError, match="no picture with one object that fills less than 1e-06"):
        suite_of(voc, "largest=0.000001")


def test_splits_are_draws(voc):
    suite = suite_of(voc, "splits=2")
    half = len(suite) // 2
    orders = [[suite.case(k * half + n).id for n in range(half)] for k in (0, 1)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    assert {suite.case(n).task for n in (0, half)} == {"split1", "split2"}


UNSAFE = (
    b'<!DOCTYPE a [<!ENTITY x "xxxxxxxxxx"><!ENTITY y "&x;&x;&x;&x;">]><annotation>&y;</annotation>',
    b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
    b'<!DOCTYPE annotation SYSTEM "http://localhost/x.dtd"><annotation/>',
    '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>'.encode(
        "utf-16"
    ),
)


@pytest.mark.parametrize("data", UNSAFE)
def test_a_document_type_is_refused(data):
    with pytest.raises(ValueError, match="document type"):
        parse_xml(data)


BROKEN = {
    "<annotation>": "is no XML",
    "<annotation/>": "has no <size>",
    "<annotation><size><width>9</width><height>x</height></size></annotation>": "'x' as <height>, not a number",
    "<annotation><size><width>9</width><height>0</height></size></annotation>": "its picture is 9 x 0",
    "<annotation><size><width>9</width><height>9</height></size><object/></annotation>": "without <bndbox>",
    "<annotation><size><width>9</width><height>9</height></size><object><bndbox><xmin>5</xmin><ymin>1</ymin>"
    "<xmax>4</xmax><ymax>3</ymax></bndbox></object></annotation>": "a box 5 1 4 3 outside 9 x 9",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_damaged_annotation_says_what_is_wrong(tmp_path, text):
    (tmp_path / "x.xml").write_text(text)
    with pytest.raises(ValueError, match=BROKEN[text]):
        read_annotation(tmp_path / "x.xml")


def test_a_run_leaves_out_and_names_what_cannot_be_read(voc, saved_prompter, tmp_path, capsys):
    val = (voc / "ImageSets/Main/val.txt").read_text().split()
    (voc / "Annotations" / f"{val[0]}.xml").write_bytes(UNSAFE[0])
    (voc / "JPEGImages" / f"{val[1]}.jpg").write_bytes(b"\xff\xd8")
    code, report = run(saved_prompter, tmp_path / "out", "--data", str(voc), "pairs=2", "largest=0.9")
    errors = capsys.readouterr().err
    assert code == 1 and f"{val[0]}.xml: declares a document type" in errors and f"{val[1]}.jpg" in errors
    assert len(report["unreadable"]) == len(report["failed"]) == 1 and report["items"] == len(val) - 1
    assert set(report["tasks"]["split1"]["conditions"]) == {"right", "wrong_task", "shuffled", "none"}
    assert report["settings"]["pairs_from"] == "the train list, of the query's class"


def test_a_picture_of_another_size_than_its_annotation_says_fails_its_case(voc):
    val = (voc / "ImageSets/Main/val.txt").read_text().split()
    write_boxes(voc, val[0], (99, 77), [("aeroplane", 5, 5, 20, 20)])
    suite = suite_of(voc)
    failed = []
    for n in range(len(suite)):
        try:
            suite.case(n)
        except BrokenItem as error:
            failed.append(str(error))
    assert len(failed) == 1 and "is of a picture of 99 x 77" in failed[0]


@pytest.mark.parametrize("part", ["JPEGImages", "Annotations", "ImageSets/Main/train.txt", "ImageSets/Main/val.txt"])
def test_a_missing_part_is_named_with_the_tree(voc, part):
    shutil.rmtree(voc / part) if (voc / part).is_dir() else (voc / part).unlink()
    with pytest.raises(UserError, match=rf"{part} is missing; expected VOC2012/\{{JPEGImages"):
        suite_of(voc)


def test_missing_files_are_counted(voc):
    val = (voc / "ImageSets/Main/val.txt").read_text().split()
    (voc / "Annotations" / f"{val[2]}.xml").unlink()
    with pytest.raises(
        UserError,
        match=f"Annotations lacks 1 of 12 annotations of the val list, the first {val[2]}.xml; expected VOC2012/",
    ):
        suite_of(voc)


# Any source, and the world.


def write_boxed(folder: Path) -> Path:
    """Four pictures of each of two classes with filled boxes, and the YAML that says so."""
    rng = np.random.default_rng(5)
    for label in ("ant", "bee"):
        for part in ("images", "filled"):
            (folder / "own" / part / label).mkdir(parents=True)
        for n in range(4):
            noise = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(noise).save(folder / f"own/images/{label}/{n}.png")
            Image.fromarray(filled_boxes.draw((3 + n, 5, 20, 28), 32)).save(folder / f"own/filled/{label}/{n}.png")
    (folder / "own.yaml").write_text(f"kind: pictures\npath: {folder}/own\nchannels: {{filled: object_box}}\n")
    return folder / "own.yaml"


own_suite = partial(suite_of, largest=LARGEST, kept_out=HeldOut(1000))


def test_a_source_with_filled_boxes_is_asked_and_one_without_is_told(tmp_path):
    suite = own_suite(write_boxed(tmp_path), num_cases=4)
    assert all(suite.judge(case, case.truth)["iou"] == 1 for case in (suite.case(n) for n in range(4)))
    shutil.rmtree(tmp_path / "own/filled")
    with pytest.raises(UserError, match="has no object_box, filled white boxes on black"):
        own_suite(tmp_path / "own")


def test_a_picture_without_a_box_on_it_fails_its_case_alone(tmp_path):
    own = write_boxed(tmp_path)
    Image.new("RGB", (32, 32)).save(tmp_path / "own/filled/ant/1.png")
    suite = own_suite(own, num_cases=8)
    failed = []
    for n in range(8):
        try:
            suite.case(n)
        except BrokenItem as error:
            failed.append(str(error))
    assert failed == ["ant/1: its truth shows no figure at 16 x 16 pixels: it is all ground"]


def test_classes_of_which_nothing_is_asked_are_named(tmp_path, capsys):
    own = write_boxed(tmp_path)
    for n in (1, 2):
        (tmp_path / f"own/filled/ant/{n}.png").unlink()
    suite = own_suite(own, num_cases=4)
    line = "detection: 1 of 2 classes are not asked about: ant (1 other to show, 2 wanted)\n"
    assert line in capsys.readouterr().err
    assert {suite.case(n).label for n in range(4)} == {"bee"}
    with pytest.raises(UserError, match=r"own has no class to ask about .*: ant \(1 other .*, bee \(3 others"):
        own_suite(own, "pairs=4", room=10)


def test_the_filter_of_voc_is_refused_elsewhere(tmp_path):
    with pytest.raises(UserError, match=r"largest=0\.9 is an option of VOC2012 alone"):
        suite_of(write_boxed(tmp_path), kept_out=HeldOut(1000))


def test_a_report_says_why_it_has_no_wrong_pairs(tmp_path):
    own = write_boxed(tmp_path)
    own.write_text(own.read_text() + "derived: []\n")
    suite = own_suite(own, "splits=2", num_cases=2)
    assert "wrong_task" in suite.case(0).prompts and "wrong_task" not in suite.settings  # of the other class
    for part in ("images", "filled"):
        shutil.rmtree(tmp_path / "own" / part / "bee")
    alone = own_suite(own, "splits=2", num_cases=2)
    why = "none: the pictures have channels of no other task, and pairs enough of no other class"
    assert alone.settings["wrong_task"] == {"split1": why, "split2": why}
    assert "wrong_task" not in alone.case(0).prompts


def test_the_worlds_objects_are_asked_within_seconds(saved_prompter, tmp_path):
    began = time.monotonic()
    (tmp_path / "world.yaml").write_text(WORLD.format("object_mask, object_box"))
    options = ["--data", str(tmp_path / "world.yaml"), "--targets", "10", "pairs=2", "splits=2"]
    code, report = run(saved_prompter, tmp_path / "out", *options)
    assert code == 0 and report["items"] == 20 and time.monotonic() - began < 20
    for split in report["tasks"].values():
        assert set(split["controls"]) == {"wrong_task", "shuffled", "none"}
        assert split["baselines"]["mean_answer"]["iou"]["mean"] > 0.2
    assert report["published"][-1]["scores"]["split1"] == 0.4825 and "not stated" in report["published"][-1]["caveat"]
    with pytest.raises(UserError, match="splits 0 must be from 1"):
        run(saved_prompter, tmp_path / "none", "splits=0")
