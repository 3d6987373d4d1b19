"""Five SIGKILLs, each in another part of a run's life: `benchmarks.chaos` kills a hundred times."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_five_times_comes_to_the_same_bits(tmp_path):
    options = ["--kills", "5", "--json", str(tmp_path / "found.json"), "--folder", str(tmp_path / "runs")]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.chaos", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())["result"]
    assert (found["kills"], found["recovered"], found["failed_starts"]) == (5, 5, [])
    assert found["weights_and_losses_identical"] and found["left_behind"] == []
    assert found["survivors"]["stuck"] == 0 and len(found["by_phase"]) > 3  # three phases and the sum
    assert found["by_phase"]["all"]["steps_lost"]["max"] <= 13  # two checkpoints' distance, and a step


def test_a_kill_count_that_cannot_be_is_one_line():
    command = [sys.executable, "-m", "benchmarks.chaos", "--kills", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith("error: --kills 0 --ranks 2: at least 1 kill")


BEFORE_THEY_MET = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from datetime import timedelta
from pathlib import Path
import torch.distributed as dist
import lvm.training.loop as loop
from fake_plan import run
from lvm.runtime import exit_with_one_line

rank, made = int(os.environ["RANK"]), loop.Distributed
dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(minutes=5),
                        store=dist.FileStore(sys.argv[2] + "/store", 2))
def killed():
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return made()
loop.Distributed = killed
exit_with_one_line(lambda: run(Path(sys.argv[2]) / "run", start_timeout_seconds=3.0) and 0)
"""


def test_a_rank_killed_where_nobody_watches_yet_is_not_waited_for(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", BEFORE_THEY_MET, str(Path(__file__).parent), str(tmp_path)]
    environment = os.environ | {"LOCAL_WORLD_SIZE": "1"}
    ranks = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    _, errors = ranks[0].communicate(timeout=200)
    assert ranks[1].wait() == -9 and ranks[0].returncode == 1, errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "not all ranks were there after 3 s" in line
    assert "Traceback" not in errors
