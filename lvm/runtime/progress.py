"""Progress of a long job: a bar on a terminal, a plain line every few seconds in a log file."""

import sys
import time
from typing import Any, TextIO

PLAIN_EVERY_SECONDS = 5.0


class Progress:
    """Progress over `total` units (None: unknown). A context manager, or call `close` at the end."""

    def __init__(self, total: int | None, label: str, done: int = 0, stream: TextIO | None = None) -> None:
        self.total, self.label, self.done = total, label, done
        self._stream = stream or sys.stderr
        self._start, self._first = time.monotonic(), done
        self._last_line = self._start
        self._bar: Any = None
        if self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.fields[text]}"))
            self._bar = Bar(*columns, console=Console(file=self._stream))
            self._task = self._bar.add_task(label, total=total, completed=done, text="")
            self._bar.start()

    def update(self, n: int = 1, **figures: Any) -> None:
        """Count `n` more units; `figures` (loss=2.31) are shown behind rate and time left."""
        self.done += n
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, text=self.describe(**figures))
        elif time.monotonic() - self._last_line >= PLAIN_EVERY_SECONDS or self.done == self.total:
            self._last_line = time.monotonic()
            print(f"{self.label}: {self.describe(**figures)}", file=self._stream, flush=True)

    def describe(self, **figures: Any) -> str:
        rate = (self.done - self._first) / max(time.monotonic() - self._start, 1e-9)
        parts = [f"{self.done}/{self.total}" if self.total is not None else str(self.done), f"{rate:.3g}/s"]
        if self.total is not None and rate > 0 and self.done < self.total:
            parts.append(f"{duration((self.total - self.done) / rate)} left")
        else:
            parts.append(duration(time.monotonic() - self._start))
        parts += [
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items()
        ]
        return "  ".join(parts)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def duration(seconds: float) -> str:
    """Seconds as 42s, 3m07s, 5h20m or 2d03h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
