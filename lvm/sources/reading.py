"""Reading units in several processes, in order; `reader_process.py` is what each of them runs.

Workers are started as plain subprocesses, not by fork (unsafe once torch has threads) nor by multiprocessing's spawn
(which would import the main module, and torch with it): they import numpy, PIL and the source alone. Pictures come
back as one uint8 array a chunk, next to a small pickled header.
"""

import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from lvm.runtime import UserError
from lvm.sources.base import BrokenItem, Item, Source

Read = tuple[int, list[Item] | BrokenItem]  # unit number and what came of it

READ_AHEAD = 2**29  # bytes of pictures that may lie ready: a tokenizer's first batch may take a minute to compile

_ITEM_FIELDS = ("id", "group", "view", "label", "licence", "caption", "origin", "meta")


def read_units(
    source: Source, units: Sequence[int], size: int, *, workers: int = 2, chunk_units: int | None = None
) -> Iterator[Read]:
    """Yield every unit in the given order, read `chunk_units` at a time by `workers` processes (0: in this one).

    The processes read on, up to `READ_AHEAD` bytes of pictures, while the caller is busy with something else. A
    `BrokenItem` is yielded in its place; any other exception of the source is raised here. Raises `UserError` if a
    worker dies. Closing the generator ends the workers.
    """
    if workers <= 0:
        for unit in units:
            yield unit, read_one(source, unit, size)
        return
    chunk_units = chunk_units or max(1, min(32, len(units) // (4 * workers)))
    chunks = [list(units[i : i + chunk_units]) for i in range(0, len(units), chunk_units)]
    pool = [_Worker(source, size) for _ in range(min(workers, len(chunks)))]
    ahead = _ReadAhead(chunks)
    threads = [threading.Thread(target=ahead.fill, args=(worker,), daemon=True) for worker in pool]
    try:
        for thread in threads:
            thread.start()
        for index in range(len(chunks)):
            yield from ahead.take(index)
    finally:
        ahead.stop()
        for worker in pool:
            worker.stop()
        for thread in threads:
            thread.join()


class _ReadAhead:
    """Chunks that were read and not yet taken; one thread for each worker fills it."""

    def __init__(self, chunks: list[list[int]]) -> None:
        self.chunks = chunks
        self.changed = threading.Condition()
        self.done: dict[int, list[Read] | BaseException] = {}
        self.started = 0  # chunks below this number are being read, or were
        self.taken = 0
        self.bytes = 0  # of the pictures in `done`
        self.stopped = False

    def fill(self, worker: "_Worker") -> None:
        while True:
            with self.changed:
                self.changed.wait_for(self._may_go_on)
                if self.stopped or self.started == len(self.chunks):
                    return
                index, self.started = self.started, self.started + 1
            result: list[Read] | BaseException
            try:
                result = worker.read(self.chunks[index])
            except BaseException as error:  # raised where it is taken, in the caller's thread
                result = error
            with self.changed:
                self.done[index] = result
                self.bytes += num_bytes(result)
                self.changed.notify_all()

    def _may_go_on(self) -> bool:
        """The chunk that is waited for may always be read, however much lies ready."""
        over = self.stopped or self.started == len(self.chunks)
        return over or self.bytes < READ_AHEAD or self.started == self.taken

    def take(self, index: int) -> list[Read]:
        with self.changed:
            self.taken = index
            self.changed.notify_all()
            self.changed.wait_for(lambda: index in self.done)
            result = self.done.pop(index)
            self.bytes -= num_bytes(result)
            self.changed.notify_all()
        if isinstance(result, BaseException):
            raise result
        return result

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()


def num_bytes(results: list[Read] | BaseException) -> int:
    """Of the pictures; what could not be read holds none."""
    if isinstance(results, BaseException):
        return 0
    items = [item for _, found in results if not isinstance(found, BrokenItem) for item in found]
    return sum(array.nbytes for item in items for array in item.channels.values())


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
