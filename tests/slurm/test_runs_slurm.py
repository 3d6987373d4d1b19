"""`lvm runs`, `logs`, `cancel` and jobs of a real Slurm: each state is seen, a cancelled run saves and stays away."""

import json

import pytest
from tiny_training import listed, lvm, tiny_overrides, wait_for_step, wait_until

from lvm.cluster import slurm
from lvm.cluster.partitions import queued
from lvm.commands import cancel, launch
from lvm.runtime import UserError
from lvm.runtime.checkpoint import list_checkpoints, verify_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def start(cluster, tmp_path_factory):
    """Launch a training: start("name", "key=value", ...) -> (run folder, ids of its jobs)."""
    folder = tmp_path_factory.mktemp("runs")
    overrides = tiny_overrides(tmp_path_factory.mktemp("tokenizer"))

    def launched(name, *words):
        run = folder / name
        one = ["launcher=slurm", "gpus=0", "time=20", "cpus_per_task=1", f"run_dir={run}"]
        assert launch.main([*overrides, *one, *words]) == 0
        return run, [json.loads(line)["id"] for line in (run / "slurm" / "jobs.jsonl").read_text().splitlines()]

    return launched


def test_pending_running_requeued_cancelled(start, cluster, capsys):
    run, (job,) = start("long", "trainer.max_steps=1000000", "launcher.sbatch=--hold")
    state = lambda: listed(run.parent, capsys)["long"]
    assert (state()["state"], state()["reason"], state()["job"]) == ("pending", "JobHeldUser", job)
    cluster.run("scontrol", "release", job)
    wait_for_step(run, 5)
    seen = state()
    assert (seen["state"], seen["nodes"], seen["restarts"], seen["max_steps"]) == ("running", "n1", 0, 1000000)
    assert seen["step"] >= 5 and seen["loss"] > 0 and 0 < seen["limit_left"] <= 20 * 60 and seen["seconds_left"] > 0

    slurm.requeue(job)
    assert wait_until(lambda: (now := state())["state"] == "requeued" and now, "it was not requeued")["job"] == job
    saved = list_checkpoints(run / "checkpoints")[-1]
    cluster.wait(job, "RUNNING", seconds=300)
    wait_for_step(run, int(saved.name[5:]) + 3)
    assert (state()["state"], state()["restarts"]) == ("running", 1)

    assert "asked to save and end" in lvm("cancel", run)
    assert cluster.wait(job, "COMPLETED", "FAILED", "CANCELLED", "PENDING", seconds=300) != "PENDING"
    last = list_checkpoints(run / "checkpoints")[-1]
    verify_checkpoint(last)
    assert int(last.name[5:]) >= int(saved.name[5:]) + 3
    assert cluster.field(job, "Restarts") == "1"  # and it is not requeued
    seen = state()
    assert seen["state"] == "cancelled" and seen["step"] == seen["checkpoint_step"] == int(last.name[5:])
    assert "not at work (cancelled)" in lvm("cancel", run, code=2)

    said = lvm("logs", run, "--lines", "1000")
    assert f"{run}/logs/job.log" in said and f"{run}/logs/rank-0.log" in said
    assert f"continuing {saved}" in lvm("logs", run, "--rank", "0", "--lines", "1000")
    assert "has no rank 1" in lvm("logs", run, "--rank", "1", code=2)


def test_a_cancelled_chain_has_no_further_link_and_goes_on_when_it_is_launched_again(start, cluster, capsys):
    run, (first, second) = start("chain", "trainer.max_steps=1000000", "chain=2")
    wait_for_step(run, 3)
    assert cancel.main([str(run)]) == 0
    assert cluster.wait(second, "CANCELLED", seconds=300) and cluster.wait(
        first, "COMPLETED", "FAILED", "CANCELLED", seconds=300
    )
    assert listed(run.parent, capsys)["chain"]["state"] == "cancelled"
    step = int(list_checkpoints(run / "checkpoints")[-1].name[5:])
    run, (*_, third) = start("chain", f"trainer.max_steps={step + 2}")
    assert cluster.wait(third, "COMPLETED", "FAILED", seconds=300) == "COMPLETED"
    seen = listed(run.parent, capsys)["chain"]
    assert (seen["state"], seen["step"]) == ("finished", step + 2)


def test_killed_now_is_cancelled_and_a_run_that_fails_says_why(start, cluster, capsys):
    run, (job,) = start("now", "trainer.max_steps=1000000", "trainer.save_every_steps=2")
    broken, (other,) = start("broken", "trainer.max_steps=4", "init_from=/nowhere")
    wait_for_step(run, 3)
    assert cancel.main([str(run), "--now"]) == 0
    assert "is killed" in capsys.readouterr().out
    assert cluster.wait(job, "CANCELLED", "PENDING", "FAILED", "COMPLETED", seconds=300) == "CANCELLED"
    assert cluster.wait(other, "FAILED", "COMPLETED", seconds=300) == "FAILED"
    seen = listed(run.parent, capsys)
    assert (seen["now"]["state"], seen["broken"]["state"]) == ("cancelled", "failed")
    assert seen["broken"]["reason"].startswith("FAILED: error: ") and "/nowhere" in seen["broken"]["reason"]
    with pytest.raises(UserError, match=r"not at work \(failed\)"):
        cancel.main([str(broken)])


def test_many_jobs_are_asked_for_in_few_questions(start, cluster, tmp_path):
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\n")
    ids = [slurm.submit(script, "--hold", f"--output={tmp_path}/out") for _ in range(12)]
    slurm.cancel(*ids[6:])
    found = slurm.jobs([*ids, "99999999"])
    assert [found[job].state for job in ids] == ["PENDING"] * 6 + ["CANCELLED"] * 6 and len(found) == 12
    slurm.cancel(*ids[:6])


def test_an_array_is_known_by_its_tasks_and_cancelled_with_those_that_wait(cluster, tmp_path):
    run = tmp_path / "sweep"
    (run / "slurm").mkdir(parents=True)
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\n[ $SLURM_ARRAY_TASK_ID = 0 ] || exec srun sleep 600\n")
    array = slurm.submit(script, "--array=0-90%1", f"--output={tmp_path}/out")
    (run / "slurm" / "jobs.jsonl").write_text(json.dumps({"id": array}) + "\n")
    cluster.wait(f"{array}_1", "RUNNING")
    slurm.cancel(*(f"{array}_{task}" for task in range(2, 90, 3)))  # what waits is a long list by now
    found = slurm.jobs([f"{array}_{task}" for task in (0, 1, 3, 4, 90, 91)])
    assert {job: found[job].state for job in found} == {
        f"{array}_0": "COMPLETED",
        f"{array}_1": "RUNNING",
        f"{array}_3": "PENDING",
        f"{array}_4": "PENDING",
        f"{array}_90": "PENDING",
    }
    assert "asked to save and end" in lvm("cancel", run)
    wait_until(lambda: slurm.jobs([array])[array].ended, "a task waits or works")
    assert not queued([array])
