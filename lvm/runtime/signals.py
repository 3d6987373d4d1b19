"""Stop signals set a flag; the training loop reads it and saves. Nothing else happens in a handler.

USR2 is what Slurm is asked to send before the time limit (--signal=USR2@120): launchers and NCCL use USR1.
"""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class StopFlag:
    """A context in which USR2, TERM and INT ask for a stop; a second INT raises KeyboardInterrupt.

    The former handlers return at its end; what another flag around it has received counts here too. Only the main
    thread may enter it (a rule of Python's).
    """

    def __init__(self, signals: Sequence[signal.Signals] = STOP_SIGNALS) -> None:
        self._signals = signals
        self.received: signal.Signals | None = None
        self._former: dict[signal.Signals, Any] = {}
        self._interrupts = 0

    @property
    def requested(self) -> bool:
        return self.received is not None

    def __enter__(self) -> "StopFlag":
        for number in self._signals:
            former = signal.signal(number, self._handle)
            self._former[number] = former
            outer = getattr(former, "__self__", None)
            if isinstance(outer, StopFlag):
                self.received = self.received or outer.received
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._former.clear()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number)
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt


@contextmanager
def signals_ignored() -> Iterator[None]:
    """Those that ask for a stop, in this process and what it starts: it has stopped, and has one thing left to do."""
    former = {number: signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def ignore_signals(*_: object) -> None:
    """For data workers (as `worker_init_fn`): Slurm and terminals signal them too, the main process ends them."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
