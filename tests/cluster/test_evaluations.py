"""Checkpoints are evaluated beside a training or after it: the figures are those of the training's own validation."""

import json
import os
import shutil
import sys
import threading
import time
import types

import pytest
from PIL import Image
from tiny_prompter import pictures
from tiny_runs import tiny_run, tiny_tokenizer

from lvm.cluster.evaluation_jobs import EvaluationConfig, evaluations, hold, outside_this_job, waiting, write_result
from lvm.commands import evaluate, evaluate_checkpoints, train
from lvm.runtime import UserError, read_json, write_json
from lvm.runtime.checkpoint import list_checkpoints
from lvm.runtime.hashing import group_hash
from lvm.runtime.metrics import MetricsLog, read_metrics


@pytest.fixture(scope="module")
def overrides(tmp_path_factory):
    trainer = [
        "max_steps=4",
        "save_every_steps=2",
        "validate_every_steps=2",
        "validation_windows=6",
        "log_every_steps=1",
    ]
    ours = [*(f"trainer.{word}" for word in trainer), "trainer.accelerator=cpu", "data.held_out_per_mille=150"]
    few = ["evaluation.windows=6", "evaluation.targets=2", "evaluation.clips=0"]
    return [*tiny_run(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))), *ours, *few]


@pytest.fixture(scope="module")
def trained(overrides, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    assert train.main([*overrides, f"run_dir={run}"]) == 0
    return run


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def join_submissions():
    for thread in threading.enumerate():
        if thread.name.startswith("evaluate-step-"):
            thread.join(120)


def evaluated(run):
    """Validation and evaluation by step, where both are."""
    return {
        record["step"]: (record["validation_loss"], record["evaluation"]["held_out"]["loss"])
        for record in read_metrics(run / "metrics")
        if "evaluation" in record
    }


def agrees(run):
    return all(loss == pytest.approx(validation, rel=1e-4) for validation, loss in evaluated(run).values())


def test_kept_checkpoints_are_evaluated_once_and_agree_with_validation(run, capsys):
    assert evaluate_checkpoints.main([str(run)]) == 0
    assert list(evaluated(run)) == [2, 4] and agrees(run)
    assert len({loss for _, loss in evaluated(run).values()}) == 2
    by_source = read_metrics(run / "metrics")[-1]["evaluation"]["held_out"]["loss_by_source"]
    assert by_source == pytest.approx(read_metrics(run / "metrics")[-1]["validation_loss_by_source"], rel=1e-4)
    assert not waiting(run)
    capsys.readouterr()
    assert evaluate_checkpoints.main([str(run)]) == 0 and not capsys.readouterr().out


def test_another_suite_is_added_to_what_is_there(run):
    assert evaluate_checkpoints.main([str(run), "--steps", "4", "--windows", "2"]) == 0
    assert evaluate_checkpoints.main([str(run), "--steps", "4", "--suites", "perplexity", "--targets", "2"]) == 0
    assert [r["step"] for r in read_metrics(run / "metrics") if "evaluation" in r] == [4]
    found = read_metrics(run / "metrics")[-1]["evaluation"]
    assert set(found) == {"held_out", "perplexity"}
    assert all(row["perplexity"]["0"] > 1 for row in found["perplexity"].values()) and len(found["perplexity"]) > 3
    assert (run / "evaluations" / "step-00000004-perplexity" / "report.html").is_file()


def test_files_that_cannot_be_read_are_in_the_exit_code_of_their_checkpoint(run, tmp_path, capsys):
    names = [name for name in map("p{}".format, range(200)) if group_hash(name) % 1000 < 150]  # as the run holds out
    for name, picture in zip(names, pictures(len(names), 16)):
        for channel, pixels in (("images", picture), ("depths", picture[..., 0])):
            (tmp_path / "photos" / channel).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "photos" / channel / f"{name}.png")
    config = read_json(run / "config.json")
    config["evaluation"]["data"] = str(tmp_path / "photos")
    write_json(run / "config.json", config)
    words = [str(run), "--suites", "perplexity", "--targets", "2", "--steps"]
    assert evaluate_checkpoints.main([*words, "2"]) == 0
    (tmp_path / "photos" / "images" / f"{names[0]}.png").write_bytes(b"")
    assert evaluate_checkpoints.main([*words, "4"]) == 1
    assert f"images/{names[0]}.png: " in capsys.readouterr().err
    assert [row["step"] for row in read_metrics(run / "metrics") if "evaluation" in row] == [2, 4]


def test_a_checkpoint_that_waits_for_the_runs_own_suites_is_kept_by_an_evaluation_of_others(run):
    hold(run, run / "checkpoints" / "step-00000002")
    assert evaluate_checkpoints.main([str(run), "--steps", "2", "--suites", "perplexity", "--targets", "2"]) == 0
    assert [path.name for path in waiting(run)] == ["step-00000002"]
    assert evaluate_checkpoints.main([str(run), "--steps", "2"]) == 0 and not waiting(run)


@pytest.mark.timeout(900)  # of low priority: on a machine that has other work it takes its time
def test_a_training_has_a_checkpoint_evaluated_that_it_deletes(overrides, tmp_path, capsys):
    run = tmp_path / "run"
    ask = ["evaluation.every_steps=2", "trainer.keep_checkpoints=1", "trainer.max_steps=3"]
    assert train.main([*overrides, f"run_dir={run}", *ask]) == 0
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step-00000003"]
    join_submissions()
    assert "step 2 is evaluated by process" in capsys.readouterr().out
    deadline = time.monotonic() + 800
    while list(evaluated(run)) != [2] or waiting(run):
        assert time.monotonic() < deadline, [path.read_text() for path in (run / "logs").iterdir()]
        time.sleep(0.2)
    assert agrees(run)


def test_what_cannot_be_submitted_is_a_line_and_training_goes_on(overrides, tmp_path, capsys, monkeypatch):
    (tmp_path / "slurm.conf").write_text("nonsense=1\n")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))  # no Slurm that answers, where there is one
    run = tmp_path / "run"
    ask = ["evaluation.every_steps=2", "evaluation.launcher=slurm"]
    assert train.main([*overrides, f"run_dir={run}", *ask]) == 0
    join_submissions()
    said = capsys.readouterr().out
    assert "step 2 is not evaluated (" in said and f"lvm evaluate-checkpoints {run} does it while" in said
    assert not waiting(run) and not (run / "evaluations" / "jobs.jsonl").exists()


def test_no_more_checkpoints_wait_than_asked_for(run):
    first, second = list_checkpoints(run / "checkpoints")
    held = hold(run, first)
    assert (held / "manifest.json").stat().st_ino == (first / "manifest.json").stat().st_ino  # no second copy
    said = []
    evaluations(run, EvaluationConfig(every_steps=4, most_waiting=1, launcher="local"), said.append)(second)
    assert said == ["step 4 is not evaluated: 1 checkpoints wait for that (evaluation.most_waiting)"]
    assert waiting(run) == [held]
    assert evaluations(run, EvaluationConfig()) is None


def test_a_damaged_checkpoint_is_a_line_and_the_others_are_evaluated(run, capsys):
    damaged = list_checkpoints(run / "checkpoints")[0]
    (damaged / "manifest.json").write_text("{}")
    assert evaluate_checkpoints.main([str(run)]) == 2
    assert "error: step 2: " in capsys.readouterr().err
    assert list(evaluated(run)) == [4]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "3"], "no checkpoint of step 3; kept: 2, 4"),
        (["--suites", "nothing"], "'nothing'; known: held_out, perplexity, context, .*failures, demo"),
        (["--windows", "0"], r"evaluation\.windows is 0"),
        (["--submit", "--windows", "3"], "--submit evaluates as the run's config says"),
    ],
)
def test_mistakes_are_one_line(trained, words, message):
    with pytest.raises(UserError, match=message):
        evaluate_checkpoints.main([str(trained), *words])


def test_what_is_never_saved_cannot_be_asked_for(overrides, tmp_path):
    for every, save in ((3, 2), (2, 0)):
        with pytest.raises(UserError, match=r"evaluation\.every_steps \d is no multiple of trainer\.save_every_steps"):
            words = [f"evaluation.every_steps={every}", f"trainer.save_every_steps={save}"]
            train.main([*overrides, f"run_dir={tmp_path / 'run'}", *words])
    assert not (tmp_path / "run").exists()


def test_results_that_come_late_stand_at_their_step(tmp_path):
    with MetricsLog(tmp_path / "metrics") as log:
        for step in (1, 2, 4):
            log.log(step, loss=1.0 / step)
    for step in (4, 1, 3):
        write_result(tmp_path, step, "held_out", {"loss": float(step)})
    (tmp_path / "evaluations" / "step-00000002.json").write_text('{"step": 2, "resu')
    history = read_metrics(tmp_path / "metrics")
    assert [record["step"] for record in history] == [1, 2, 3, 4]
    losses = [record.get("evaluation", {}).get("held_out", {}).get("loss") for record in history]
    assert losses == [1.0, None, 3.0, 4.0] and history[3]["loss"] == 0.25


def test_wandb_draws_late_results_over_their_own_step_and_once(tmp_path, monkeypatch):
    calls = []
    fake = types.ModuleType("wandb")
    fake.init = lambda **_: types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)),
        define_metric=lambda name, step_metric: calls.append((name, step_metric)),
        finish=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with MetricsLog(tmp_path / "metrics", wandb={}) as log:
        log.log(10, loss=1.0)
        write_result(tmp_path, 5, "held_out", {"loss": 2.0, "loss_by_source": {"a": 3.0}})
        log.log(20, loss=0.5)
        log.log(30, loss=0.4)
    figures = {"evaluation/step": 5, "evaluation/held_out/loss": 2.0, "evaluation/held_out/loss_by_source/a": 3.0}
    assert calls == [
        (10, {"loss": 1.0}),
        ("evaluation/*", "evaluation/step"),
        (20, figures),
        (20, {"loss": 0.5}),
        (30, {"loss": 0.4}),
    ]
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [10, 20, 30]


def test_a_job_inherits_nothing_of_the_job_that_submits_it():
    here = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_CONF": "c", "RANK": "1", "PATH": os.environ["PATH"]}
    assert outside_this_job(here | {"MASTER_PORT": "1", "LVM_CACHE": "x"}) == {
        "SLURM_CONF": "c",
        "PATH": os.environ["PATH"],
        "LVM_CACHE": "x",
    }


def test_suites_are_asked_in_the_training_itself(overrides, tmp_path):
    """The same figures as of `lvm evaluate` on the checkpoint of that step."""
    live = ["trainer.answer_every_steps=2", "evaluation.live=[perplexity,depth]", "evaluation.live_targets=2"]
    train.train_config([*overrides, *live, "trainer.max_steps=2", f"run_dir={tmp_path / 'run'}"])
    (found,) = [row["live"] for row in read_metrics(tmp_path / "run" / "metrics") if "live" in row]
    assert set(found) == {"perplexity", "depth"} and found["depth"]["depth"]["score"]["abs_rel"] > 0
    config = read_json(tmp_path / "run" / "config.json")
    words = [str(tmp_path / "run"), "--tokenizer", config["vqgan"], "--targets", "2", "--workers", "0"]
    evaluate.main([*words, "--suite", "depth", "--out", str(tmp_path / "depth")])
    report = read_json(tmp_path / "depth" / "report.json")["tasks"]["depth"]["conditions"]["right"]
    assert found["depth"]["depth"]["score"]["abs_rel"] == pytest.approx(report["abs_rel"]["mean"])
    with pytest.raises(UserError, match=r"evaluation\.live .* set trainer\.answer_every_steps"):
        train.train_config([*overrides, "evaluation.live=[perplexity]", f"run_dir={tmp_path / 'other'}"])
    with pytest.raises(UserError, match=r"evaluation\.live has 'demo'; known: perplexity"):
        train.train_config([*overrides, "evaluation.live=[demo]", f"run_dir={tmp_path / 'other'}"])
