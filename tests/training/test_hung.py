"""A rank that is stopped or stuck is named with phase and stack, and all end; an orphan of a requeue writes nothing."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_plan import FakePlan, run

from lvm.runtime.metrics import read_metrics
from lvm.runtime.peer_watch import Beat, Stay, holding_up, watched_by
from lvm.runtime.whereabouts import Whereabouts, waits_for_others

SETTINGS = {
    "max_steps": 400,
    "log_every_steps": 1,
    "save_every_steps": 4,
    "validate_every_steps": 2,
    "validation_windows": 4,
    "peer_timeout_seconds": 3.0,
    "hung_seconds": 4.0,
}


@contextlib.contextmanager
def ranks(folder: Path, fault: dict, world_size: int = 2, environment: dict | None = None, **changes):
    """Processes of a run, of which none lives on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        init = f"tcp://127.0.0.1:{free.getsockname()[1]}"  # so that the store lives in rank 0, as under Slurm
    script = str(Path(__file__).with_name("hung_run.py"))
    command = [sys.executable, script, init, str(folder / "run"), json.dumps(fault), json.dumps(SETTINGS | changes)]
    environment = os.environ | (environment or {})
    environment |= {"WORLD_SIZE": str(world_size), "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "1"}
    processes = [
        subprocess.Popen(
            command, env=environment | {"RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(world_size)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def wait_for(path: Path, processes: list, seconds: float = 200) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        ended = [process for process in processes if process.poll() is not None]
        assert not ended, ended[0].communicate()[1]
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.02)


# kind, place, call; what is said: state, phase, part of the stacks
FAULTS = [
    ("stop", "backward", 3, "is stopped", "forward and backward", "in <lambda>"),
    ("stop", "validation", 2, "is stopped", "validation", "validation.py"),
    ("stop", "save", 2, "is stopped", "a save under way", r"checkpoint\.py.* in _"),  # that thread has gone on a bit
    ("hang", "loader", 5, "hangs", "loading data", "_prefetch"),
    # the rest is slow
    ("hang", "save", 2, "hangs", "waiting for a save, a save under way", "described"),
    ("file system", "save", 2, "hangs", "a save under way", "_read"),  # the lease cannot be read either
    ("hang", "validation", 2, "hangs", "validation", "validation.py"),
    ("hang", "backward", 3, "hangs", "forward and backward", r"in backward\b"),
    ("hold the lock of Python", "backward", 3, "hangs", "forward and backward", r"in backward\b"),
]


def cases():
    for number, fault in enumerate(FAULTS):
        for rank in (0,) if fault[0] == "file system" else (1, 0):  # of a run's ranks 0 alone looks at the lease
            slow = [] if rank == 1 and number < 4 else [pytest.mark.slow]
            yield pytest.param(fault, rank, marks=slow, id=f"{fault[0]}-{fault[1]}-{rank}".replace(" ", "-"))


@pytest.mark.parametrize(("fault", "rank"), cases())
def test_a_rank_that_does_not_go_on_is_named_with_phase_and_stack_and_all_end(tmp_path, fault, rank):
    kind, place, call, state, phase, function = fault
    with ranks(tmp_path, {"kind": kind, "place": place, "rank": rank, "call": call}) as processes:
        wait_for(tmp_path / "fault", processes)
        began, bad, good = time.monotonic(), processes[rank], processes[1 - rank]
        _, errors = good.communicate(timeout=90)
        seconds = time.monotonic() - began
        assert good.returncode == 1 and seconds < 30, errors
        with contextlib.suppress(subprocess.TimeoutExpired):
            _, others = bad.communicate(timeout=15)
        assert bad.returncode in (1, -signal.SIGKILL)
    print(f"{kind} in {place} on rank {rank}: {seconds:.1f} s")
    output = errors + others
    (report,) = re.findall(r"^rank .*its stacks:\n(?:Thread|Current thread|  File).*(?:\n.*)*", output, re.MULTILINE)
    assert report.startswith(f"rank {rank} (pid {bad.pid} on {socket.gethostname()}) {state} in ")
    assert phase in report.splitlines()[0] and re.search(r"after step \d+", report)
    assert "hung_run.py" in report and re.search(function, report)
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert f"rank {rank} (pid {bad.pid} on " in line and phase in line and "continues the run" in line


@pytest.mark.slow
def test_a_slow_rank_and_a_suspended_job_are_not_taken_for_hung(tmp_path):
    slow = {"kind": "slow", "place": "backward", "call": 1, "seconds": 6.0}  # longer than hung_seconds: it compiles
    with ranks(tmp_path, slow, max_steps=40, hung_seconds=3.0) as processes:
        wait_for(tmp_path / "run" / "checkpoints" / "step-00000008", processes)
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        time.sleep(9)  # three times what either measure allows
        for process in processes:
            process.send_signal(signal.SIGCONT)
            time.sleep(0.5)
        for process in processes:
            _, errors = process.communicate(timeout=150)
            assert process.returncode == 0, errors
    assert read_metrics(tmp_path / "run" / "metrics")[-1]["step"] == 40


def content(folder: Path) -> dict:
    """Bytes of all files, and when each file and folder last changed."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("world_size", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("place", [pytest.param("backward", marks=pytest.mark.slow), "save", "validation"])
def test_an_orphan_that_is_continued_after_the_requeue_writes_nothing_and_ends(
    tmp_path, monkeypatch, place, world_size
):
    fault = {"kind": "stop", "place": place, "rank": world_size - 1, "call": 2}
    patient = {"peer_timeout_seconds": 45.0, "hung_seconds": 600.0}  # nobody of the first incarnation finds it
    job = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "0"}
    with ranks(tmp_path, fault, world_size, job, **patient) as processes:
        wait_for(tmp_path / "fault", processes)
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        folder = tmp_path / "run"
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        _, result = run(folder, FakePlan(), **(SETTINGS | {"max_steps": 12}))
        assert result.state.step == 12 and (folder / "result.json").exists()
        before = content(folder)
        for process in processes:
            process.send_signal(signal.SIGCONT)
        for process in processes:
            _, errors = process.communicate(timeout=90)
            assert process.returncode in (1, 2), errors
            assert "taken over by pid" in errors or "is gone" in errors
    assert content(folder) == before


def test_who_is_waited_for():
    assert holding_up({0: Beat(1, 10, True), 1: Beat(2, 9, True)}) == [1]
    assert holding_up({0: Beat(1, 10, True), 1: Beat(2, 9, False)}) == []  # slow, but within its own measure
    assert holding_up({0: Beat(1, 9, True), 1: Beat(2, 9, False)}) == []
    stuck = 'Thread MainThread (most recent call first):\n  File "/a/threading.py", line 1 in join\n'
    wrote = 'Thread save-step-4 (most recent call first):\n  File "/a/torch/distributed/checkpoint/x.py", line 1 in w\n'
    waits = 'Thread save-step-4 (most recent call first):\n  File "/a/torch/distributed/c10d.py", line 1 in gather\n'
    assert not waits_for_others(stuck + wrote) and waits_for_others(stuck + waits)


def test_every_rank_is_watched_by_a_neighbour_and_every_host_by_another():
    hosts = ["a", "a", "b", "b", "c"]
    watched = [watched_by(rank, hosts, 40) for rank in range(5)]
    assert watched == [{1: 40, 2: 44}, {0: 40}, {3: 40, 4: 40}, {2: 40}, {0: 44}]
    assert watched_by(0, ["a"], 40) == {}


def test_what_is_done_for_the_first_time_may_take_longer_and_later_as_long_as_it_took():
    where, stay = Whereabouts(), Stay(10.0)

    def late_after(seconds):
        stay.look(where, 0.0)
        for _ in range(int(seconds)):
            stay.look(where, 1.0)
        return stay.overdue

    where.enter("validation")
    assert not late_after(60) and late_after(1)
    where.enter("forward and backward")
    where.enter("validation")
    assert not late_after(3 * 61) and late_after(1)
    where.enter("start-up")
    assert not late_after(10) and late_after(1)
