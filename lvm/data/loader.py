"""Windows as torch batches: map-style datasets, and an iterator over steps whose state is one integer.

A step with a global batch of M micro-batches on R data ranks of b windows reads next_window .. next_window + M R b - 1;
micro-batch m of data rank r reads the b windows from next_window + (m R + r) b on. So a step's windows are the same for
any R and b of equal product. A data rank is the mesh coordinate (replicate, shard), never the world rank.
"""

import atexit
import itertools
import multiprocessing
import pickle
import queue
import threading
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from lvm.data.base import Plan, Window
from lvm.data.read_ahead import HORIZON, ReadAhead, remote_stores
from lvm.runtime import UserError
from lvm.runtime.errors import is_user_error
from lvm.runtime.signals import ignore_signals

if TYPE_CHECKING:
    from torch import Tensor

CLOSING = 10.0  # seconds that `close` waits for a thread
Batch = dict[str, "Tensor"]  # tokens int64, source int16, role int8, each [b, T+1]


FIELDS = {"tokens": torch.int64, "source": torch.int16, "role": torch.int8}


def to_batch(window: Window, pin: bool = False) -> Batch:
    batch = {name: torch.from_numpy(getattr(window, name)) for name in FIELDS}
    return pinned(batch) if pin else batch


def pinned(batch: Batch) -> Batch:
    return {name: tensor.pin_memory() for name, tensor in batch.items()}


def packed(batch: Batch) -> "Tensor":
    """A batch as uint8 [bytes]: each tensor that goes from one process to another costs a connection between them."""
    return torch.cat([batch[name].reshape(-1).view(torch.uint8) for name in FIELDS])


def unpacked(content: "Tensor", windows: int) -> Batch:
    sizes = [dtype.itemsize for dtype in FIELDS.values()]
    tokens = len(content) // sum(sizes)
    parts = content.split([tokens * size for size in sizes])
    return {name: part.view(FIELDS[name]).view(windows, -1) for name, part in zip(FIELDS, parts)}


def first_window(next_window: int, micro_batch: int, rank: int, ranks: int, size: int) -> int:
    """First of the `size` windows that `micro_batch` of a step reads on data rank `rank` of `ranks`."""
    return next_window + (micro_batch * ranks + rank) * size


class WindowDataset(torch.utils.data.Dataset[Batch]):
    """Map-style view of windows 0 .. length-1 for a torch DataLoader."""

    def __init__(self, plan: Plan, length: int):
        self.plan, self.length = plan, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Batch:
        if not 0 <= i < self.length:
            raise IndexError(i)
        return to_batch(self.plan.window(i))


class StepDataset(torch.utils.data.Dataset[Batch]):
    """Map-style view of steps by their first window: all that one data rank reads, each field [M b, T+1]."""

    def __init__(self, plan: Plan, batch_size: int, micro_batches: int = 1, rank: int = 0, ranks: int = 1):
        self.plan = plan
        self.batch_size, self.micro_batches, self.rank, self.ranks = batch_size, micro_batches, rank, ranks
        self.windows_per_step = batch_size * micro_batches * ranks

    def runs(self, next_window: int, steps: int = 1) -> Iterator[tuple[int, int]]:
        """(first window, how many) of what the rank reads, in order, neighbours joined."""
        if self.ranks == 1:
            yield next_window, steps * self.windows_per_step
            return
        for m in range(steps * self.micro_batches):
            yield first_window(next_window, m, self.rank, self.ranks, self.batch_size), self.batch_size

    def __getitem__(self, next_window: int) -> Batch:
        parts = [to_batch(self.plan.windows(*run)) for run in self.runs(next_window)]
        if len(parts) == 1:
            return parts[0]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


class _InWorker(torch.utils.data.Dataset[Any]):
    """A `StepDataset` of another process, opened there when the first step is asked for.

    What is the user's to mend comes back as a value: torch would raise it with the worker's traceback for its text.
    """

    def __init__(self, dataset: StepDataset):
        self._pickled = pickle.dumps(dataset)

    @cached_property
    def _dataset(self) -> StepDataset:
        return pickle.loads(self._pickled)

    def __getitem__(self, next_window: int) -> "Tensor | UserError":
        try:
            return packed(self._dataset[next_window])
        except Exception as error:
            if not is_user_error(error):
                raise
            return UserError(str(error))


class StepsByThread:
    """Steps from window `next_window` on, prepared by a thread of this process, `ahead` of them."""

    def __init__(self, dataset: StepDataset, next_window: int, ahead: int, pin: bool):
        self._dataset, self._pin = dataset, pin
        self._ready: queue.Queue[Any] = queue.Queue(maxsize=ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._prefetch, args=(next_window,), name="windows", daemon=True)
        self._thread.start()

    def _prefetch(self, window: int) -> None:
        while not self._stop.is_set():
            try:
                ready: Any = self._dataset[window]
                ready = pinned(ready) if self._pin else ready
            except BaseException as error:  # handed to whoever iterates
                ready = error
            while not self._stop.is_set():
                try:
                    self._ready.put(ready, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if isinstance(ready, BaseException):
                return
            window += self._dataset.windows_per_step

    def __next__(self) -> Batch:
        ready = self._ready.get()
        if isinstance(ready, BaseException):
            raise ready
        return ready

    def close(self) -> None:
        self._stop.set()
        self._thread.join(CLOSING)  # it may be waiting for a network; it ends with the program


class StepsByProcesses:
    """Steps from window `next_window` on, each prepared by one of `workers` processes, `ahead` of them by each.

    The processes are started afresh, not forked: the parent has threads and may use CUDA. They ignore the signals that
    schedulers and terminals send to all processes of a job, and end with their parent.
    """

    def __init__(self, dataset: StepDataset, next_window: int, workers: int, ahead: int, pin: bool):
        self._windows = dataset.batch_size * dataset.micro_batches
        others = set(multiprocessing.active_children())
        loader: Any = torch.utils.data.DataLoader(
            _InWorker(dataset),
            batch_size=None,
            sampler=itertools.count(next_window, dataset.windows_per_step),
            num_workers=workers,
            prefetch_factor=ahead,
            pin_memory=pin,
            multiprocessing_context="spawn",
            worker_init_fn=ignore_signals,
            generator=torch.Generator(),  # the global one is left as it is
        )
        self._iterator: Any = iter(loader)
        self._workers = [process for process in multiprocessing.active_children() if process not in others]
        atexit.register(self.close)  # before multiprocessing waits for processes that ignore its signal

    def __next__(self) -> Batch:
        try:
            ready, died = next(self._iterator), ""
        except RuntimeError as error:
            died = " ".join(str(error).split())
            if "DataLoader worker (pid" not in died:
                raise
        if died:  # raised out here, where nothing holds torch's iterator any more
            raise UserError(f"a worker of the loader is gone ({died}); if memory ran out, use fewer workers")
        if isinstance(ready, UserError):
            raise ready
        return unpacked(ready, self._windows)

    def close(self) -> None:
        atexit.unregister(self.close)
        self._iterator._shutdown_workers()
        for worker in self._workers:
            worker.kill()
            worker.join()


class WindowLoader:
    """Iterate over steps: each is the list of this data rank's M micro-batches. Its state is `next_window`.

    Steps are prepared ahead of the reader; `next_window` counts only steps handed out, so a loader built with a saved
    `next_window` continues exactly. Tars of remote stores are fetched ahead too (see `read_ahead.py`). `close` (or
    leaving the `with` block) ends threads and processes.

    `workers=0` prepares steps in a thread; with `workers` processes, which open the plan anew, the windows are the
    same. On two cores the thread gave 25M tokens/s, one or two processes 13M and 15M. Beside a loop that by itself
    takes in 1M, in Python or asleep, the thread left it 0.96M or more and processes 0.89M to 0.93M: torch's hand-over
    costs 2 ms a step, while the thread gives Python's lock away during its gathers (benchmarks/loader.py). So processes
    pay only where composing a step takes longer than training on it.
    """

    def __init__(
        self,
        plan: Plan,
        batch_size: int,
        next_window: int = 0,
        micro_batches: int = 1,
        rank: int = 0,
        ranks: int = 1,
        prefetch_steps: int = 2,
        pin: bool = False,
        workers: int = 0,
        read_ahead: int = HORIZON,
    ):
        """`batch_size` is b, the windows of one micro-batch on one data rank.

        `prefetch_steps` are prepared ahead, by each worker; `read_ahead` is in windows of all ranks, 0 for none.
        """
        dataset = StepDataset(plan, batch_size, micro_batches, rank, ranks)
        self.plan, self.batch_size, self.next_window = plan, batch_size, next_window
        self.micro_batches, self.windows_per_step = micro_batches, dataset.windows_per_step
        self._closed, ahead = False, max(1, prefetch_steps)
        self._read_ahead = None
        if read_ahead and remote_stores(plan):
            self._read_ahead = ReadAhead(plan, dataset.runs, dataset.windows_per_step, next_window, read_ahead)
        self._steps: StepsByThread | StepsByProcesses
        if workers:
            self._steps = StepsByProcesses(dataset, next_window, workers, ahead, pin)
        else:
            self._steps = StepsByThread(dataset, next_window, ahead, pin)

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        if self._closed:
            raise StopIteration
        if self._read_ahead is not None and self._read_ahead.problem is not None:
            raise self._read_ahead.problem
        try:
            step = next(self._steps)
        except Exception:
            self.close()
            raise
        self.next_window += self.windows_per_step
        if self._read_ahead is not None:
            self._read_ahead.advance(self.next_window)
        parts = {name: tensor.split(self.batch_size) for name, tensor in step.items()}
        return [{name: parts[name][m] for name in parts} for m in range(self.micro_batches)]

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._read_ahead is not None:
                self._read_ahead.close()
            self._steps.close()

    def __enter__(self) -> "WindowLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
