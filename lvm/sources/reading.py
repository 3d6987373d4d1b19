"""Reading units in several processes, in order."""

import pickle
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lvm.runtime.served import Served
from lvm.sources.base import BrokenItem, Item, Source

Read = tuple[int, list[Item] | BrokenItem]  # unit number and what came of it

READ_AHEAD = 2**29  # bytes of pictures that may lie ready: a tokenizer's first batch may take a minute to compile


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
    packed = pickle.dumps(UnitReader(source, size))
    pool = [Served(packed, "reads pictures") for _ in range(min(workers, len(chunks)))]
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
            worker.kill()
        for thread in threads:
            thread.join()
        for worker in pool:
            worker.close()


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

    def fill(self, worker: Served) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(self._may_go_on)
                if self.stopped or self.started == len(self.chunks):
                    return
                index, self.started = self.started, self.started + 1
            result: list[Read] | BaseException
            try:
                result = worker("read", self.chunks[index])
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


@dataclass(frozen=True)
class UnitReader:
    """What a process of `read_units` holds."""

    source: Source
    size: int

    def read(self, units: list[int]) -> list[Read]:
        try:
            return [(unit, read_one(self.source, unit, self.size)) for unit in units]
        except Exception as error:
            error.add_note(f"reading units {units[0]}..{units[-1]}")
            raise
