"""Reading units in several processes, in order; `reader_process.py` is what each of them runs.

Workers are started as plain subprocesses, not by fork (unsafe once torch has threads) nor by multiprocessing's spawn
(which would import the main module, and torch with it): they import numpy, PIL and the source alone. Pictures come
back as one uint8 array a chunk, next to a small pickled header.
"""

import os
import pickle
import queue
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from lvm.runtime import UserError
from lvm.sources.base import BrokenItem, Item, Source

Read = tuple[int, list[Item] | BrokenItem]  # unit number and what came of it

_ITEM_FIELDS = ("id", "group", "view", "label", "licence", "caption", "meta")


def read_units(
    source: Source, units: Sequence[int], size: int, *, workers: int = 2, chunk_units: int | None = None
) -> Iterator[Read]:
    """Yield every unit in the given order, read `chunk_units` at a time by `workers` processes (0: in this one).

    A `BrokenItem` is yielded in its place; any other exception of the source is raised here. Raises `UserError` if a
    worker dies. Closing the generator ends the workers.
    """
    if workers <= 0:
        for unit in units:
            yield unit, read_one(source, unit, size)
        return
    chunk_units = chunk_units or max(1, min(32, len(units) // (4 * workers)))
    chunks = [list(units[i : i + chunk_units]) for i in range(0, len(units), chunk_units)]
    pool = [_Worker(source, size) for _ in range(min(workers, len(chunks)))]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in pool:
        idle.put(worker)

    def read(chunk: list[int]) -> list[Read]:
        worker = idle.get()
        try:
            return worker.read(chunk)
        finally:  # also when it failed: another thread may wait for a worker, and would for ever
            idle.put(worker)

    executor = ThreadPoolExecutor(max(1, len(pool)), thread_name_prefix="read")
    waiting: deque[Future[list[Read]]] = deque()
    try:
        ahead = iter(chunks)
        for chunk in ahead:
            waiting.append(executor.submit(read, chunk))
            if len(waiting) >= 3 * len(pool):
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        for worker in pool:
            worker.stop()
        for future in waiting:
            future.cancel()
        executor.shutdown(wait=False, cancel_futures=True)


def read_one(source: Source, unit: int, size: int) -> list[Item] | BrokenItem:
    try:
        return source.read(unit, size)
    except BrokenItem as broken:
        return broken


def pack(results: list[Read]) -> "tuple[list[Any], np.ndarray | None]":
    """A header without arrays, and all pictures as one array [pictures, y, x, 3]."""
    header: list[Any] = []
    pictures: list[np.ndarray] = []
    for unit, items in results:
        if isinstance(items, BrokenItem):
            header.append((unit, (items.file, items.reason)))
            continue
        packed = []
        for item in items:
            fields = {name: getattr(item, name) for name in _ITEM_FIELDS}
            packed.append((fields, [(channel, len(array)) for channel, array in item.channels.items()]))
            pictures.extend(item.channels.values())
        header.append((unit, packed))
    return header, np.concatenate(pictures) if pictures else None


def unpack(header: list[Any], pictures: "np.ndarray | None") -> list[Read]:
    results: list[Read] = []
    start = 0
    for unit, packed in header:
        if isinstance(packed, tuple):
            results.append((unit, BrokenItem(*packed)))
            continue
        items = []
        for fields, counts in packed:
            channels = {}
            for channel, count in counts:
                assert pictures is not None
                channels[channel] = pictures[start : start + count]
                start += count
            items.append(Item(channels=channels, **fields))
        results.append((unit, items))
    return results


class _Worker:
    """A process that answers lists of unit numbers with their items."""

    def __init__(self, source: Source, size: int) -> None:
        ours, theirs = socket.socketpair()
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lvm.sources.reader_process", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self.connection.send_bytes(pickle.dumps((source, size)))

    def read(self, units: list[int]) -> list[Read]:
        try:
            self.connection.send(units)
            kind, header, shape = self.connection.recv()
            pictures = None
            if shape is not None:
                pictures = np.empty(shape, dtype=np.uint8)
                self.connection.recv_bytes_into(pictures.data.cast("B"))
        except (EOFError, OSError):
            code = self.process.wait()
            raise UserError(
                f"a process that reads pictures ended (code {code}), often for lack of memory; use fewer workers"
            ) from None
        if kind == "user error":
            raise UserError(header)
        if kind == "error":
            raise RuntimeError(f"reading units {units[0]}..{units[-1]} failed:\n{header}")
        return unpack(header, pictures)

    def stop(self) -> None:
        self.process.kill()  # it holds nothing that could be half-written
        self.process.wait()
        self.connection.close()
