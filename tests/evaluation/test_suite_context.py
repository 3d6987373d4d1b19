"""context: the likelihood of the next frame, by hand and by the command."""

import json
import time

import numpy as np
import pytest
import torch
from small_clips import write_clips
from suite_runs import save_prompter
from tiny_prompter import SIZE, TOKENS

from lvm.commands.evaluate import main
from lvm.evaluation.suites.base import Context
from lvm.evaluation.suites.context import PUBLISHED
from lvm.evaluation.suites.opening import open_suite
from lvm.inference.prompter import Prompter
from lvm.runtime import UserError

WORLD = "kind: world\nsplit: test\nnum_scenes: 0\nnum_clips: 60\nnum_frames: 6\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompter")
    save_prompter(folder)
    (folder / "world.yaml").write_text(WORLD)
    return folder


def run(folder, out, data, *rest):
    words = [str(folder / "model"), "--tokenizer", str(folder / "tokenizer"), "--data", str(data), "--suite", "context"]
    code = main([*words, "--workers", "0", "--exact", "--out", str(out), *rest])
    report = json.loads((out / "report.json").read_text())
    return code, report, [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def asked(folder, tmp_path_factory):
    began = time.monotonic()
    found = run(folder, tmp_path_factory.mktemp("out"), folder / "world.yaml", "--targets", "30", "shown=[1,2,5]")
    assert time.monotonic() - began < 20
    return found


def test_perplexity_by_frames_is_of_the_same_targets(asked):
    code, report, rows = asked
    task = report["tasks"]["next_frame"]
    assert code == 0 and report["items"] == task["targets"] == 30 and report["published"][0]["scores"]["7"] == 49.8
    assert set(task["perplexity"]) == {"1", "2", "5", "wrong"} and report["settings"]["shown"] == [1, 2, 5]
    assert set(task["without_bos"]["perplexity"]) == {"1", "2", "5"}
    for found, suffix in ((task, ""), (task["without_bos"], "_without_bos")):
        for frames, condition in {"1": "none", "2": "2", "5": "right", "wrong": "wrong_task"}.items():
            if frames in found["perplexity"]:
                nll = np.array([row["conditions"][condition + suffix]["nll"] for row in rows]) / 16
                np.testing.assert_allclose(found["perplexity"][frames], np.exp(nll.mean()))
                np.testing.assert_allclose(found["per_answer_perplexity"][frames], np.exp(nll).mean())
    nats = {name: np.array([row["conditions"][name]["nll"] for row in rows]) for name in ("none", "2", "right")}
    np.testing.assert_allclose(task["saved_nats"]["2"]["mean"], (nats["none"] - nats["2"]).mean())
    np.testing.assert_allclose(task["saved_nats"]["5"]["mean"], (nats["none"] - nats["right"]).mean())
    assert set(task["controls"]) == {"none", "shuffled", "wrong_task"}
    assert all("codes" not in found for row in rows for found in row["conditions"].values()), "nothing is painted"


def test_likelihoods_are_those_of_one_pass_over_the_prompt_and_the_target(folder, asked):
    _, _, rows = asked
    prompter = Prompter.from_pretrained(folder / "model", folder / "tokenizer", device="cpu")
    suite = open_suite("context", Context(str(folder / "world.yaml"), SIZE, 6, 30), ["shown=[1,2,5]"])
    for row in rows[:4]:
        case = suite.case(row["case"])
        assert set(case.prompts) == set(row["conditions"]) and case.id == row["id"]
        for condition, shown in case.prompts.items():
            codes = prompter.encode(np.stack([*shown.pictures, *case.truth])).reshape(-1)
            bos = [] if condition.endswith("_without_bos") else [prompter.model.config.bos]
            tokens = torch.tensor([[*bos, *codes.tolist()]])
            with torch.no_grad():
                nll = prompter.model.nll(tokens)[0, -16:].double().sum().item()
            assert row["conditions"][condition]["nll"] == pytest.approx(nll, abs=1e-2), condition


def test_figure_7s_columns_of_ours_are_filled_without_bos_by_a_default_run(tmp_path):
    save_prompter(tmp_path, max_position=TOKENS * 16)
    (tmp_path / "world.yaml").write_text(WORLD.replace("60", "400").replace("num_frames: 6", "num_frames: 16"))
    code, report, rows = run(tmp_path, tmp_path / "out", tmp_path / "world.yaml", "--targets", "8")
    assert code == 0 and len(rows) == report["items"] > 1 and set(report["ours"]) == set(PUBLISHED[0].scores)
    conditions = {"1": "none", "3": "3", "7": "7", "11": "11", "15": "right"}
    for frames, ours in report["ours"].items():
        nll = np.array([row["conditions"][f"{conditions[frames]}_without_bos"]["nll"] for row in rows])
        assert ours == pytest.approx(np.exp(nll / TOKENS).mean())
    line = (tmp_path / "out" / "report.html").read_text().partition("this model</td>")[2].partition("</tr>")[0]
    assert line.count("<td") == 6 and "–" not in line
    caveat = report["published"][0]["caveat"]
    assert "no BOS" in caveat and "as many frames" in caveat and "the same average" in caveat


def test_folders_of_frames_and_models_of_other_contexts(folder, tmp_path):
    write_clips(tmp_path / "data", *[5] * 24)
    code, report, _ = run(folder, tmp_path / "out", tmp_path / "data", "--held-out", "1000")
    assert code == 0 and report["items"] == 24 and report["settings"]["shown"] == [1, 3]
    assert set(report["tasks"]["next_frame"]["perplexity"]) == {"1", "3", "wrong"}
    assert set(PUBLISHED[0].scores) == {"1", "3", "7", "11", "15"}
    context = Context(str(tmp_path / "data"), SIZE, 17)
    assert open_suite("context", context, ["shown=[1,3,7]"]).settings["shown"] == [1, 3]
    assert set(open_suite("context", context, ["other_bos=false"]).case(0).prompts) == {
        "right", "none", "wrong_task", "shuffled",
    }  # fmt: skip
    with pytest.raises(UserError, match=r"unknown config key 'context\.strid'; did you mean 'stride'"):
        open_suite("context", context, ["strid=2"])


def test_a_damaged_frame_fails_its_clip_alone(folder, tmp_path):
    write_clips(tmp_path / "data", *[4] * 5)
    (tmp_path / "data" / "frames" / "b" / "02.png").write_bytes(b"\x89PNG")
    code, report, rows = run(folder, tmp_path / "out", tmp_path / "data", "--held-out", "1000")
    assert code == 1 and len(report["failed"]) == 1 and report["failed"][0]["file"].endswith("b/02.png")
    assert sum("failed" not in row for row in rows) == 4 and report["tasks"]["next_frame"]["targets"] == 4
