"""Windows by a thread or by processes: python -m benchmarks.loader [seconds=10 pace=1e6 json=FILE]

`WindowLoader` with 0 (the thread), 1, 2, ... workers over a store on this machine: tokens/s as fast as it goes, and how
long a training loop takes for its steps beside what it does itself. That is `pace` tokens/s of either kind: asleep (a
GPU works) or in Python, whose lock the thread needs too.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.alone import run_alone
from benchmarks.data import Options as StoreOptions
from benchmarks.data import make_plan, write_store
from lvm.data import TokenPlan, WindowLoader
from lvm.runtime.machine import git_commit, machine_description


@dataclass(frozen=True)
class Options:
    pictures: int = 100_000  # of each of two channels in the store
    seq_len: int = 4096
    batch_size: int = 8  # windows a step
    workers: int = 2  # at most
    seconds: float = 10.0  # of each measurement
    pace: float = 1e6  # tokens/s of the training loop by itself
    json: str = ""  # file for the result


def compute(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def nothing(seconds: float) -> None:
    """A reader that only reads."""


def tokens_per_second(plan: TokenPlan, options: Options, workers: int, work: Callable[[float], None]) -> float:
    size = options.batch_size * options.seq_len
    with WindowLoader(plan, options.batch_size, workers=workers) as loader:
        for _ in range(10):
            next(loader)
        start, steps = time.perf_counter(), 0
        while time.perf_counter() < start + options.seconds:
            next(loader)
            work(size / options.pace)
            steps += 1
        return steps * size / (time.perf_counter() - start)


def run(options: Options) -> dict[str, Any]:
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        store = StoreOptions(pictures=options.pictures, seq_len=options.seq_len)
        plan = make_plan(write_store(Path(temporary) / "store", store), store)
        for workers in range(options.workers + 1):
            kinds = {"reading": nothing, "beside_sleep": time.sleep, "beside_python": compute}
            row = {name: tokens_per_second(plan, options, workers, work) for name, work in kinds.items()}
            print(f"  {workers} workers: {', '.join(f'{name} {rate:,.0f}' for name, rate in row.items())} tokens/s")
            rows.append({"workers": workers, "tokens_per_second": row})
    machine = {"machine": machine_description(), "commit": git_commit()}
    return {"benchmark": "loader", "results": rows, "options": asdict(options), **machine}


if __name__ == "__main__":
    run_alone(Options, run)
