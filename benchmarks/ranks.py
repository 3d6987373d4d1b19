"""Two ranks against one with as many threads: python -m benchmarks.ranks [model=ladder_3m ranks=2 json=FILE]

The same optimiser step, over the same windows: `ranks` processes of one thread, each with its part, sharded by FSDP2
over gloo; and one process with so many threads that makes as many micro-batches. Both stay alive and take turns, one
waiting while the other works. The bytes that sharding sends stand beside.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch
import torch.distributed as dist

from benchmarks.alone import free_port, run_alone
from lvm.commands.bench import measured, model_config, result, table, take_turns
from lvm.model import LVM
from lvm.runtime import UserError
from lvm.runtime.machine import compile_problem, num_cores
from lvm.training.loop import compute_dtype
from lvm.training.optim import OptimConfig, clip_gradients, make_optimizer
from lvm.training.parallel import ParallelConfig, loss_on_mesh, make_mesh, reduce_gradients_on


@dataclass(frozen=True)
class Options:
    model: str = "ladder_3m"  # demo, or a name in configs/model
    seq_len: int = 1024
    windows: int = 8  # of a rank and step, one micro-batch
    ranks: int = 2
    steps: int = 2  # in a round
    rounds: int = 3
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: bool = True
    json: str = ""  # file for the result


def work(options: Options, rank: int, ranks: int, threads: int, port: int, pipe: Connection) -> None:
    """One process: for each number that comes, so many steps; the seconds they took go back."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(ranks))
    torch.set_num_threads(threads)
    mesh = None
    if ranks > 1:
        dist.init_process_group("gloo")
        mesh = make_mesh(ParallelConfig(), ranks, "cpu")
    dtype = compute_dtype(options.precision, torch.device("cpu"))
    config = model_config(options.model)
    model = LVM(config).train()
    model.attention_implementation = "auto"  # as the trainer's default
    compile = options.compile and compile_problem() is None
    loss_of = loss_on_mesh(model, torch.device("cpu"), mesh, dtype, False, compile, "all", ParallelConfig())
    optim = OptimConfig()
    optimizer = make_optimizer(model, optim)
    windows = options.windows * options.ranks
    tokens = torch.randint(config.num_codes, (windows, options.seq_len + 1), generator=torch.Generator().manual_seed(0))
    batches = tokens.split(options.windows)[rank::ranks]
    targets = torch.tensor(float(windows * options.seq_len))

    def step() -> float:
        total = 0.0
        for number, batch in enumerate(batches):
            reduce_gradients_on(model, number == len(batches) - 1)
            loss, _ = loss_of(batch, torch.zeros_like(batch, dtype=torch.int8), targets)
            loss.backward()
            total += float(loss.detach())
        clip_gradients(model.parameters(), optim.clip)
        optimizer.step()
        optimizer.zero_grad()
        return total

    first = step()
    pipe.send(first)
    while (steps := pipe.recv()) is not None:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        pipe.send(time.perf_counter() - start)
    if ranks > 1:
        dist.destroy_process_group()


class Team:
    """The processes of one contestant."""

    def __init__(self, options: Options, ranks: int, threads: int):
        context, port = get_context("spawn"), free_port()
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(ranks):
            mine, its = context.Pipe()
            process = context.Process(target=work, args=(options, rank, ranks, threads, port, its), daemon=True)
            process.start()
            its.close()
            self._pipes.append(mine)
            self._processes.append(process)
        # Each rank's loss is over the targets of all, times their number: as FSDP, which averages, needs it.
        self.first_loss = sum(self._answers()) / ranks

    def _answers(self) -> Sequence[float]:
        try:
            return [pipe.recv() for pipe in self._pipes]
        except EOFError:
            raise UserError("a rank ended before it was done; see its error above") from None

    def seconds(self, steps: int) -> float:
        """Of so many steps, by the slowest rank."""
        for pipe in self._pipes:
            pipe.send(steps)
        return max(self._answers())

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join()


def run(options: Options) -> dict[str, Any]:
    if options.ranks < 2 or options.ranks > num_cores():
        raise UserError(f"ranks is {options.ranks}; use 2 to the number of cores, {num_cores()}")
    many, one = Team(options, options.ranks, 1), Team(options, 1, options.ranks)
    contestants = {"ours": many, "alternative": one}
    seconds = take_turns(
        {name: lambda team=team: team.seconds(options.steps) for name, team in contestants.items()}, options.rounds
    )
    for team in contestants.values():
        team.close()
    amount, unit = options.steps * options.windows * options.ranks * options.seq_len, "tokens/s"
    config = model_config(options.model)
    blocks = config.num_layers * config.layer_params
    itemsize = compute_dtype(options.precision, torch.device("cpu")).itemsize
    # Weights of blocks gathered forwards and backwards, those of the root once; gradients reduced in float32.
    gathered = (blocks + config.num_params) * itemsize
    moved = (gathered + 4 * config.num_params) * (options.ranks - 1) / options.ranks
    found = result(
        "ranks",
        options,
        measured(f"{options.ranks} ranks of one thread", amount, unit, seconds["ours"], first_loss=many.first_loss),
        measured(f"one rank, {options.ranks} threads", amount, unit, seconds["alternative"], first_loss=one.first_loss),
        {"what": "one rank with as many threads", "rate": amount / min(seconds["alternative"]), "unit": unit},
        tokens_per_rank_and_step=options.windows * options.seq_len,
        bytes_per_rank_and_step=moved,
    )
    print(table(found))
    print(f"  first losses {many.first_loss:.5f} and {one.first_loss:.5f}; {moved / 1e6:.1f} MB sent a rank and step")
    return found


if __name__ == "__main__":
    run_alone(Options, run)
