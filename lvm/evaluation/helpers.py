"""Cases made and answers judged by helpers, while the model answers.

Each helper is a process with a copy of the suite (lvm/runtime/served.py): pictures are drawn, decoded, shrunk and
scored on other cores than those that feed the model. Without helpers, or for a suite that needs the tokenizer, one
thread of this process does it.
"""

import pickle
import queue
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from lvm.evaluation.ask import Asked, HoldsTokenizer, row_of
from lvm.evaluation.cases import Case, Suite
from lvm.runtime.served import Served
from lvm.sources.base import BrokenItem

CASES_AT_ONCE = 4  # of a call to a helper


class Desk:
    """What a helper does."""

    def __init__(self, suite: Suite) -> None:
        self._suite = suite

    def cases(self, numbers: Sequence[int]) -> list[Case | dict[str, Any]]:
        """Cases, or of one that failed its row."""
        found: list[Case | dict[str, Any]] = []
        for number in numbers:
            try:
                found.append(self._suite.case(number))
            except BrokenItem as error:
                found.append({"case": number, "file": error.file, "failed": error.reason})
        return found

    def rows(self, asked: Sequence[Asked]) -> list[dict[str, Any]]:
        return [row_of(self._suite, each) for each in asked]


class Helpers:
    """`num` processes, or one thread. A context manager: leaving it ends the processes."""

    def __init__(self, suite: Suite, num: int) -> None:
        self._free: queue.SimpleQueue[Callable[..., Any]] = queue.SimpleQueue()
        self._processes: list[Served] = []
        desk = Desk(suite)
        try:
            self._processes += [Served(desk, "reads and judges pictures") for _ in range(num)]
        except HoldsTokenizer:
            pass  # as it should be
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            print(f"{suite.name}: its cases are made in this process: {error}", file=sys.stderr)
        for process in self._processes:
            self._free.put(process)
        if not self._processes:
            self._free.put(lambda method, *arguments: getattr(desk, method)(*arguments))
        self._threads = ThreadPoolExecutor(max(1, len(self._processes)))

    @property
    def num_processes(self) -> int:
        return len(self._processes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.stop()

    def cases(self, numbers: Sequence[int]) -> "Pieces":
        """In order."""
        return self._pieces("cases", numbers)

    def rows(self, asked: Sequence[Asked]) -> "Pieces":
        return self._pieces("rows", asked)

    def _pieces(self, method: str, of: Sequence[Any]) -> "Pieces":
        starts = range(0, len(of), CASES_AT_ONCE)
        return Pieces([self._threads.submit(self._call, method, of[i : i + CASES_AT_ONCE]) for i in starts])

    def _call(self, method: str, piece: Sequence[Any]) -> Any:
        helper = self._free.get()
        try:
            return helper(method, piece)
        finally:
            self._free.put(helper)


class Pieces:
    """Lists to come."""

    def __init__(self, futures: "Sequence[Future[list[Any]]]") -> None:
        self._futures = futures

    def result(self) -> list[Any]:
        return [each for future in self._futures for each in future.result()]
