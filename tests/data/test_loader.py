"""The loader's state is one integer; ranks, batch sizes, workers and restarts do not change what a step reads."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from fakes import FakeStore
from mixtures import mixture

from lvm.data import TokenPlan, WindowDataset, WindowLoader
from lvm.runtime import UserError

PLAN = TokenPlan.from_config(mixture(), {"world": FakeStore(scenes=60, clips=8, frames=(16, 40))})


def steps(n, **options):
    with WindowLoader(PLAN, **options) as loader:
        return [next(loader) for _ in range(n)], loader.next_window


def tokens(step):
    return torch.cat([batch["tokens"] for batch in step])


@pytest.mark.parametrize(("ranks", "micro_batches", "size"), [(1, 1, 12), (1, 4, 3), (3, 2, 2), (2, 3, 2), (12, 1, 1)])
def test_a_step_reads_the_same_windows_for_any_ranks_and_batch_sizes(ranks, micro_batches, size):
    by_rank = [
        steps(2, batch_size=size, micro_batches=micro_batches, rank=r, ranks=ranks, next_window=5)[0]
        for r in range(ranks)
    ]
    for k in range(2):
        in_order = [by_rank[r][k][m]["tokens"] for m in range(micro_batches) for r in range(ranks)]
        assert np.array_equal(torch.cat(in_order).numpy(), PLAN.windows(5 + 12 * k, 12).tokens)


def test_a_loader_built_with_the_saved_integer_continues_exactly():
    whole, _ = steps(5, batch_size=3)
    _, saved = steps(2, batch_size=3)  # steps fetched ahead of these two are not counted
    assert saved == 6
    rest, end = steps(3, batch_size=3, next_window=saved)
    assert end == 15 and all(torch.equal(tokens(a), tokens(b)) for a, b in zip(whole[2:], rest))


def test_batches_carry_tokens_sources_and_roles():
    (step,), _ = steps(1, batch_size=2)
    window = PLAN.windows(0, 2)
    assert step[0].keys() == {"tokens", "source", "role"}
    for name, dtype in (("tokens", torch.int64), ("source", torch.int16), ("role", torch.int8)):
        assert step[0][name].dtype == dtype and np.array_equal(step[0][name].numpy(), getattr(window, name))


def test_an_error_while_reading_reaches_the_reader():
    class Broken:
        stores: ClassVar[dict[str, object]] = {}

        def windows(self, first, n):
            raise OSError("shard 00003 is gone")

    with WindowLoader(Broken(), batch_size=1) as loader, pytest.raises(OSError, match="shard 00003 is gone"):
        next(loader)


def test_the_dataset_serves_workers_of_a_torch_loader():
    loader = torch.utils.data.DataLoader(WindowDataset(PLAN, 8), batch_size=4, num_workers=1)
    got = torch.cat([batch["tokens"] for batch in loader])
    assert np.array_equal(got.numpy(), PLAN.windows(0, 8).tokens)


pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # torch, of machines with one core


def workers():
    return {process.pid for process in multiprocessing.active_children()}


@pytest.mark.parametrize("ranks", [1, 2])
def test_processes_read_the_windows_that_a_thread_reads_and_end_with_the_loader(ranks):
    options = {"batch_size": 2, "micro_batches": 2, "rank": ranks - 1, "ranks": ranks, "next_window": 5}
    before, state = workers(), torch.get_rng_state()
    with WindowLoader(PLAN, **options, workers=2) as loader:
        got = [next(loader) for _ in range(5)]
        assert loader.next_window == 5 + 5 * 4 * ranks and len(workers() - before) == 2
    assert workers() == before and torch.equal(state, torch.get_rng_state())
    expected, _ = steps(5, **options)
    for mine, other in zip(got, expected):
        for a, b in zip(mine, other, strict=True):
            assert all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in b)
    with pytest.raises(StopIteration):
        next(loader)


@dataclass
class BrokenPlan:
    """Made to fail in the process that reads."""

    how: str
    stores: ClassVar[dict[str, object]] = {}

    def windows(self, first, n):
        if first < 4:
            return PLAN.windows(first, n)
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise {"user": UserError("shard 00003 is gone; copy it again"), "program": ZeroDivisionError("of mine")}[
            self.how
        ]


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("user", UserError, r"^shard 00003 is gone; copy it again$"),
        (
            "killed",
            UserError,
            r"^a worker of the loader is gone \(DataLoader worker .*; if memory ran out, use fewer",
        ),
        ("program", ZeroDivisionError, "of mine"),
    ],
)
def test_what_goes_wrong_in_a_process_reaches_the_reader(how, error, message):
    before = workers()
    loader = WindowLoader(BrokenPlan(how), batch_size=4, workers=1)
    with pytest.raises(error, match=message):
        first = next(loader)
        next(loader)
    if how != "killed":  # else the step may be lost with its worker
        assert torch.equal(tokens(first), torch.from_numpy(PLAN.windows(0, 4).tokens))
    assert workers() == before


def test_processes_end_with_a_parent_that_is_killed_and_do_not_keep_one_that_forgets_them():
    code = (
        "import multiprocessing, sys\n"
        "from lvm.data import WindowLoader\n"
        "from test_loader import PLAN\n"
        "if __name__ == '__main__':\n"
        "    loader = WindowLoader(PLAN, batch_size=4, workers=1)\n"
        "    next(loader)\n"
        "    print(*(p.pid for p in multiprocessing.active_children()), flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    parents = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    of_parent = [int(parent.stdout.readline()) for parent in parents]
    parents[0].kill()
    os.kill(of_parent[1], signal.SIGTERM)  # as a scheduler does to all processes of a job
    assert [parent.communicate("\n", timeout=60) and parent.returncode for parent in parents] == [-signal.SIGKILL, 0]
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in of_parent):
        assert time.monotonic() < deadline
        time.sleep(0.1)
