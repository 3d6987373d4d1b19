"""The page of a suite: cases drawn again from their rows, scores set by their intervals, one self-contained file."""

import json
import re
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from tiny_prompter import SIZE, small_model, small_vqgan

from lvm.commands.evaluate import main
from lvm.evaluation.ask import repaint
from lvm.evaluation.cases import CEILING, ENSEMBLE, Measure
from lvm.evaluation.strips import chosen, draw_strip, draw_strips
from lvm.evaluation.suite_page import (
    MOST_BYTES,
    beyond,
    encoded,
    in_order,
    our_score,
    suite_page,
    task_table,
)
from lvm.evaluation.suites.base import Context
from lvm.evaluation.suites.opening import open_suite
from lvm.evaluation.summary import summarise
from lvm.inference.prompter import Prompter

VOID = {"meta", "img", "br", "line", "polyline", "circle", "rect", "polygon"}


@pytest.fixture(scope="module")
def prompter() -> Prompter:
    vq = small_vqgan()
    return Prompter(small_model(vq), vq)


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory: pytest.TempPathFactory, prompter: Prompter) -> Path:
    """Of depth with an ensemble, frames, puzzles with their choices, and a suite that paints nothing."""
    folder = tmp_path_factory.mktemp("evaluations")
    prompter.vq.save_pretrained(folder / "tokenizer")
    prompter.model.save_pretrained(folder / "model")
    start = [str(folder / "model"), "--tokenizer", str(folder / "tokenizer"), "--workers", "0", "--targets", "5"]
    options = {
        "depth": ["pairs=2", "ensemble=2"],
        "video": ["frames=2"],
        "puzzles": [],
        "perplexity": ["only=[depth,edge]"],
    }
    for name, given in options.items():
        assert main([*start, "--suite", name, "--out", str(folder / name), *given]) == 0
    return folder


def read(folder: Path) -> tuple[dict, list[dict]]:
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    return json.loads((folder / "report.json").read_text()), rows


def depth_suite():
    return open_suite("depth", Context(None, SIZE, 6, 5), ["pairs=2", "ensemble=2"])


class Balanced(HTMLParser):
    """Fails where an end tag does not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open and self.open.pop() == tag


@pytest.mark.parametrize("name", ["depth", "video", "puzzles", "perplexity"])
def test_the_page_is_one_file_that_loads_nothing_and_parses(evaluations: Path, name: str) -> None:
    html = (evaluations / name / "report.html").read_text()
    addresses = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert addresses and all(re.match("data:image/(png|webp);base64,", address) for address in addresses)
    assert not re.search(r"<script|@import|url\(", html)
    page = Balanced()
    page.feed(html)
    assert page.open == []
    for drawing in re.findall(r"<svg.*?</svg>", html, re.S):
        ElementTree.fromstring(drawing)
    for heading in ("At a glance", "Best, median and worst", "Scores", "Measures", "Settings"):
        assert f"<h2>{heading}</h2>" in html
    assert "<h2>Cases that failed</h2>" not in html
    assert len(html) < 2_000_000
    assert Image.open(evaluations / name / "sheet.png").width > 100


def test_every_setting_and_measure_is_on_the_page(evaluations: Path) -> None:
    report, _ = read(evaluations / "depth")
    html = (evaluations / "depth" / "report.html").read_text().partition("<details>")[0]
    for key in (*report["settings"], "model_fingerprint", "commit", "precision"):
        assert f">{key.replace('_', ' ')}" in html, key
    assert report["model_fingerprint"] in html and report["machine"]["torch"] in html
    assert all(f"<td>{measure['name']}</td>" in html for measure in report["measures"])


def test_best_median_and_worst_are_those_of_the_first_measure() -> None:
    row = lambda case, score, nll: {"case": case, "conditions": {"right": {"scores": {"m": score}, "nll": nll}}}
    rows = [row(0, 0.5, 9), row(1, None, 1), row(2, 0.1, 2), row(3, 0.9, 3), row(4, 0.7, 4), row(5, 0.2, 5)]
    names = lambda found: [(name, row["case"]) for name, row in found]
    assert names(chosen(rows, [Measure("m", True)])) == [("best", 3), ("median", 0), ("worst", 2)]
    assert names(chosen(rows, [Measure("m", False)])) == [("best", 2), ("median", 0), ("worst", 3)]
    assert names(chosen(rows, [])) == [("best", 1), ("median", 3), ("worst", 0)]  # by NLL
    assert names(chosen(rows[:1], [Measure("m", True)])) == [("best", 0)]
    assert names(chosen([rows[0], rows[3]], [Measure("m", True)])) == [("best", 3), ("worst", 0)]
    assert names(chosen([rows[1]], [Measure("m", True)])) == [("best", 1)]  # no score: by NLL


def test_what_is_drawn_again_is_what_was_scored(evaluations: Path, prompter: Prompter) -> None:
    suite, (_, rows) = depth_suite(), read(evaluations / "depth")
    for row in rows:
        case = suite.case(row["case"])
        strip = draw_strip(suite, row, "best", prompter)
        [cells] = strip.rows
        assert [cell.name for cell in cells] == [
            "query", "right", "wrong task", "shuffled", "none", ENSEMBLE, "truth, tokenised", "truth",
        ]  # fmt: skip
        shown = case.prompts["right"].pictures
        for cell, picture in zip((*strip.prompt, cells[0]), shown, strict=True):
            np.testing.assert_array_equal(cell.picture, picture)
        np.testing.assert_array_equal(cells[-1].picture, case.truth[0])
        found = {cell.name.replace(" ", "_"): cell for cell in cells}
        for name in ("right", "wrong_task", "shuffled", "none", ENSEMBLE):
            scores = suite.judge(case, [found[name].picture])
            assert scores["abs_rel"] == pytest.approx(row["conditions"][name]["scores"]["abs_rel"], rel=1e-3)
            assert found[name].answer and found[name].notes[0].startswith("abs_rel ")
        ceiling = suite.judge(case, [found["truth,_tokenised"].picture])
        assert ceiling["abs_rel"] == pytest.approx(row["baselines"][CEILING]["abs_rel"], rel=1e-3)


def test_several_frames_stand_in_rows_and_choices_are_marked(evaluations: Path, prompter: Prompter) -> None:
    video = open_suite("video", Context(None, SIZE, 6, 5), ["frames=2"])
    _, rows = read(evaluations / "video")
    strip = draw_strip(video, rows[0], "best", prompter)
    frames = len(video.case(rows[0]["case"]).truth)
    assert frames > 1 and [len(cells) for cells in strip.rows] == [1, *[frames] * (len(strip.rows) - 1)]
    painted = repaint(prompter, rows[0], "right")
    right = next(cells for cells in strip.rows if cells[0].name == "right +1")
    np.testing.assert_array_equal(np.stack([cell.picture for cell in right]), painted)

    puzzles = open_suite("puzzles", Context(None, SIZE, 6, 5), [])
    _, rows = read(evaluations / "puzzles")
    choices = draw_strip(puzzles, rows[0], "best", prompter).rows[-1]
    assert [cell.answer for cell in choices].index(True) == rows[0]["conditions"]["right"]["choice"]
    assert choices[rows[0]["right_choice"]].name.endswith("(right)")


def test_a_suite_that_paints_nothing_shows_its_cases_with_their_nats(evaluations: Path, prompter: Prompter) -> None:
    suite = open_suite("perplexity", Context(None, SIZE, 6, 5), ["only=[depth,edge]"])
    _, rows = read(evaluations / "perplexity")
    strips = draw_strips(suite, [*rows, {"case": 99, "failed": "x", "file": "y"}], prompter)
    assert [strip.task for strip in strips] == ["depth"] * 3 + ["edge"] * 3
    assert all([cell.name for cell in strip.rows[0]] == ["query", "truth, tokenised", "truth"] for strip in strips)
    assert all("nats: right " in strip.title and "wrong task " in strip.title for strip in strips)
    assert "<h2>By number of pictures shown</h2>" in (evaluations / "perplexity" / "report.html").read_text()


def test_a_difference_is_bold_where_better_and_red_where_worse() -> None:
    interval = lambda low, high: {"mean": (low + high) / 2, "low": low, "high": high}
    assert beyond(interval(0.1, 0.3)) == ("+0.2 [0.1, 0.3]", "good")
    assert beyond(interval(0.1, 0.3), -1)[1] == "bad" and beyond(interval(-0.3, -0.1), -1)[1] == "good"
    assert beyond(interval(-0.1, 0.3))[1] == "" == beyond(interval(0, 0.3))[1]
    assert beyond({"mean": None, "low": None, "high": None}) == ("–", "")
    row = {
        "items": 4,
        "measure": "error",
        "conditions": {"right": {"error": interval(1, 2)}, "none": {"error": interval(3, 4)}},
        "baselines": {"copy_query": {"error": interval(0, 1)}, CEILING: {"error": interval(0, 1)}},
        "controls": {"none": {"error": interval(-3, -1), "nats": interval(-2, -1)}},
        "over_baselines": {"copy_query": {"error": interval(1, 2)}, CEILING: {"error": interval(1, 2)}},
    }
    html = task_table(row, [vars(Measure("error", False))])
    row["perplexity_intervals"] = {"right": {"perplexity": interval(5, 7), "per_answer_perplexity": interval(6, 9)}}
    row["conditions"]["right"] |= {"perplexity": 6, "per_answer_perplexity": 7.5}
    row["conditions"]["none"] |= {"perplexity": 12}
    with_perplexities = task_table(row, [vars(Measure("error", False))])
    assert "<td>6 [5, 7]</td>" in with_perplexities and "<td>7.5 [6, 9]</td>" in with_perplexities
    assert "<td>12</td>" in with_perplexities and "mean over answers" in with_perplexities
    assert "perplexity" not in html
    assert '<td class="good">-2 [-3, -1]</td>' in html and '<td class="bad">-1.5 [-2, -1]</td>' in html
    assert html.count('<td class="bad">+1.5 [1, 2]</td>') == 1  # of the copy; below the ceiling is where all are


def test_kinds_of_prompts_stand_in_one_order() -> None:
    names = ["none", "11", "3", "ensemble", "right", "shuffled", "wrong_task", "right_without_bos"]
    order = [name for name, _ in in_order(dict.fromkeys(names))]
    assert order == ["right", "3", "11", "ensemble", "right_without_bos", "wrong_task", "shuffled", "none"]


def test_published_rows_stand_beside_ours_and_failed_cases_are_named(evaluations: Path) -> None:
    report, _ = read(evaluations / "perplexity")
    depth, _ = read(evaluations / "depth")
    assert our_score(depth, "depth") == depth["tasks"]["depth"]["conditions"]["right"]["abs_rel"]["mean"]  # a task
    assert our_score(depth, "psnr") is None and "ours" in depth  # neither task nor measure
    assert our_score({**depth, "ours": {"depth": 3.0, "psnr": None}}, "depth") == 3.0  # as the suite says
    assert our_score(report, "depth") is None  # five pairs do not fit
    report["failed"] = [{"case": 3, "file": "a<b>.png", "failed": "truncated"}]
    html = suite_page(report, []).partition("<details>")[0]
    assert "LVM 3B" in html and "12</td>" in html and escape(report["published"][0]["caveat"]) in html
    assert "a&lt;b&gt;.png" in html and "<b>1</b><span>cases failed</span>" in html
    assert "Best, median and worst" not in html  # there are no strips


def test_keypoints_stand_beside_the_published_ones_over_all_points_of_the_dots() -> None:
    suite = open_suite("keypoints", Context(None, SIZE, 6, 5), [])
    conditions = lambda share, points: {"right": {"scores": {"pck_0.1": share, "points": points}}}
    found = {"keypoints": [(1.0, 2.0), (0.0, 6.0)], "pose": [(1.0, 14.0), (1.0, 14.0)]}
    rows = [
        {"case": 0, "id": f"x{k}", "task": task, "label": "", "conditions": conditions(*of), "baselines": {}}
        for task, given in found.items()
        for k, of in enumerate(given)
    ]
    report = summarise(suite, rows)
    assert report["tasks"]["keypoints"]["conditions"]["right"]["pck_0.1"]["mean"] == 0.5
    assert our_score(report, "pck_0.1") == 0.25  # 2 of 8 points
    assert all("over_points" in row["caveat"] for row in report["published"])
    assert our_score(summarise(suite, rows[2:]), "pck_0.1") is None  # a skeleton's joints are named


def test_many_large_pictures_are_made_smaller_until_the_page_is_small_enough() -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (256, 256, 3), dtype=np.uint8) for _ in range(60)]
    addresses = encoded(noise)
    assert sum(map(len, addresses)) <= MOST_BYTES * 4 // 3 and addresses[0].startswith("data:image/webp")
    assert encoded([noise[0][:16, :16]])[0].startswith("data:image/png")  # exact while there is room


def test_a_case_of_another_kind_without_the_right_prompt_is_drawn(prompter: Prompter, evaluations: Path) -> None:
    """A suite whose prompts have other names is shown by the last of them."""
    suite, (_, rows) = depth_suite(), read(evaluations / "depth")
    case = suite.case(0)
    other = SimpleNamespace(measures=suite.measures, case=lambda i: replace(case, prompts={"7": case.prompts["right"]}))
    row = {**rows[0], "conditions": {"7": rows[0]["conditions"]["right"]}}
    assert "7" in [cell.name for cell in draw_strip(other, row, "best", prompter).rows[0]]
