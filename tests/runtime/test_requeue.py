"""When a stopped run comes back, how restarts without progress are counted, and how ranks of a Slurm step meet."""

import os
import signal
import subprocess
import sys

import pytest

from lvm.runtime import UserError
from lvm.runtime.lease import RunLease
from lvm.runtime.metrics import MetricsLog
from lvm.runtime.rendezvous import cluster_environment, first_node, master_address, master_port, tasks_here
from lvm.runtime.requeue import (
    MOST,
    count_restart,
    newest_step,
    next_restarts,
    number_of_restart,
    own_job,
    read_restarts,
    reason_against,
    requeue_own_job,
)
from lvm.runtime.signals import StopFlag, signals_ignored
from lvm.runtime.slurm import Job


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    """No job, no launcher, and nothing of Slurm's to ask."""
    for key in [key for key in os.environ if key.startswith(("SLURM_", "LVM_CHAIN", "MASTER_"))]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("PATH", "/nowhere")


def in_job(monkeypatch, **values):
    for key, value in {"JOB_ID": "7", **values}.items():
        monkeypatch.setenv(f"SLURM_{key}", value)


def attempts(monkeypatch, run_dir, newest_steps):
    """One start of job 7 after the other, each finding the next of these newest checkpoints."""
    for restart, step in enumerate(newest_steps):
        in_job(monkeypatch, RESTART_COUNT=str(restart))
        count_restart(run_dir, step, is_main=True)


# Restarts are bounded.


def test_three_attempts_in_a_row_without_a_checkpoint_are_the_last(monkeypatch, tmp_path):
    attempts(monkeypatch, tmp_path, [-1, -1, -1])
    in_job(monkeypatch, RESTART_COUNT="3")
    for is_main in (False, True, False):  # before rank 0 has written it down, itself, and after
        with pytest.raises(UserError, match=rf"{MOST} attempts in a row ended without a new checkpoint \(there is no"):
            count_restart(tmp_path, -1, is_main)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "4")
    with pytest.raises(UserError, match="4 attempts"):
        count_restart(tmp_path, -1, is_main=True)


def test_a_new_checkpoint_begins_the_count_again(monkeypatch, tmp_path):
    attempts(monkeypatch, tmp_path, [-1, -1, -1, 5, 5, 5, 6, 6, 6, 7])
    assert read_restarts(tmp_path).without_progress == 0


def test_a_job_submitted_anew_begins_the_count_again(monkeypatch, tmp_path):
    attempts(monkeypatch, tmp_path, [5, 5, 5])
    in_job(monkeypatch, JOB_ID="8", RESTART_COUNT="0")
    count_restart(tmp_path, 5, is_main=True)
    assert read_restarts(tmp_path).without_progress == 0


def test_links_of_a_chain_are_restarts(monkeypatch, tmp_path):
    for link in range(MOST):
        in_job(monkeypatch, JOB_ID=str(70 + link))
        monkeypatch.setenv("LVM_CHAIN_LINK", str(link))
        assert number_of_restart() == link
        count_restart(tmp_path, 9, is_main=True)
    in_job(monkeypatch, JOB_ID="80")
    monkeypatch.setenv("LVM_CHAIN_LINK", str(MOST))
    with pytest.raises(UserError, match="the newest is of step 9"):
        count_restart(tmp_path, 9, is_main=True)


def test_a_damaged_count_and_a_run_outside_slurm_are_no_obstacle(monkeypatch, tmp_path):
    count_restart(tmp_path, -1, is_main=True)
    assert not list(tmp_path.iterdir()) and newest_step(tmp_path) == -1
    (tmp_path / "restarts.json").write_text('{"attempt": ')
    assert read_restarts(tmp_path) is None
    assert next_restarts(None, "7.1", True, 3).without_progress == 0


# Who asks for the requeue.


@pytest.mark.parametrize(
    ("job", "newest", "reason"),
    [
        (Job("7", "RUNNING", may_requeue=True), 12, None),
        (Job("7", "COMPLETING", "TimeLimit", may_requeue=True), 12, None),
        (Job("7", "COMPLETING", may_requeue=True), 12, "being ended"),  # preempted, cancelled
        (Job("7", "COMPLETING", restarts=1, may_requeue=True), 12, "being ended"),
        (Job("7", "RUNNING", restarts=1, may_requeue=True), 12, "requeued already"),
        (Job("7", "RUNNING"), 12, "--no-requeue"),
        (Job("7", "RUNNING", may_requeue=True), 10, "step 12 was not saved"),
        (None, 12, "being ended"),
    ],
)
def test_a_run_asks_only_where_nobody_else_has_decided(job, newest, reason):
    said = reason_against(job, 12, newest)
    assert said is None if reason is None else reason in said


def test_outside_a_job_after_ctrl_c_and_in_a_chain_nothing_is_asked(monkeypatch):
    assert requeue_own_job(signal.SIGUSR2, 5, 5) == "the same command continues it"
    in_job(monkeypatch)
    assert requeue_own_job(signal.SIGINT, 5, 5) == "the same command continues it"
    assert "job 7 is not requeued by the run: there is no Slurm" in requeue_own_job(signal.SIGTERM, 5, 5)
    monkeypatch.setenv("LVM_CHAIN_LINK", "0")
    assert requeue_own_job(signal.SIGUSR2, 5, 5) == "the next job of the chain continues it"


def test_of_an_array_only_this_task_is_requeued(monkeypatch):
    in_job(monkeypatch, ARRAY_JOB_ID="5", ARRAY_TASK_ID="2")
    assert own_job() == "5_2"


# Signals around the loop.


def test_a_signal_before_the_loop_stops_it_and_one_after_it_is_ignored():
    with StopFlag((signal.SIGUSR2,)):
        os.kill(os.getpid(), signal.SIGUSR2)
        with StopFlag() as flag:
            assert flag.received == signal.SIGUSR2
    former = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)]
    with signals_ignored():
        os.kill(os.getpid(), signal.SIGTERM)
        child = "import os, signal; os.kill(os.getpid(), signal.SIGTERM); print('alive')"
        assert subprocess.run([sys.executable, "-c", child], capture_output=True).stdout == b"alive\n"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)] == former


# How ranks meet.


def test_a_step_of_slurm_makes_the_ranks(monkeypatch):
    step = {"PROCID": "3", "LOCALID": "1", "NODEID": "1", "STEP_ID": "0", "STEP_NODELIST": "localhost"}
    in_job(monkeypatch, **step, STEP_NUM_TASKS="4", STEP_TASKS_PER_NODE="2(x2)")
    for key in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(key, "")  # so that what is set here goes away again
    [environment] = cluster_environment(2, 2)
    found = environment.world_size(), environment.global_rank(), environment.local_rank(), environment.node_rank()
    assert found == (4, 3, 1, 1) and environment.creates_processes_externally
    assert (environment.main_address, environment.main_port) == ("localhost", int(os.environ["MASTER_PORT"]))
    assert os.environ["LOCAL_WORLD_SIZE"] == "2"
    with pytest.raises(UserError, match=r"4 tasks, and trainer.num_nodes=2 x trainer.devices=4 are 8; give srun"):
        cluster_environment(4, 2)


@pytest.mark.parametrize("job", [{}, {"NTASKS": "4"}, {"NTASKS": "1", "PROCID": "0", "STEP_NUM_TASKS": "1"}])
def test_a_process_alone_starts_its_own_ranks_in_a_job_or_not(monkeypatch, job, recwarn):
    if job:
        in_job(monkeypatch, **job)
    [environment] = cluster_environment(2, 1)
    assert not environment.creates_processes_externally and environment.world_size() == 1 and not recwarn.list
    with pytest.raises(UserError, match=r"srun --nodes=2 --ntasks-per-node=1 python train\.py"):
        cluster_environment(1, 2)


def test_a_requeued_job_meets_at_another_port_than_what_is_left_of_it():
    first = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}
    ports = [master_port(first | {"SLURM_RESTART_COUNT": str(restart)}) for restart in range(20)]
    assert len(set(ports)) == 20 and ports[0] == master_port(first) and set(ports) <= set(range(10_000, 32_000))
    assert master_port(first | {"MASTER_PORT": "29500"}) == 29500


def test_the_address_of_the_first_node(monkeypatch):
    lists = ["gpu[07-09,12],x1", "gpu7,gpu8", "a-[1,3-4]-ib", "n1", "login,n[1-2]"]
    assert [first_node(nodes) for nodes in lists] == ["gpu07", "gpu7", "a-1-ib", "n1", "login"]
    monkeypatch.setenv("SLURM_JOB_NODELIST", "no-such-node[1-2]")
    with pytest.raises(UserError, match=r"no-such-node1 does not resolve .* set MASTER_ADDR"):
        master_address()
    monkeypatch.setenv("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
    assert master_address() == "127.0.0.1"
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    assert master_address() == "10.0.0.1"


def test_tasks_of_this_node(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "2(x3),1")
    found = []
    for node in range(4):
        monkeypatch.setenv("SLURM_NODEID", str(node))
        found.append(tasks_here())
    assert found == [2, 2, 2, 1]


# What else survives.


def test_the_lease_of_another_cluster_or_of_a_job_that_cannot_be_asked_about_is_respected(monkeypatch, tmp_path):
    in_job(monkeypatch, CLUSTER_NAME="here")
    first = RunLease(tmp_path)
    first.path.write_text(first.path.read_text().replace('"host": "', '"host": "not-'))
    in_job(monkeypatch, JOB_ID="8")
    with pytest.raises(UserError, match="in use by"):
        RunLease(tmp_path)  # there is no scontrol
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "there")
    with pytest.raises(UserError, match="in use by"):
        RunLease(tmp_path)


def test_attempts_of_a_run_are_one_run_of_wandb(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = []
    for attempt in range(2):
        with MetricsLog(tmp_path / "run" / "metrics", attempt, {"project": "test"}) as log:
            log.log(attempt + 1, loss=1.0)
            ids.append(log._wandb.id)
    kept = (tmp_path / "run" / "wandb_id").read_text()
    assert ids == [kept, kept]
    assert len(list((tmp_path / "run").glob(f"wandb/offline-run-*-{kept}"))) >= 1
