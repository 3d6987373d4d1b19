"""Show what the processes of a run said: lvm logs RUN [--rank N] [--follow] [--lines N]

The end of RUN/logs/job.log (the job's own output) and rank-0.log, or of one rank's; logs go on over restarts. With
--follow what is added is shown as it comes, until the run has ended.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lvm.cluster.runs import log_files, open_run, state_of
from lvm.runtime import UserError

POLL_SECONDS, ASK_SECONDS = 0.2, 5.0
ACTIVE = ("running", "pending", "requeued", "completing", "configuring", "suspended", "unknown")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--rank", type=int, metavar="N", help="of this process (its number among all)")
    parser.add_argument("--follow", "-f", action="store_true", help="go on with what is added")
    parser.add_argument("--lines", "-n", type=int, default=20, metavar="N", help="of the end of each log (20)")
    arguments = parser.parse_args(argv)
    if arguments.lines < 0:
        raise UserError(f"--lines {arguments.lines}: give 0 or more")
    shown = Shown()
    for path in chosen(arguments.run, arguments.rank, arguments.follow):
        shown.tail(path, arguments.lines)
    if arguments.follow:
        with contextlib.suppress(KeyboardInterrupt):
            follow(arguments.run, arguments.rank, shown)
    return 0


def chosen(run: Path, rank: int | None, may_come: bool = False) -> list[Path]:
    """The logs to show. Raises `UserError` where there are none, unless they `may_come`."""
    facts, known = open_run(run)
    files = log_files(run)
    if rank is not None:
        wanted = [path for path in files if path.stem.startswith("rank-") and int(path.stem[5:]) == rank]
        if not wanted and [path for path in files if path.stem != "job"]:
            ranks = sum(path.stem != "job" for path in files)
            raise UserError(f"{run}/logs has no rank {rank}; it has {ranks} from 0 on")
    else:
        wanted = [path for path in files if path.stem == "job" or int(path.stem[5:]) == 0]
    if not wanted and not may_come:
        state, _ = state_of(facts, known)
        why = "it has not begun" if state in ("pending", "new") else "what `python train.py` says goes to its terminal"
        raise UserError(f"{run} has no logs: {why}; `lvm launch` writes them to {run}/logs")
    return wanted


class Shown:
    """How far each log was shown, and which one the reader sees."""

    def __init__(self) -> None:
        self._offsets: dict[Path, int] = {}
        self._current: Path | None = None

    def tail(self, path: Path, lines: int) -> None:
        content, size = end_of(path, lines)
        self._offsets[path] = size
        self._say(path, content)

    def more(self, path: Path) -> bool:
        """Show what was added; whether anything was."""
        with contextlib.suppress(OSError), open(path, "rb") as file:
            size = path.stat().st_size
            start = self._offsets.get(path, 0)
            file.seek(start if start <= size else 0)  # written anew
            content = file.read()
            self._offsets[path] = file.tell()
            self._say(path, content)
            return bool(content)
        return False

    def _say(self, path: Path, content: bytes) -> None:
        if not content:
            return
        if path != self._current:
            print(f"==> {path} <==", flush=True)
            self._current = path
        sys.stdout.write(content.decode(errors="replace"))
        sys.stdout.flush()


def end_of(path: Path, lines: int, block: int = 64 * 1024) -> tuple[bytes, int]:
    """The last lines of a file, and its size; as much is read as they need."""
    with open(path, "rb") as file:
        size = start = path.stat().st_size
        content = b""
        while start and content.rstrip(b"\n").count(b"\n") < lines:
            start = max(0, start - block)
            file.seek(start)
            content = file.read(size - start)
    return b"".join(content.splitlines(keepends=True)[-lines:] if lines else []), size


def follow(run: Path, rank: int | None, shown: Shown) -> None:
    """Until the run has ended and all was shown; a log that begins meanwhile is shown from its start."""
    asked = 0.0
    while True:
        if time.monotonic() - asked > ASK_SECONDS:
            ended = state_of(*open_run(run))[0] not in ACTIVE
            files, asked = chosen(run, rank, may_come=True), time.monotonic()
        if not any([shown.more(path) for path in files]):
            if ended:
                return
            time.sleep(POLL_SECONDS)
