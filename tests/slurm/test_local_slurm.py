"""The Slurm that the other tests here use is one: two nodes, jobs, requeues, and our wrapper reads what it says."""

import pytest

from lvm.cluster import slurm
from lvm.runtime import UserError

pytestmark = pytest.mark.slow


def script(folder, body):
    path = folder / "job.sh"
    path.write_text(f"#!/bin/bash\n#SBATCH --output={folder}/out.txt --open-mode=append\n{body}\n")
    return path


def test_a_job_on_two_nodes(cluster, tmp_path):
    job = slurm.submit(script(tmp_path, "srun bash -c 'echo $SLURM_NODEID $SLURMD_NODENAME'"), "--nodes=2")
    cluster.wait(job, "COMPLETED")
    assert sorted((tmp_path / "out.txt").read_text().split("\n"))[1:] == ["0 n1", "1 n2"]
    found = slurm.jobs([job, "999999"])
    assert set(found) == {job}
    assert (found[job].state, found[job].nodes, found[job].exit_code) == ("COMPLETED", "n[1-2]", "0:0")
    assert found[job].ended and found[job].started


def test_a_requeued_job_runs_again(cluster, tmp_path):
    job = slurm.submit(script(tmp_path, "echo run $SLURM_RESTART_COUNT; sleep 1$SLURM_RESTART_COUNT0"), "--requeue")
    cluster.wait(job, "RUNNING")
    slurm.requeue(job)
    cluster.wait(job, "RUNNING", seconds=60)
    assert slurm.jobs([job])[job].restarts == 1
    slurm.cancel(job)
    cluster.wait(job, "CANCELLED")


def test_a_complaint_of_slurm_is_one_line(cluster, tmp_path):
    with pytest.raises(UserError, match=r"^sbatch failed: .*invalid partition"):
        slurm.submit(script(tmp_path, "true"), "--partition=nowhere")


def test_an_array_and_its_tasks(cluster, tmp_path):
    body = "#SBATCH --array=0-5%2\n[ $SLURM_ARRAY_TASK_ID = 1 ] && exit 3; [ $SLURM_ARRAY_TASK_ID = 0 ] && sleep 60"
    array = slurm.submit(script(tmp_path, body))
    tasks = [f"{array}_{number}" for number in range(6)]
    cluster.wait(f"{array}_5", "COMPLETED", "FAILED")
    found = slurm.jobs([array, *tasks])
    assert [found[task].state for task in tasks[:2]] == ["RUNNING", "FAILED"] and found[array].state == "RUNNING"
    assert slurm.jobs([tasks[1], array]) == {name: found[name] for name in (tasks[1], array)}
    slurm.cancel(tasks[0])
    cluster.wait(tasks[0], "CANCELLED")
    assert slurm.jobs([array])[array].state in ("CANCELLED", "FAILED")
