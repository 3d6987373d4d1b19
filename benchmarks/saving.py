"""How long a checkpoint stops the training: python -m benchmarks.saving [model=ladder_25m json=FILE]

`train` as it is, over a store of random codes, with a checkpoint every few steps that is written beside the training.
Blocked is the time in which the main thread collects the state, copies the tensors, and waits for the save before; the
rest of a save runs beside the steps, which take their share longer on a machine whose cores all train. The physical
limit of the copy stands beside it: 12 bytes a parameter (weights and two moments) at a copy's bandwidth.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

import lvm.training.loop as loop
from benchmarks.alone import run_alone
from benchmarks.data import plan_for
from lvm.commands.bench import copy_bandwidth, model_config
from lvm.model import LVM
from lvm.runtime.checkpoint import CheckpointWriter
from lvm.runtime.machine import git_commit, machine_description
from lvm.training import OptimConfig, RunOptions, TrainerConfig
from lvm.training.journal import Journal


@dataclass(frozen=True)
class Options:
    model: str = "ladder_25m"
    seq_len: int = 1024
    batch_size: int = 4  # windows a step
    steps: int = 24
    save_every_steps: int = 6
    device: str = "cpu"
    json: str = ""  # file for the result


class Watched(CheckpointWriter):
    """Notes from when to when each save ran beside the training."""

    beside: ClassVar[list[list[float]]] = []

    def save(self, *arguments: Any, **options: Any) -> None:
        self.beside.append([time.perf_counter()])  # the loop has waited for the save before
        super().save(*arguments, **options)

    def _run(self, *arguments: Any) -> None:
        super()._run(*arguments)
        self.beside[-1].append(time.perf_counter())


class Clocked(Journal):
    """Notes when each step ended, and for how long the loop was stopped after it."""

    ends: ClassVar[list[float]] = []
    stopped: ClassVar[list[float]] = []

    def advance(self) -> None:
        super().advance()
        self.ends.append(time.perf_counter())

    @contextmanager
    def paused(self) -> Iterator[None]:
        start = time.perf_counter()
        with super().paused():
            yield
        self.stopped.append(time.perf_counter() - start)


def run(options: Options) -> dict[str, Any]:
    config, device = model_config(options.model), torch.device(options.device)
    loop.Journal, loop.CheckpointWriter = Clocked, Watched  # type: ignore[misc]
    trainer = TrainerConfig(options.steps, options.batch_size, save_every_steps=options.save_every_steps)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plan = plan_for(config, folder / "store", options.seq_len)
        model = LVM(config)
        loop.train(trainer, OptimConfig(warmup_steps=0), plan, model, RunOptions(folder / "run"), device)
    # The last save ends the run, beside nothing; the first steps compile.
    blocked = [
        Clocked.stopped[at - 1] for at in range(options.save_every_steps, options.steps, options.save_every_steps)
    ]
    saves = Watched.beside[: len(blocked)]
    beside, alone = list[float](), list[float]()
    for number in range(2, options.steps):
        start, end = Clocked.ends[number - 1], Clocked.ends[number]
        busy = any(begun < end and start < done for begun, done in saves)
        (beside if busy else alone).append(end - start - Clocked.stopped[number - 1])
    step = statistics.median(alone or beside)
    written = 12 * config.num_params
    found = {
        "blocked_seconds": blocked,
        "writing_seconds": [done - begun for begun, done in saves],
        "step_seconds": step,
        "step_seconds_beside_a_save": statistics.median(beside) if beside else None,
        "blocked_share_of_a_step": max(blocked) / step,
        "bytes": written,
        "copy_limit_seconds": 2 * written / copy_bandwidth(options.device),
    }
    slower = found["step_seconds_beside_a_save"]
    print(f"a step {step:.3f} s" + (f"; while a checkpoint is written {slower:.3f} s" if slower else ""))
    seconds = lambda values: ", ".join(f"{value:.3f}" for value in values)
    print(f"{written / 1e6:,.0f} MB: blocked for {seconds(blocked)} s, {max(blocked) / step:.0%} of a step at most")
    print(f"written in {seconds(found['writing_seconds'])} s; a copy takes {found['copy_limit_seconds']:.3f} s")
    machine = {"machine": machine_description(), "commit": git_commit()}
    return {"benchmark": "saving", "result": found, "options": asdict(options), **machine}


if __name__ == "__main__":
    run_alone(Options, run)
