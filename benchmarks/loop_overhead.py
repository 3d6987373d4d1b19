"""The training loop's own time on the host: python -m benchmarks.loop_overhead [step_seconds=0.5 json=FILE]

`train` with all that a real run has (loader, journal, verdict on bad steps, metrics), over a store on this machine, but
with a loss that sleeps: the processor time of the main thread is the loop's, and what a GPU would do beside it (sums of
losses) is counted too; clipping and the update of a tiny net stand apart. Of the wall clock a busy machine takes its
share. Counting the targets of a large batch, which grows with it and not with the share of a rank, is measured
alone.
"""

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lvm.training.loop as loop
from benchmarks.alone import run_alone
from benchmarks.data import Options as StoreOptions
from benchmarks.data import make_plan, write_store
from lvm.model import LVM, LVMConfig
from lvm.runtime.machine import git_commit, machine_description
from lvm.runtime.metrics import read_metrics
from lvm.training import OptimConfig, RunOptions, TrainerConfig

MODEL = LVMConfig(num_codes=64, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2)
GOAL = 0.01  # of a step


@dataclass(frozen=True)
class Options:
    pictures: int = 20_000  # of each of two channels in the store
    seq_len: int = 4096
    batch_size: int = 16  # windows a step on this rank
    micro_batch_size: int = 8
    global_batch: int = 512  # windows of which the targets are counted, measured alone
    steps: int = 40
    step_seconds: float = 0.5  # that the loss sleeps
    json: str = ""  # file for the result


class Sleeping:
    """A loss that takes so long and computes nothing; it hands out gradients that were there before."""

    def __init__(self, model: LVM, seconds: float):
        self.seconds, self.began, self.own = seconds, list[float](), 0.0
        self.gradients = [(parameter, torch.full_like(parameter, 1e-3)) for parameter in model.parameters()]
        self.leaf = torch.ones((), requires_grad=True)

    def __call__(self, tokens: Tensor, role: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        self.began.append(time.thread_time() - self.own)
        start = time.thread_time()
        time.sleep(self.seconds)
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        nll = torch.zeros(tokens.shape[0], tokens.shape[1] - 1)
        self.own += time.thread_time() - start
        return self.leaf * 1.0, nll


def timed(name: str) -> list[float]:
    """Have the loop's function of that name write down how much processor time each call took."""
    function, seconds = getattr(loop, name), list[float]()

    def call(*arguments: Any) -> Any:
        start = time.thread_time()
        result = function(*arguments)
        seconds.append(time.thread_time() - start)
        return result

    setattr(loop, name, call)
    return seconds


def run(options: Options) -> dict[str, Any]:
    micro_batches = options.batch_size // options.micro_batch_size
    losses: list[Sleeping] = []

    def make_loss(model: LVM, *_: Any, **__: Any) -> Sleeping:
        losses.append(Sleeping(model, options.step_seconds / micro_batches))
        return losses[0]

    loop.loss_on_mesh = make_loss
    updating = [timed("clip_gradients"), timed("update_unless")]
    trainer = TrainerConfig(
        options.steps,
        options.batch_size,
        options.micro_batch_size,
        compile=False,
        precision="fp32",
        log_every_steps=10,
        save_every_steps=0,
        spike_factor=10.0,
        on_bad_step="skip",
        num_threads=1,
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store = StoreOptions(pictures=options.pictures, num_codes=64, seq_len=options.seq_len)
        plan = make_plan(write_store(folder / "store", store), store)
        model = LVM(MODEL)
        loop.train(trainer, OptimConfig(warmup_steps=0), plan, model, RunOptions(folder / "run"))
        records = read_metrics(folder / "run" / "metrics")
        start = time.thread_time()
        for first in range(0, 10 * options.global_batch, options.global_batch):
            loop.num_targets(plan, first, options.global_batch)
        counting = (time.thread_time() - start) / 10
    at_step = losses[0].began[::micro_batches][1:]  # the first step pays for what is made once
    beside = (at_step[-1] - at_step[0]) / (len(at_step) - 1)
    update = sum(sum(seconds[1:]) / len(seconds[1:]) for seconds in updating)
    own = beside - update
    whole = own + counting
    found = {
        "what": "processor time of the main thread beside the loss, which sleeps",
        "loop_seconds": own,
        "clip_and_update_seconds": update,
        "counting_targets_seconds": counting,
        "share_of_step": whole / (options.step_seconds + whole),
        "goal": GOAL,
        "data_wait": records[-1]["data_wait"],
    }
    print(f"{'step':<44}{options.step_seconds * 1e3:9.2f} ms")
    print(f"{'loop, ' + str(micro_batches) + ' micro-batches':<44}{own * 1e3:9.2f} ms")
    print(f"{'clipping and the update, of a tiny net':<44}{update * 1e3:9.2f} ms")
    print(f"{'counting the targets of ' + str(options.global_batch) + ' windows':<44}{counting * 1e3:9.2f} ms")
    print(f"{'loop and counting, of the step (goal 1%)':<44}{found['share_of_step']:9.2%}")
    machine = {"machine": machine_description(), "commit": git_commit()}
    return {"benchmark": "loop_overhead", "result": found, "options": asdict(options), **machine}


if __name__ == "__main__":
    run_alone(Options, run)
