"""On two hosts, each survivor names a rank that was really lost, and none names another survivor."""

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
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from fake_plan import TRAINER

from lvm.runtime.distributed import Distributed
from lvm.runtime.peer_watch import BEATS_TO_READ, INTERVAL, Word, watched_by

# Ranks 0 and 1 are of host-a, 2 and 3 of host-b; SIGALRM is an error of the rank's own.
RANK = """
import os, signal, socket
host = "host-a" if int(os.environ["RANK"]) < 2 else "host-b"
socket.gethostname = lambda: host
def fail(*_):
    raise ZeroDivisionError("of its own")
signal.signal(signal.SIGALRM, fail)
from lvm.runtime import exit_with_one_line
import hung_run
exit_with_one_line(hung_run.main)
"""
SETTINGS = {"max_steps": 100_000, "batch_size": 4, "hung_seconds": 600.0}


@contextlib.contextmanager
def four_ranks(folder: Path, peer_timeout_seconds: float):
    """In their first steps; none lives on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        init = f"tcp://127.0.0.1:{free.getsockname()[1]}"  # so that the store lives in rank 0, as under Slurm
    mark = {"kind": "none", "place": "backward", "rank": 0, "call": 3}
    settings = SETTINGS | {"peer_timeout_seconds": peer_timeout_seconds}
    command = [sys.executable, "-c", RANK, init, str(folder / "run"), json.dumps(mark), json.dumps(settings)]
    environment = os.environ | {"WORLD_SIZE": "4", "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    processes = []
    with contextlib.ExitStack() as files:
        for rank in range(4):
            errors = files.enter_context((folder / f"errors-{rank}").open("w"))
            processes.append(subprocess.Popen(command, env=environment | {"RANK": str(rank)}, stderr=errors))
        try:
            until = time.monotonic() + 100
            while not (folder / "fault").exists():
                assert time.monotonic() < until and all(process.poll() is None for process in processes)
                time.sleep(0.05)
            yield processes
        finally:
            for process in processes:
                process.kill()
                process.wait()


SILENT = pytest.param(signal.SIGSTOP, [2, 3], 4.0, id="other-host-silent", marks=pytest.mark.slow)
HOLDER = pytest.param(signal.SIGKILL, [0, 1], 4.0, id="host-of-the-store-killed", marks=pytest.mark.slow)
DEFAULT = pytest.param(signal.SIGKILL, [2, 3], 45.0, id="other-host-killed-by-default", marks=pytest.mark.slow)
CASES = [
    pytest.param(signal.SIGKILL, [3], 45.0, id="rank-of-the-other-host-killed"),
    pytest.param(signal.SIGKILL, [2, 3], 4.0, id="other-host-killed", marks=pytest.mark.slow),
    pytest.param(signal.SIGALRM, [3], 4.0, id="rank-of-the-other-host-failed", marks=pytest.mark.slow),
    *(SILENT, HOLDER, DEFAULT),
]


@pytest.mark.parametrize(("number", "lost", "timeout"), CASES)
def test_each_survivor_names_a_lost_rank_and_no_survivor(tmp_path, number, lost, timeout):
    with four_ranks(tmp_path, timeout) as processes:
        time.sleep(timeout / 5 if timeout < 45 else INTERVAL)  # every rank has beaten
        for rank in lost:
            processes[rank].send_signal(number)
        began = time.monotonic()
        survivors = [rank for rank in range(4) if rank not in lost]
        assert [processes[rank].wait(timeout=60) for rank in survivors] == [1] * len(survivors)
        print(f"{time.monotonic() - began:.1f} s")
    for rank in survivors:
        (line,) = re.findall(r"^error: .*", (tmp_path / f"errors-{rank}").read_text(), re.MULTILINE)
        named = {int(other) for other in re.findall(r"rank (\d) \(pid", line)}
        assert named and named <= set(lost), line
        assert f"so rank {rank} ends too" in line and "continues the run" in line
        assert number != signal.SIGALRM or "ended with ZeroDivisionError: of its own" in line


def words(world_size: int = 3) -> list[Word]:
    store = dist.HashStore()
    named = lambda rank: f"rank {rank}"
    return [Word(store, SimpleNamespace(rank=rank, world_size=world_size, named=named)) for rank in range(world_size)]


def test_the_first_word_stands_and_all_leave_but_those_it_names():
    first, second, _ = words()
    assert first.verdict() is None
    assert second.propose("rank 2 is gone", [2]) == first.propose("rank 1 is gone", [1]) == "rank 2 is gone"
    assert first.verdict() == "rank 2 is gone"
    first.leaves()
    assert first.left(0) and not first.left(1) and not first.all_leave()
    second.leaves()
    assert first.all_leave()


def test_a_rank_that_failed_by_itself_is_no_lost_one_and_tells_its_error():
    first, second, third = words()
    third.fails(ZeroDivisionError("of\nits own"))
    second.fails(ValueError("later"))
    assert first.failure() == ("rank 2 ended with ZeroDivisionError: of its own", [2])
    assert first.left(2) and first.verdict() is None


def test_a_process_that_was_never_in_sight_is_not_seen_to_end(monkeypatch):
    """A container may share its host's name but not its pids."""
    host = socket.gethostname()
    monkeypatch.setattr(Distributed, "gather", lambda self, value: [value, (host, 2**22 + 1, "7")])
    ranks = Distributed()
    assert ranks.ended() == [] and ranks.sees(0) and not ranks.sees(1)


def test_by_default_all_end_within_a_minute_of_the_moment_that_a_host_falls_silent():
    limit = max(watched_by(0, ["a", "a", "b", "b"], TRAINER.peer_timeout_seconds).values())
    heard_late, noticed_late = INTERVAL, INTERVAL
    assert heard_late + limit + noticed_late + BEATS_TO_READ * INTERVAL < 60
