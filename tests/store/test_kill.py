"""`lvm tokenize` killed at any moment, as users and schedulers do it, resumes to the bytes of an undisturbed run."""

import random
import signal
import subprocess
import sys
import time

import pytest
from store_content import content

from lvm.runtime import UserError
from lvm.store import TokenStore, verify

KILLS = 20


@pytest.fixture
def start(tokenizer_folder):
    def start(store, *options):
        world = ["num_scenes=60", "num_clips=4", "num_frames=4"]
        command = [sys.executable, "-m", "lvm", "tokenize", "world", str(store), *world]
        command += ["--tokenizer", str(tokenizer_folder), "--workers", "1", "--shard-size", "2", *options]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    return start


def finish(job):
    error = job.communicate()[1]
    assert job.returncode == 0, error


def wait_for(condition):
    while not condition():
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twenty_kills_and_two_tasks_at_once_change_no_byte(start, tmp_path):
    whole = tmp_path / "whole"
    job = start(whole)
    wait_for(lambda: (whole / "plan.json").exists() or job.poll() is not None)
    begun = time.time()
    finish(job)
    seconds = time.time() - begun
    expected = content(whole)

    killed, random_moment, unfinished = tmp_path / "killed", random.Random(0), 0
    for _ in range(KILLS):
        lease = killed / ".task-0-of-1.json"
        before = lease.read_bytes() if lease.exists() else b""
        job = start(killed)
        # Most of a run's time goes into imports, where there is nothing to lose: count from when it is at work.
        wait_for(lambda: (lease.exists() and lease.read_bytes() != before) or job.poll() is not None)  # noqa: B023
        time.sleep(random_moment.uniform(0, 2 * seconds / KILLS))
        job.send_signal(signal.SIGKILL)
        job.communicate()
        try:
            assert content(TokenStore(killed).path).keys() <= expected.keys()
        except UserError as error:
            assert "incomplete" in str(error) or not (killed / "plan.json").exists()
            unfinished += 1
    assert unfinished >= KILLS // 4  # the moments were during the work, not after it
    finish(start(killed))
    assert content(killed) == expected
    verify(killed)

    tasks = [start(tmp_path / "tasks", "--num-shards", "2", "--shard", str(shard)) for shard in range(2)]
    for task in tasks:
        finish(task)
    assert content(tmp_path / "tasks") == expected
    assert TokenStore(tmp_path / "tasks").fingerprint == TokenStore(whole).fingerprint
