"""At most one incarnation of a run writes its folder."""

import json
import os
import signal
import subprocess
import sys

import pytest

from lvm.runtime import UserError
from lvm.runtime.lease import RunLease, process_start

HOLDER = """
import sys, time
from lvm.runtime.lease import RunLease
lease = RunLease(sys.argv[1])
print("held", flush=True)
sys.stdin.readline()
try:
    lease.check()
    print("mine", flush=True)
except ValueError as error:
    print(error, flush=True)
"""


def hold(folder, **environment: str) -> subprocess.Popen:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        env=clean | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.fixture(autouse=True)
def outside_slurm(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def holder(tmp_path):
    process = hold(tmp_path, SLURM_JOB_ID="7", SLURM_RESTART_COUNT="1")
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def answer(process: subprocess.Popen) -> str:
    return process.communicate("\n", timeout=60)[0]


def test_a_live_owner_is_named_and_keeps_the_lease(tmp_path, holder):
    with pytest.raises(UserError, match=rf"in use by pid {holder.pid} on \S+ since 20\d\d-"):
        RunLease(tmp_path)
    assert answer(holder) == "mine\n"


def test_a_killed_owner_on_this_host_is_followed_at_once(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lease = RunLease(tmp_path)
    lease.check()
    assert lease.attempt == 1


def test_a_reused_pid_is_not_taken_for_the_owner(tmp_path):
    first = RunLease(tmp_path)
    record = json.loads(first.path.read_text())
    first.path.write_text(json.dumps(record | {"start": "1"}))  # as if this pid had belonged to an older process
    RunLease(tmp_path).check()
    with pytest.raises(UserError, match="taken over"):
        first.check()


def test_a_higher_restart_of_the_same_job_takes_over_and_the_former_one_finds_out(tmp_path, holder, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    RunLease(tmp_path).check()
    assert f"taken over by pid {os.getpid()}" in answer(holder)


@pytest.mark.parametrize(("job", "restart"), [("7", "1"), ("7", "0"), ("8", "5")])
def test_another_job_or_no_higher_restart_does_not_take_over(tmp_path, holder, monkeypatch, job, restart):
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
    with pytest.raises(UserError, match="in use by"):
        RunLease(tmp_path)


def test_an_owner_on_another_host_is_believed_alive(tmp_path):
    first = RunLease(tmp_path)
    first.path.write_text(json.dumps(json.loads(first.path.read_text()) | {"host": "elsewhere", "pid": 1 << 30}))
    with pytest.raises(UserError, match=r"on elsewhere .* remove .*lease.json"):
        RunLease(tmp_path)


def test_a_task_of_another_host_is_followed_where_doing_it_twice_is_no_harm(tmp_path):
    former = RunLease(tmp_path)
    record = json.loads(former.path.read_text())
    former.path.write_text(json.dumps({**record, "host": "elsewhere"}))
    with pytest.raises(UserError, match="elsewhere"):
        RunLease(tmp_path)
    RunLease(tmp_path, over_hosts=True).check()
    with pytest.raises(UserError, match="was taken over"):
        former.check()
    with pytest.raises(UserError, match="in use"):
        RunLease(tmp_path, over_hosts=True)  # of this host, and alive


def test_a_reboot_frees_the_lease(tmp_path):
    first = RunLease(tmp_path)
    first.path.write_text(json.dumps(json.loads(first.path.read_text()) | {"boot": "another-boot pid:[1]"}))
    RunLease(tmp_path).check()


def test_a_released_lease_is_free_and_attempts_are_counted(tmp_path):
    for attempt in range(3):
        with RunLease(tmp_path) as lease:
            assert lease.attempt == attempt
    with pytest.raises(UserError):
        lease.check()


def test_a_lost_lease_is_not_released_for_its_new_owner(tmp_path):
    first = RunLease(tmp_path)
    first.path.write_text(json.dumps(json.loads(first.path.read_text()) | {"start": "1"}))
    second = RunLease(tmp_path)
    first.release()
    second.check()


def test_of_many_processes_that_ask_at_once_exactly_one_gets_it(tmp_path):
    processes = [hold(tmp_path) for _ in range(5)]
    winners = [process for process in processes if process.stdout.readline() == "held\n"]  # all have asked by now
    outputs = [answer(process) for process in winners]
    for process in processes:
        process.kill()
        process.communicate()
    assert outputs == ["mine\n"]


def test_the_start_time_tells_the_living_from_the_dead():
    assert process_start(os.getpid()) is not None
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert process_start(child.pid) is None
