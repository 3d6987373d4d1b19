"""A run of two ranks on two nodes survives what Slurm does to it, and ends with the bits of one that nothing befell."""

import contextlib
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from local_slurm import LocalSlurm
from safetensors import safe_open
from tiny_runs import tiny_run, tiny_tokenizer

from lvm.runtime.checkpoint import list_checkpoints, verify_checkpoint
from lvm.runtime.lease import process_start
from lvm.runtime.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
STEPS = 60
SAVE_FAILS = "ulimit -f 24"  # KiB a file may have: the log fits in, a checkpoint does not, as on a full disk
TWO = ("--nodes=2", "--ntasks-per-node=1")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Three nodes: a run of two goes on when one is lost."""
    with LocalSlurm(tmp_path_factory.mktemp("slurm"), nodes=3, cpus=2) as local:
        yield local


@pytest.fixture(scope="module")
def overrides(tmp_path_factory):
    trainer = [f"max_steps={STEPS}", "self_test=never", "accelerator=cpu", "log_every_steps=1", "save_every_steps=25"]
    return [*tiny_run(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))), *(f"trainer.{key}" for key in trainer)]


@pytest.fixture(scope="module")
def start(cluster, overrides, tmp_path_factory):
    """Submit a run: start("name", "trainer.x=1", options=TWO, before="...", after="...") -> Run."""
    folder = tmp_path_factory.mktemp("runs")

    def submit(name, *changes, options=TWO, before="", after=""):
        run_dir, script, log = folder / name, folder / f"{name}.sh", folder / f"{name}.log"
        nodes = [] if TWO[0] not in options else ["trainer.num_nodes=2"]
        command = [sys.executable, ROOT / "train.py", f"run_dir={run_dir}", *overrides, *nodes, *changes]
        lines = ["#!/bin/bash", before, f"srun {' '.join(map(str, command))} {after}"]
        script.write_text("\n".join(lines) + "\n")
        job = cluster.submit("--requeue", "--open-mode=append", f"--output={log}", *options, script)
        return Run(cluster, job, run_dir, log)

    return submit


class Run:
    def __init__(self, cluster, job, folder, log):
        self.cluster, self.job, self.folder, self.log = cluster, job, folder, log

    def wait_for_step(self, step, seconds=400):
        deadline = time.monotonic() + seconds
        while not any(record["step"] >= step for record in read_metrics(self.folder / "metrics")):
            assert time.monotonic() < deadline and self.cluster.state(self.job) in ("PENDING", "RUNNING"), self.said()
            time.sleep(0.05)

    def ended(self, state="COMPLETED", seconds=600):
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        assert self.cluster.wait(self.job, *ends, seconds=seconds) == state, self.said()
        return self

    def said(self):
        return self.log.read_text() if self.log.exists() else ""

    def restarts(self):
        return int(self.cluster.field(self.job, "Restarts"))

    def steps(self):
        return [int(path.name.removeprefix("step-")) for path in list_checkpoints(self.folder / "checkpoints")]

    def bits(self):
        """Of weights and moments in the last checkpoint, and of the loss at every step."""
        last = list_checkpoints(self.folder / "checkpoints")[-1]
        verify_checkpoint(last)
        digest = hashlib.sha256()
        for file in sorted((last / "tensors").iterdir()):
            with safe_open(file, "pt") as tensors:
                for key in sorted(tensors.keys()):
                    digest.update(key.encode() + tensors.get_tensor(key).numpy().tobytes())
        losses = [(record["step"], record["loss"]) for record in read_metrics(self.folder / "metrics")]
        assert [step for step, _ in losses] == list(range(1, STEPS + 1))
        return digest.hexdigest(), losses


@pytest.fixture(scope="module")
def undisturbed(start):
    run = start("undisturbed").ended()
    assert run.restarts() == 0 and json.loads((run.folder / "result.json").read_text())["finished"]
    return run.bits()


@pytest.fixture(scope="module")
def looping(undisturbed, start):
    """A run that cannot save, in a job whose script has it requeued whatever happens; it loops beside the tests."""
    again = "|| { scontrol requeue $SLURM_JOB_ID && sleep 60; exit 1; }"
    return start("looping", "trainer.save_every_steps=2", options=("--nodelist=n3",), before=SAVE_FAILS, after=again)


def test_usr2_saves_and_requeues_once(start, undisturbed, looping, cluster):
    run = start("signalled")
    run.wait_for_step(8)
    cluster.run("scancel", "--signal=USR2", run.job)
    run.ended()
    assert run.restarts() == 1 and run.said().count(f"job {run.job} is requeued") == 1
    assert "continuing" in run.said() and run.bits() == undisturbed


def test_preemption_is_survived_and_not_requeued_twice(start, undisturbed, cluster, tmp_path):
    run = start("preempted", options=(*TWO, "--nodelist=n1,n2"))
    run.wait_for_step(8)
    urgent = tmp_path / "urgent.sh"
    urgent.write_text("#!/bin/bash\nsleep 2\n")
    cluster.submit(*TWO, "--nodelist=n1,n2", "--exclusive", "--partition=high", "--output=/dev/null", urgent)
    run.ended()
    assert run.restarts() == 1 and "is requeued\n" not in run.said()
    assert "is not requeued by the run: it is being ended" in run.said() and run.bits() == undisturbed


def test_a_chain_of_jobs_continues_where_nothing_is_requeued(start, undisturbed, cluster):
    link = lambda number, *more: start(
        "chained", options=(*TWO, "--no-requeue", *more), before=f"export LVM_CHAIN_LINK={number}"
    )
    first = link(0)
    second = link(1, f"--dependency=afterany:{first.job}")
    third = link(2, f"--dependency=afterany:{second.job}")
    first.wait_for_step(8)
    cluster.run("scancel", "--signal=USR2", first.job)
    first.ended("FAILED")  # 128 + the signal's number: it is not finished
    second.ended()
    third.ended()
    assert "the next job of the chain continues it" in third.said() and third.bits() == undisturbed
    assert third.said().count(f"finished at step {STEPS}") == 2
    assert third.said().count("All distributed processes registered") == 2  # the third had nothing to start


def test_without_requeue_a_stopped_run_is_saved_and_says_so(start, cluster):
    run = start("left", options=("--no-requeue",))
    run.wait_for_step(8)
    cluster.run("scancel", "--signal=USR2", run.job)
    run.ended("FAILED")
    assert run.steps() and "submitted with --no-requeue" in run.said()


def test_a_save_that_fails_on_the_way_out_does_not_requeue(start, cluster):
    run = start("full", "trainer.save_every_steps=1000", options=(), before=SAVE_FAILS)
    run.wait_for_step(8)
    cluster.run("scancel", "--signal=USR2", run.job)
    run.ended("FAILED")
    assert run.restarts() == 0 and run.steps() == [] and "could not be written" in run.said()
    assert "Traceback" not in run.said()


def test_three_attempts_without_a_checkpoint_end_the_loop(looping):
    looping.ended("FAILED")
    assert looping.restarts() == 3 and looping.steps() == []
    assert looping.said().count("could not be written") == 3
    assert "3 attempts in a row ended without a new checkpoint (there is none)" in looping.said()


def test_a_lost_node_is_replaced_and_the_rank_left_on_it_writes_nothing(start, undisturbed, cluster):
    # Slurm is to notice: the nodes are one host here, where a rank would end another that is silent for too long.
    run = start("orphaned", "trainer.peer_timeout_seconds=600")
    run.wait_for_step(8)
    assert cluster.field(run.job, "NodeList") == "n[1-2]"
    orphan = json.loads((run.folder / "lease.json").read_text())["pid"]  # rank 0, on n1
    born, keeper = process_start(orphan), parent(orphan)  # which is Slurm's, and would wait for ever
    os.kill(orphan, signal.SIGSTOP)  # so that it is in the middle of its work when the run is finished by others
    try:
        cluster.kill_node_daemon("n1")
        run.ended()
        assert cluster.field(run.job, "NodeList") == "n[2-3]"
        assert run.restarts() == 1 and process_start(orphan) == born
        before = contents(run.folder)
        os.kill(orphan, signal.SIGCONT)
        deadline = time.monotonic() + 60
        while process_start(orphan) == born and time.monotonic() < deadline:
            time.sleep(0.2)
        assert process_start(orphan) != born and contents(run.folder) == before
    finally:
        if process_start(orphan) == born:
            os.kill(orphan, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(keeper, signal.SIGKILL)
        cluster.start_node_daemon("n1")
    assert run.bits() == undisturbed


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*") if path.is_file()}
