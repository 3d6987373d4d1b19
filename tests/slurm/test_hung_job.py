"""A job of which one rank is stopped is requeued by the rank that found it, and finishes."""

import json
import os
import re
import signal
import sys

import pytest
from tiny_training import ROOT, tiny_overrides, wait_for_step

from lvm.runtime.lease import process_start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_job_with_a_stopped_rank_names_it_is_requeued_and_finishes(cluster, tmp_path):
    run, script, log = tmp_path / "run", tmp_path / "job.sh", tmp_path / "log"
    trainer = ["num_nodes=2", "max_steps=120", "save_every_steps=10", "peer_timeout_seconds=10"]
    options = [f"run_dir={run}", *tiny_overrides(tmp_path), *(f"trainer.{option}" for option in trainer)]
    script.write_text(
        f"#!/bin/bash\nsrun --kill-on-bad-exit=0 --wait=60 {sys.executable} {ROOT}/train.py {' '.join(options)}\n"
    )
    job = cluster.submit("--requeue", "--open-mode=append", f"--output={log}", "--nodes=2", "--ntasks=2", script)
    wait_for_step(run, 12)
    (stopped,) = [pid for pid in ranks_of(run) if pid != json.loads((run / "lease.json").read_text())["pid"]]
    start = process_start(stopped)
    os.kill(stopped, signal.SIGSTOP)
    assert cluster.wait(job, "COMPLETED", "FAILED", "CANCELLED", seconds=600) == "COMPLETED", log.read_text()
    said = log.read_text()
    assert re.search(rf"^rank 1 \(pid {stopped} on .*\) is stopped in .* after step \d+: .*; its stacks:\n", said, re.M)
    assert said.count(f"job {job} is requeued") == 1 and int(cluster.field(job, "Restarts")) == 1
    assert process_start(stopped) != start and json.loads((run / "result.json").read_text())["finished"]


def ranks_of(run) -> list[int]:
    """Pids of the processes that train in `run`; srun has the same words in its command line."""
    found = []
    for folder in (path for path in os.listdir("/proc") if path.isdigit()):
        try:
            with open(f"/proc/{folder}/cmdline", "rb") as file:
                words = file.read().decode().split("\0")
        except OSError:
            continue
        if f"run_dir={run}" in words and "python" in os.path.basename(words[0]):
            found.append(int(folder))
    return found
