"""A process of a run in which one rank is stopped, or stuck, or slow, at a place.

RANK=1 WORLD_SIZE=2 python hung_run.py INIT FOLDER '{"kind": "stop", "place": "backward"}' '{"max_steps": 50}'

INIT is a method of torch.distributed. FOLDER/../fault appears when the fault begins.
"""

import json
import os
import re
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from fake_plan import FakePlan, run

import lvm.runtime.checkpoint as checkpoint
import lvm.training.loop as loop
from lvm.runtime import exit_with_one_line


class Fault:
    """What befalls rank `rank` at the `call`-th time that it comes to `place`."""

    def __init__(self, mark: Path, kind: str, place: str, rank: int = 1, call: int = 3, seconds: float = 5.0):
        self.mark, self.kind, self.place, self.call, self.seconds = mark, kind, place, call, seconds
        self.calls = 0 if rank == int(os.environ["RANK"]) else -(10**9)

    def at(self, place: str) -> None:
        self.calls += place == self.place
        if place != self.place or self.calls != self.call:
            return
        self.mark.touch()
        if self.kind == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
            if threading.current_thread() is threading.main_thread():
                time.sleep(0.5)  # a process of several threads is stopped a moment later: this one gets no further
        elif self.kind == "hang":
            time.sleep(1000)
        elif self.kind == "file system":
            (lease := self.mark.parent / "run" / "lease.json").unlink()
            os.mkfifo(lease)  # who reads it waits for ever
            time.sleep(1000)
        elif self.kind == "hold the lock of Python":
            re.match(r"(a+)+$", "a" * 60 + "b")
        elif self.kind == "slow":
            time.sleep(self.seconds)


class FaultyPlan(FakePlan):
    def __init__(self, fault: Fault):
        super().__init__()
        self.fault = fault

    def windows(self, i, n):
        self.fault.at("loader")
        return super().windows(i, n)


def inject(fault: Fault) -> None:
    make_loss, describe = loop.loss_on_mesh, checkpoint._describe

    def make(*arguments):
        loss_of = make_loss(*arguments)

        def loss(*tensors):
            value, nll = loss_of(*tensors)
            if value.requires_grad:
                value.register_hook(lambda gradient: fault.at("backward"))
            else:
                fault.at("validation")
            return value, nll

        return loss

    def described(file):
        fault.at("save")
        return describe(file)

    loop.loss_on_mesh, checkpoint._describe = make, described


def main() -> None:
    init, folder, fault, changes = sys.argv[1:]
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if world_size > 1:
        dist.init_process_group("gloo", init, rank=rank, world_size=world_size, timeout=timedelta(seconds=120))
    torch.set_num_threads(1)
    faults = Fault(Path(folder).parent / "fault", **json.loads(fault))
    inject(faults)
    run(Path(folder), FaultyPlan(faults), **json.loads(changes))


if __name__ == "__main__":
    exit_with_one_line(main)
