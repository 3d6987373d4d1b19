"""Prompts, baselines, intervals and the report of a whole evaluation."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from evaluation_data import (
    CHANNELS,
    SIZE,
    TOKENS,
    random_channels,
    tiny_clips,
    tiny_model,
    tiny_prompts,
    tiny_tokenizer,
)

from lvm.commands.evaluate import main
from lvm.evaluation import Evaluation, evaluate_prompts, headline, report_sheet, source_prompts, write_report
from lvm.evaluation.baselines import copies, right_task
from lvm.evaluation.bootstrap import bootstrap_mean
from lvm.evaluation.prompts import choose_sentences, world_clips, world_prompts
from lvm.evaluation.tasks import TASKS, tasks_of
from lvm.runtime import UserError
from lvm.runtime.hashing import group_hash, held_out
from lvm.sources import Item
from lvm.sources.world import WorldConfig, WorldSource

DEPTH = next(task for task in TASKS if task.name == "depth")


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate_prompts(tiny_model(), tiny_tokenizer(), tiny_prompts(), tiny_clips(), examples=2)


# Prompts.


def test_sentences_hold_six_different_items_and_do_not_change_with_their_number() -> None:
    queries, shown = np.arange(10), np.arange(40)
    few, many = choose_sentences(queries, shown, 4, 7), choose_sentences(queries, shown, 25, 7)
    assert all(len(set(row)) == 6 for row in many.tolist())
    np.testing.assert_array_equal(few, many[:4])
    assert set(many[:10, -1]) == set(range(10)) and many.shape == (25, 6)
    assert (many[0, :5] != many[10, :5]).any() and many[0, -1] == many[10, -1]  # again, with other pairs


def test_too_few_items_is_a_user_error() -> None:
    with pytest.raises(UserError, match="too few"):
        choose_sentences(np.arange(1), np.arange(5), 4, 0)


def test_world_prompts_share_one_latent_a_sentence_and_come_from_the_test_split() -> None:
    world = WorldSource(WorldConfig(split="test", num_scenes=20, num_clips=3, num_frames=10))
    vq = tiny_tokenizer()
    prompts = world_prompts(world, vq, 5, seed=1, workers=0)
    assert {task.name for task in prompts.tasks} == {task.name for task in TASKS}
    assert prompts.codes["relit"].shape == (5, 6, TOKENS) and prompts.pixels["relit"].shape == (5, 6, SIZE, SIZE, 3)
    scene = int(prompts.ids[2].rsplit("-", 1)[1])
    steady, drawn = world.draw(scene, [int(prompts.view[2]) - 1], SIZE)
    np.testing.assert_array_equal(prompts.pixels["image"][2, -1], steady["image"])
    np.testing.assert_array_equal(prompts.pixels["segmentation"][2, -1], drawn["segmentation"])
    np.testing.assert_array_equal(prompts.codes["edge"][2, -1], _encode(drawn["edge"]))
    assert len(np.unique(prompts.codes["image"])) > 4
    unseen = world_prompts(world, vq, 5, latents=list(world.held_out_latents), workers=0)
    assert set(unseen.view - 1) <= set(world.held_out_latents)
    assert set(prompts.view - 1).isdisjoint(world.held_out_latents)
    clips = world_clips(world, vq, 3, workers=0)
    assert clips is not None and clips.codes.shape == (3, 8, TOKENS)
    with pytest.raises(UserError, match="split test"):
        world_prompts(WorldSource(WorldConfig()), vq, 5)


def _encode(picture: np.ndarray) -> np.ndarray:
    from tokenizer import BulkEncoder

    return BulkEncoder(tiny_tokenizer()).encode(picture[None])[0]


class Folder:
    """120 pictures in two views, all with gray and noisy, every third with a segmentation; and 60 short clips."""

    name = "folder"
    channels = CHANNELS

    def __len__(self) -> int:
        return 180

    def unit_id(self, i: int) -> str:
        return f"unit-{i}"

    def read(self, i: int, size: int) -> list[Item]:
        name = self.unit_id(i)
        drawn = {channel: picture[None] for channel, picture in random_channels(i, 0).items()}
        if i >= 120:
            return [Item(name, name, 0, -1, {"image": np.repeat(drawn["image"], 9, 0)})]
        steady = {"image", "gray"} | ({"segmentation"} if i % 3 == 0 else set())
        return [
            Item(name, name, 0, -1, {channel: drawn[channel] for channel in steady}),
            Item(name, name, 1, -1, {"noisy": drawn["noisy"]}),
        ]

    def fingerprint(self) -> str:
        return "folder"


def test_queries_of_a_folder_are_held_out_and_each_task_is_in_one_set() -> None:
    sets, clips = source_prompts(Folder(), tiny_tokenizer(), 300, num_targets=50, workers=0)
    names = [task.name for prompts in sets for task in prompts.tasks]
    assert sorted(names) == ["colorization", "denoising", "segmentation"]
    for prompts in sets:
        assert len(prompts) == 50 and 0 < prompts.num_distinct < 50
        assert all(held_out(group_hash(name), 300) for name in prompts.ids)
    assert clips is not None and all(held_out(group_hash(name), 300) for name in clips.ids)
    segmented = next(prompts for prompts in sets if prompts.tasks[0].name == "segmentation")
    assert all(int(name.split("-")[1]) % 3 == 0 for name in segmented.ids)
    assert len(tasks_of(segmented.codes)) == 3  # so that it has tasks to take wrong pairs from


def test_a_source_with_nothing_held_out_is_a_user_error() -> None:
    with pytest.raises(UserError, match="nothing to evaluate on"):
        source_prompts(Folder(), tiny_tokenizer(), 0, workers=0)


# Baselines and intervals.


def test_right_task_counts_planted_answers() -> None:
    rng = np.random.default_rng(0)
    tokenised = {name: rng.integers(0, 256, (4, SIZE, SIZE, 3)).astype(np.uint8) for name in CHANNELS}
    answers = tokenised["depth"].copy()
    answers[1] = tokenised["segmentation"][1]  # of another task
    answers[2] = tokenised["image"][2] // 2 + tokenised["depth"][2] // 2  # near the query, which does not count
    assert right_task(answers, tokenised, DEPTH).tolist() == [True, False, True, True]


def test_a_channel_equal_to_the_asked_one_does_not_count_against_it() -> None:
    same = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    assert right_task(same + 9, {"image": same, "depth": same, "edge": same}, DEPTH).all()


def test_copies_are_the_query_and_the_answer_of_the_last_pair() -> None:
    prompts = tiny_prompts()
    found = copies(prompts, DEPTH)
    np.testing.assert_array_equal(found["copy_query"], prompts.pixels["image"][:, 5])
    np.testing.assert_array_equal(found["copy_last_answer"], prompts.pixels["depth"][:, 4])


def test_the_bootstrap_covers_the_mean_and_narrows_with_the_number_of_values() -> None:
    rng = np.random.default_rng(0)
    hits, widths = 0, []
    for n in (30, 300):
        for trial in range(50):
            found = bootstrap_mean(rng.normal(1.0, 2.0, n), seed=trial, num_resamples=300)
            hits += found["low"] <= 1.0 <= found["high"]
            widths.append(found["high"] - found["low"])
    assert hits >= 85
    assert np.mean(widths[50:]) < 0.5 * np.mean(widths[:50])
    values = rng.normal(size=40)
    assert bootstrap_mean(values, seed=5) == bootstrap_mean(np.append(values, np.nan), seed=5)
    assert np.isnan(bootstrap_mean(np.array([np.nan]))["low"])


# The whole.


def test_an_evaluation_has_the_keys_that_scripts_read(evaluation: Evaluation) -> None:
    report = json.loads(json.dumps(evaluation.report))
    assert set(report["tasks"]) == {"segmentation", "depth", "colorization", "denoising"}
    for row in report["tasks"].values():
        assert set(row["perplexity"]) == {"0", "1", "3", "5", "wrong"}
        assert {"0", "5"} <= set(row["first_token"])
        assert {"metric", "higher_is_better", "model", "copy_query", "copy_last_answer"} <= set(row)
        assert 0 <= row["right_task"] <= 1 and row["targets"] == 6 and "tokenizer_ceiling" in row
        assert row["saved_nats"]["low"] <= row["saved_nats"]["mean"] <= row["saved_nats"]["high"]
    assert set(report["frames"]["perplexity"]) == {"1", "3", "7"}
    assert {"metric", "model", "copy_last_frame", "tokenizer_ceiling"} <= set(report["frames"])
    depth = report["tasks"]["depth"]
    saved = TOKENS * (np.log(depth["perplexity"]["0"]) - np.log(depth["perplexity"]["5"]))
    # The net is untrained: both are next to nothing, differences of float32 sums of some 20 nats.
    assert depth["saved_nats"]["mean"] == pytest.approx(saved, rel=1e-3, abs=1e-5)


def test_an_evaluation_is_the_same_again(evaluation: Evaluation) -> None:
    again = evaluate_prompts(tiny_model(), tiny_tokenizer(), tiny_prompts(), tiny_clips(), examples=2)
    assert again.report == evaluation.report


def test_without_answers_only_perplexities_are_measured() -> None:
    found = evaluate_prompts(
        tiny_model(), tiny_tokenizer(), tiny_prompts(), tasks=["depth"], generate_answers=False
    ).report
    assert list(found["tasks"]) == ["depth"] and "model" not in found["tasks"]["depth"]


def test_pairs_that_exceed_the_context_are_left_out() -> None:
    found = evaluate_prompts(tiny_model(max_position=40), tiny_tokenizer(), tiny_prompts(), tiny_clips()).report
    assert set(found["tasks"]["depth"]["perplexity"]) == {"0", "1", "3", "wrong"}
    assert found["tasks"]["depth"]["model"] is not None


def test_a_foreign_tokenizer_is_refused() -> None:
    with pytest.raises(UserError, match="belong together"):
        evaluate_prompts(tiny_model(num_codes=64), tiny_tokenizer(), tiny_prompts())
    with pytest.raises(UserError, match="belong together"):
        evaluate_prompts(tiny_model(tokenizer_fingerprint="f" * 64), tiny_tokenizer(), tiny_prompts())


def test_the_report_is_one_file_that_loads_nothing(evaluation: Evaluation, tmp_path: Path) -> None:
    report = {**evaluation.report, "seconds": 61.0, "parameters": 1000, "tokens_seen": 12345}
    report["held_out_latents"] = evaluation.report
    metrics = [{"step": step, "loss": 5 / (1 + step)} for step in range(50)]
    timings = {"render": 3.0, "train": 50.0}
    page = write_report(tmp_path, report, evaluation.grids, metrics=metrics, timings=timings, notes=["a <note>"])
    html = page.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]
    assert json.loads((tmp_path / "report.json").read_text()) == report
    addresses = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert addresses and all(address.startswith("data:image/png;base64,") for address in addresses)
    assert not re.search(r"<script|@import|url\(", html)
    for heading in ("answers", "next", "Scores", "pairs", "frames", "Held-out", "Training", "long", "Notes"):
        assert re.search(f"<h2>[^<]*{heading}", html), heading
    assert "a &lt;note&gt;" in html
    pictures = [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", html, re.S)]
    assert len(pictures) == len(report["tasks"]) + 3
    assert len(addresses) == sum(len(row) for grid in evaluation.grids for row in grid.rows)


def test_a_report_of_perplexities_alone_is_written(tmp_path: Path) -> None:
    found = evaluate_prompts(tiny_model(), tiny_tokenizer(), tiny_prompts(), generate_answers=False)
    html = write_report(tmp_path, found.report, found.grids).read_text()
    assert "Perplexity by number of pairs" in html and "What it answers" not in html


def test_the_headline_counts_what_the_goal_names() -> None:
    row = {
        "perplexity": {"0": 10.0, "5": 8.0, "wrong": 16.0},
        "first_token": {"0": 40.0, "5": 4.0},
        "saved_nats": {"mean": 3.0, "low": 1.0, "high": 5.0},
        "model": 20.0,
        "copy_query": 10.0,
        "copy_last_answer": 12.0,
        "higher_is_better": True,
        "right_task": 0.9,
    }
    worse = {**row, "copy_query": 21.0, "right_task": 0.7, "saved_nats": {"mean": 0.1, "low": -1.0, "high": 1.0}}
    found = headline({"tasks": {"a": row, "b": worse}})
    assert found["beat_both_copies"] == 1 and found["pairs_help"] == 1 and found["wrong_pairs_1_5x"] == 2
    assert found["right_task"] == pytest.approx(0.8) and found["first_token"] == pytest.approx(0.1)


def test_the_sheet_shows_every_row(evaluation: Evaluation, tmp_path: Path) -> None:
    from PIL import Image

    report_sheet(tmp_path / "sheet.png", evaluation.grids, rows_each=2, cell=32)
    width, height = Image.open(tmp_path / "sheet.png").size
    assert width > 8 * 32 and height > 2 * 32 * len(evaluation.grids)


def test_lvm_evaluate_writes_a_report_of_the_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vq = tiny_tokenizer()
    vq.save_pretrained(tmp_path / "tokenizer")
    tiny_model(tokenizer_fingerprint=vq.fingerprint).save_pretrained(tmp_path / "model")
    arguments = [str(tmp_path / "model"), "--tokenizer", str(tmp_path / "tokenizer"), "--suite", "demo"]
    arguments += ["--targets", "4", "--clips", "2", "--workers", "0", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(report["tasks"]) == 10 and len(report["held_out_latents"]["tasks"]) == 10 and "frames" in report
    assert (tmp_path / "out" / "sheet.png").is_file() and "denoising" in capsys.readouterr().out
