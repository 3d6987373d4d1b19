"""Cases made and answers judged while the model answers: by processes with a copy of the suite, so that pictures are
drawn, decoded, shrunk and scored on other cores than those that feed the model; or by one thread of this process.

What holds the tokenizer (`choose=nearest`, failures) is done in turn with the model, which uses the same device.
"""

import pickle
import queue
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from lvm.evaluation.cases import Case, Suite
from lvm.evaluation.rows import Asked, StaysHere, row_of
from lvm.runtime.served import Served
from lvm.sources.base import BrokenItem

CASES_AT_ONCE = 4  # of a call to a process


class CaseWorker:
    """The work itself."""

    def __init__(self, suite: Suite) -> None:
        self._suite = suite

    def cases(self, numbers: Sequence[int]) -> list[Case | dict[str, Any]]:
        """Each case, or the row of one that could not be read."""
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
    """`num` processes, or one thread; nothing of it for a suite that cannot be pickled. A context manager: leaving it
    ends them and drops what was not begun."""

    def __init__(self, suite: Suite, num: int) -> None:
        self._here = CaseWorker(suite)
        self._processes: list[Served] = []
        self._free: queue.SimpleQueue[Callable[..., Any]] = queue.SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None
        try:
            packed = pickle.dumps(self._here)
        except StaysHere:
            return
        except Exception as error:
            print(f"{suite.name}: made and judged in turn with the answers, not beside them: {error}", file=sys.stderr)
            return
        try:
            for _ in range(num):
                self._processes.append(Served(packed, "reads and judges pictures"))
        except BaseException:
            self._stop()
            raise
        for process in self._processes:
            self._free.put(process)
        if not num:
            self._free.put(lambda method, piece: getattr(self._here, method)(piece))
        self._threads = ThreadPoolExecutor(max(1, num))

    @property
    def num_processes(self) -> int:
        return len(self._processes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def _stop(self) -> None:
        for process in self._processes:
            process.kill()  # calls end with it
        if self._threads:
            self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.close()

    def cases(self, numbers: Sequence[int]) -> "Pending":
        """`CaseWorker.cases`, in order."""
        return self._pending("cases", numbers)

    def rows(self, asked: Sequence[Asked]) -> "Pending":
        return self._pending("rows", asked)

    def _pending(self, method: str, of: Sequence[Any]) -> "Pending":
        if self._threads is None:
            done: Future[list[Any]] = Future()
            done.set_result(getattr(self._here, method)(of))
            return Pending([done])
        starts = range(0, len(of), CASES_AT_ONCE)
        return Pending([self._threads.submit(self._call, method, of[i : i + CASES_AT_ONCE]) for i in starts])

    def _call(self, method: str, piece: Sequence[Any]) -> Any:
        helper = self._free.get()
        try:
            return helper(method, piece)
        finally:
            self._free.put(helper)


class Pending:
    """A list whose pieces are being made."""

    def __init__(self, futures: "Sequence[Future[list[Any]]]") -> None:
        self._futures = futures

    def result(self) -> list[Any]:
        return [each for future in self._futures for each in future.result()]
