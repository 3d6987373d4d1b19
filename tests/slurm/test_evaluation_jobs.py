"""Evaluations of checkpoints as jobs of a real Slurm: they end long after their steps and are joined to them."""

import pytest
from tiny_training import listed, tiny_overrides, wait_until

from lvm.cluster.evaluation_jobs import submitted_jobs, waiting
from lvm.cluster.slurm import jobs
from lvm.commands import evaluate_checkpoints, launch
from lvm.runtime.checkpoint import list_checkpoints
from lvm.runtime.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def overrides(tmp_path_factory):
    trainer = [
        "max_steps=4",
        "save_every_steps=2",
        "validate_every_steps=2",
        "validation_windows=6",
        "keep_checkpoints=1",
    ]
    words = [*(f"trainer.{word}" for word in trainer), "evaluation.windows=6", "evaluation.gpus=0", "evaluation.cpus=1"]
    return [*tiny_overrides(tmp_path_factory.mktemp("tokenizer")), *words]


def train(overrides, run, cluster, *words):
    one = ["launcher=slurm", "gpus=0", "time=20", "cpus_per_task=1", f"run_dir={run}"]
    assert launch.main([*overrides, *one, *words]) == 0
    (job,) = {line.split('"')[3] for line in (run / "slurm" / "jobs.jsonl").read_text().splitlines()}
    assert cluster.wait(job, "COMPLETED", "FAILED", seconds=600) == "COMPLETED", log(run)


def log(run):
    return [path.read_text() for path in (run / "logs").glob("*.log")]


def agree(run):
    history = read_metrics(run / "metrics")
    both = {
        r["step"]: (r["validation_loss"], r["evaluation"]["held_out"]["loss"]) for r in history if "evaluation" in r
    }
    assert [record["step"] for record in history] == sorted(record["step"] for record in history)
    assert all(loss == pytest.approx(validation, rel=1e-4) for validation, loss in both.values())
    return list(both)


def test_jobs_that_end_after_the_training_are_joined_by_step(cluster, overrides, tmp_path, capsys):
    run = tmp_path / "run"
    train(overrides, run, cluster, "evaluation.every_steps=2", "evaluation.sbatch=[--hold]")
    steps = submitted_jobs(run)
    assert sorted(steps.values()) == [2, 4] and {job.state for job in jobs(list(steps)).values()} == {"PENDING"}
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step-00000004"]
    assert [path.name for path in waiting(run)] == ["step-00000002", "step-00000004"]
    assert agree(run) == [] and listed(tmp_path, capsys)["run"]["state"] == "finished"
    for job in sorted(steps, key=lambda job: -steps[job]):  # the later step first
        cluster.run("scontrol", "release", job)
        assert cluster.wait(job, "COMPLETED", "FAILED", seconds=600) == "COMPLETED", log(run)
    assert agree(run) == [2, 4] and not waiting(run)


def test_after_the_fact_by_jobs(cluster, overrides, tmp_path, capsys):
    run = tmp_path / "run"
    train(overrides, run, cluster, "trainer.keep_checkpoints=2")
    assert evaluate_checkpoints.main([str(run), "--submit"]) == 0
    assert evaluate_checkpoints.main([str(run), "--submit"]) == 0  # those at work are not submitted again
    assert capsys.readouterr().out.count(": job ") == 2
    wait_until(lambda: agree(run) == [2, 4], "no results")
    assert {job.state for job in jobs(list(submitted_jobs(run))).values()} <= {"RUNNING", "COMPLETING", "COMPLETED"}


def test_a_refused_submission_is_a_line_of_the_log(cluster, overrides, tmp_path):
    run = tmp_path / "run"
    train(overrides, run, cluster, "evaluation.every_steps=2", "evaluation.partition=nowhere")
    said = "\n".join(log(run))
    assert "step 2 is not evaluated (sbatch failed:" in said and "invalid partition" in said
    assert not waiting(run)
