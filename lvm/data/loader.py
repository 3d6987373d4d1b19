"""Windows as torch batches: a map-style dataset, and an iterator with a prefetching thread whose state is one integer.

A step with a global batch of M micro-batches on R data ranks of b windows reads next_window .. next_window + M R b - 1;
micro-batch m of data rank r reads the b windows from next_window + (m R + r) b on. So a step's windows are the same for
any R and b of equal product. A data rank is the mesh coordinate (replicate, shard), never the world rank.
"""

import queue
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from lvm.data.plan import TokenPlan, Window

if TYPE_CHECKING:
    from torch import Tensor

Batch = dict[str, "Tensor"]  # tokens int64, source int16, role int8, each [b, T+1]


def to_batch(window: Window, pin: bool = False) -> Batch:
    batch = {name: torch.from_numpy(getattr(window, name)) for name in ("tokens", "source", "role")}
    return {name: tensor.pin_memory() for name, tensor in batch.items()} if pin else batch


def first_window(next_window: int, micro_batch: int, rank: int, ranks: int, size: int) -> int:
    """First of the `size` windows that `micro_batch` of a step reads on data rank `rank` of `ranks`."""
    return next_window + (micro_batch * ranks + rank) * size


class WindowDataset(torch.utils.data.Dataset[Batch]):
    """Map-style view of windows 0 .. length-1 for a torch DataLoader."""

    def __init__(self, plan: TokenPlan, length: int):
        self.plan, self.length = plan, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Batch:
        if not 0 <= i < self.length:
            raise IndexError(i)
        return to_batch(self.plan.window(i))


class WindowLoader:
    """Iterate over steps: each is the list of this data rank's M micro-batches. Its state is `next_window`.

    A thread prepares the steps ahead; `next_window` counts only steps handed out, so a loader built with a saved
    `next_window` continues exactly. `close` (or leaving the `with` block) ends the thread.
    """

    def __init__(
        self,
        plan: TokenPlan,
        batch_size: int,
        next_window: int = 0,
        micro_batches: int = 1,
        rank: int = 0,
        ranks: int = 1,
        prefetch_steps: int = 2,
        pin: bool = False,
    ):
        """`batch_size` is b, the windows of one micro-batch on one data rank."""
        self.plan, self.batch_size, self.next_window = plan, batch_size, next_window
        self.micro_batches, self.rank, self.ranks, self.pin = micro_batches, rank, ranks, pin
        self.windows_per_step = batch_size * micro_batches * ranks
        self._ready: queue.Queue[Any] = queue.Queue(maxsize=max(1, prefetch_steps))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._prefetch, args=(next_window,), name="windows", daemon=True)
        self._thread.start()

    def step(self, next_window: int) -> list[Batch]:
        """This data rank's micro-batches of the step that begins at `next_window`."""
        firsts = [
            first_window(next_window, m, self.rank, self.ranks, self.batch_size) for m in range(self.micro_batches)
        ]
        return [to_batch(self.plan.windows(first, self.batch_size), self.pin) for first in firsts]

    def _prefetch(self, window: int) -> None:
        while not self._stop.is_set():
            try:
                ready: Any = self.step(window)
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
            window += self.windows_per_step

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        if self._stop.is_set():
            raise StopIteration
        ready = self._ready.get()
        if isinstance(ready, BaseException):
            self._stop.set()
            raise ready
        self.next_window += self.windows_per_step
        return ready

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> "WindowLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
