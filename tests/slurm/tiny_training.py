"""A training of seconds on the CPU for the tests of its jobs, and what `lvm` says of it."""

import json
import subprocess
import sys
import time
from pathlib import Path

from tiny_runs import tiny_run, tiny_tokenizer

from lvm.commands import runs
from lvm.runtime.metrics import read_metrics

ROOT = Path(__file__).parents[2]
LVM = [sys.executable, "-m", "lvm"]


def tiny_overrides(folder):
    """The tokenizer is written into `folder`."""
    trainer = ["trainer.accelerator=cpu", "trainer.log_every_steps=1", "data.held_out_per_mille=150"]
    return [*tiny_run(tiny_tokenizer(folder / "tokenizer")), *trainer]


def lvm(*arguments, code=0):
    """Output of `lvm ARGUMENTS`."""
    done = subprocess.run([*LVM, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def listed(folder, capsys):
    """What `lvm runs --json` says, by name."""
    capsys.readouterr()
    assert runs.main([str(folder), "--json"]) == 0
    return {run["name"]: run for run in json.loads(capsys.readouterr().out)}


def wait_until(condition, what, seconds=600):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.2)
    return value


def wait_for_step(run, step):
    wait_until(lambda: any(r["step"] >= step for r in read_metrics(run / "metrics")), f"{run} never came to {step}")
