"""Where a rank is: step, phase and Python stacks, readable from outside even when the process is stopped or stuck.

The main thread says `enter(phase)` at each turn of its loop, which costs microseconds: two words written into a file
in memory. Who shares the host opens that file through /proc, and has the stacks appended to it by a signal whose
handler is C and needs no lock of Python's: a stopped process runs it first of all when it is continued.
"""

import contextlib
import faulthandler
import functools
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from lvm.runtime.lease import process_start

DUMP = signal.SIGURG  # ignored by a process that has no handler, used by no launcher
HEAD = 128  # bytes of the file before the stacks
DEEPEST = 30  # frames shown of a thread
NEVER = float("inf")
Result = TypeVar("Result")


class Whereabouts:
    """Of this rank. Phases: start-up, loading data, forward and backward, optimiser, logging, validation, answering,
    waiting for a save, saving, waiting for other ranks, ending.

    All ranks enter the same phases in the same order, so the one that entered fewest keeps the others waiting.
    """

    def __init__(self) -> None:
        self.count, self.step, self.phase = 0, 0, "start-up"
        self.left: set[str] = set()  # phases that were gone through at least once
        self.attended = NEVER  # when the watch last looked after this process; NEVER: there is none
        self.patience = NEVER  # seconds since then that mean that the process was suspended
        self.is_ours: Callable[[], None] = lambda: None  # does not return if the run was taken over
        self._file: int | None = None

    def open(self) -> None:
        """From here on others of this host can read it."""
        try:
            self._file = os.memfd_create("whereabouts")
        except (AttributeError, OSError):  # another kernel than Linux
            with tempfile.TemporaryFile() as file:
                self._file = os.dup(file.fileno())
        self._write()
        os.lseek(self._file, HEAD, os.SEEK_SET)  # where the handler goes on writing
        faulthandler.register(DUMP, file=self._file, all_threads=True, chain=False)

    def close(self) -> None:
        if self._file is not None:
            faulthandler.unregister(DUMP)
            file, self._file = self._file, None
            os.close(file)

    @property
    def file(self) -> int | None:
        """Its descriptor in this process."""
        return self._file

    def enter(self, phase: str, step: int | None = None) -> None:
        """The main thread turns to `phase`; entering the same one again is progress too."""
        if time.monotonic() - self.attended > self.patience:
            self.is_ours()
        if phase != self.phase:
            self.left.add(self.phase)
        self.phase, self.count = phase, self.count + 1
        self.step = self.step if step is None else step
        self._write()

    def each_call(self, function: Callable[..., Result]) -> Callable[..., Result]:
        """`function`, each call of which is progress in the phase of the moment."""

        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Result:
            self.enter(self.phase)
            return function(*arguments, **options)

        return call

    def _write(self) -> None:
        if self._file is not None:
            os.pwrite(self._file, f"{self.step} {self.phase}".encode().ljust(HEAD), 0)


def in_words(step: int, phase: str, stacks: str) -> str:
    saving = ", a save under way" if re.search(r"runtime/checkpoint\.py\"?[:,].* in _run\b", stacks) else ""
    return f"in {phase}{saving} after step {step}"


def sample_stacks() -> str:
    """Those of all threads but the caller's, without a look at any source file: a file system may be what is stuck."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    frames = {ident: frame for ident, frame in sys._current_frames().items() if ident != threading.get_ident()}
    parts = []
    for ident in sorted(frames, key=lambda ident: ident != main):
        parts.append(f"Thread {names.get(ident, 'of torch or of a library')} (most recent call first):")
        parts += _lines(frames[ident])
    return "\n".join(parts)


def _lines(frame: FrameType | None) -> list[str]:
    lines: list[str] = []
    while frame is not None and len(lines) < DEEPEST:
        lines.append(f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}')
        frame = frame.f_back
    return lines


def waits_for_others(stacks: str) -> bool:
    """Whether a thread is inside a collective, as far as Python's frames tell; writing a checkpoint's file is none."""
    innermost = re.findall(r"^Thread .*\n  File \"(.*)\", line", stacks, re.MULTILINE)
    collective = re.compile(r"/torch/distributed/(?!checkpoint/)|lvm/runtime/distributed\.py$")
    return any(collective.search(file) for file in innermost)


def read_whereabouts(pid: int, file: int) -> tuple[int, str]:
    """(step, phase) of a process of this host; raises `OSError` where it may not be read."""
    step, _, phase = Path(f"/proc/{pid}/fd/{file}").read_bytes()[:HEAD].decode().strip().partition(" ")
    return int(step), phase


def stacks_of(pid: int, file: int, seconds: float = 5.0) -> str:
    """Have a process of this host write down its stacks; it is stopped afterwards, whether it was before or not."""
    path = Path(f"/proc/{pid}/fd/{file}")
    before = size = path.stat().st_size
    os.kill(pid, DUMP)
    os.kill(pid, signal.SIGCONT)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.05)
        former, size = size, path.stat().st_size
        if size == former > before:
            break
    os.kill(pid, signal.SIGSTOP)
    return path.read_bytes()[max(before, HEAD) :].decode(errors="replace").strip()


def kill(pid: int, start: str | None) -> None:
    """End a process of this host, if it is still the one that began at `start`."""
    with contextlib.suppress(OSError):
        if process_start(pid) == start:
            os.kill(pid, signal.SIGKILL)
