"""An evaluation as a job: killed, in shards, with broken items, asked something else."""

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
from suite_runs import save_prompter
from tiny_prompter import pictures

from lvm.commands.evaluate import main
from lvm.evaluation.rows import unpack
from lvm.runtime import UserError

TIMES = ("seconds", "machine", "commit")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    save_prompter(folder)
    (folder / "world.yaml").write_text("kind: world\nnum_scenes: 40\nnum_clips: 0\nnum_things: [2, 3]\n")
    return folder


def words(folder, out, *more, suite="failures", data="world.yaml"):
    common = ["--tokenizer", str(folder / "tokenizer"), "--data", str(folder / data), "--workers", "0"]
    return [str(folder / "model"), *common, "--suite", suite, "--out", str(out), *more]


FAILURES = ("--targets", "40", "only=[depth,edge]", "pairs=2")
PERPLEXITY = ("--targets", "56", "only=[depth,edge,normal,segmentation]", "shots=[0,1]")


def report_of(out):
    report = json.loads((out / "report.json").read_text())
    return {key: value for key, value in report.items() if key not in TIMES}


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(words(folder, out, *FAILURES)) == 0
    return out


def test_a_report_has_controls_baselines_and_intervals_for_the_same_queries(whole):
    report = report_of(whole)
    assert report["items"] == 80 and not report["failed"] and set(report["tasks"]) == {"depth", "edge"}
    rows = [json.loads(line) for line in (whole / "rows.jsonl").read_text().splitlines()]
    assert [row["case"] for row in rows] == list(range(80))
    for task in report["tasks"].values():
        assert {"right", "wrong_task", "shuffled", "none"} <= set(task["conditions"])
        assert set(task["controls"]) == {"wrong_task", "shuffled", "none"}
        assert {"copy_query", "copy_last_answer", "mean_answer", "nearest_pair", "tokenizer_ceiling"} == set(
            task["baselines"]
        )
        for found in (*task["conditions"].values(), *task["baselines"].values()):
            assert found["any"]["low"] <= found["any"]["mean"] <= found["any"]["high"] and found["any"]["items"] == 40
    of_depth = [row for row in rows if row["task"] == "depth"]
    mean = np.mean([row["conditions"]["right"]["scores"]["any"] for row in of_depth])
    assert report["tasks"]["depth"]["conditions"]["right"]["any"]["mean"] == pytest.approx(mean)
    nll = sum(row["conditions"]["none"]["nll"] for row in of_depth)
    tokens = sum(row["conditions"]["none"]["tokens"] for row in of_depth)
    assert report["tasks"]["depth"]["conditions"]["none"]["perplexity"] == pytest.approx(np.exp(nll / tokens))
    difference = np.mean([row["conditions"]["none"]["nll"] - row["conditions"]["right"]["nll"] for row in of_depth])
    assert report["tasks"]["depth"]["controls"]["none"]["nats"]["mean"] == pytest.approx(difference)
    assert unpack(rows[0]["conditions"]["right"]["codes"], 16).shape == (1, 16)


def test_three_shards_in_any_order_give_the_same_report(folder, whole, tmp_path, capsys):
    for shard in (2, 0, 1):
        assert main(words(folder, tmp_path / "out", *FAILURES, "--shard", f"{shard}/3")) == 0
        assert (tmp_path / "out" / "report.json").is_file() == (shard == 1)
    assert report_of(tmp_path / "out") == report_of(whole)
    assert (tmp_path / "out" / "rows.jsonl").read_bytes() == (whole / "rows.jsonl").read_bytes()


def test_killed_at_any_moment_the_same_command_ends_in_the_same_report(folder, tmp_path):
    asked = lambda name: words(folder, tmp_path / name, *PERPLEXITY, suite="perplexity")
    command = [sys.executable, "-m", "lvm", "evaluate", *asked("out"), "--workers", "1"]  # continued below without
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    killed = 0
    for blocks in (1, 3, 5):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while process.poll() is None and len(list((tmp_path / "out" / ".rows").glob("block-*"))) < blocks:
            assert time.monotonic() < until
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed >= 2
    assert main(asked("out")) == main(asked("whole")) == 0
    assert report_of(tmp_path / "out") == report_of(tmp_path / "whole")


def test_another_question_is_refused_with_the_difference(folder, whole):
    with pytest.raises(UserError, match=r"holds the answers to another question: .*seed"):
        main(words(folder, whole, *FAILURES, "--seed", "1"))
    with pytest.raises(UserError, match=r"another question: .*pairs"):
        main(words(folder, whole, *FAILURES[:-1], "pairs=1"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--suite", "nonsense"], r"--suite 'nonsense' is unknown; use one of perplexity, context"),
        (["pears=2"], r"pears.*pairs"),
        (["pairs=3"], r"pairs=3 do not fit: the model's context holds 6 pictures, 2 pairs"),
        (["only=[depths]"], r"only has 'depths', which world/scene does not allow; it has"),
        (["choose=nearst"], r"choose.*'nearst'"),
        (["order=last"], r"order.*'last'"),
        (["nonsense"], "option 'nonsense' cannot be read; write KEY=VALUE"),
        (["--targets", "0"], "--targets 0: must be at least 1"),
        (["--held-out", "1001"], "--held-out 1001: must be from 0 to 1000"),
        (["--shard", "3/3"], r"--shard '3/3' must be I/N"),
        (["--data", "/nowhere"], "/nowhere.*does not exist"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(folder, tmp_path, more, said):
    with pytest.raises(UserError, match=said):
        main(words(folder, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


def test_a_picture_that_cannot_be_read_is_named_and_the_others_are_evaluated(folder, tmp_path, capsys):
    for n, picture in enumerate(pictures(12, 32)):
        for name, pixels in (("images", picture), ("depths", picture[..., 0])):
            (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{n:02d}.png")
    cut = tmp_path / "photos" / "images" / "07.png"
    cut.write_bytes(cut.read_bytes()[:60])
    more = ("--targets", "3", "--held-out", "1000", "only=[depth]", "pairs=2", "--data", str(tmp_path / "photos"))
    assert main(words(folder, tmp_path / "out", *more)) == 1
    report = report_of(tmp_path / "out")
    (line,) = report["unreadable"]
    assert "images/07.png: " in line and report["tasks"]["depth"]["items"] == 3 and not report["failed"]
    said = r"error: 1 files of the data could not be read and were left out, the first .*07.png"
    assert re.search(said, capsys.readouterr().err)
