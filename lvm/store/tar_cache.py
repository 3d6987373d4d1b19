"""Tars kept on disk, together at most so many bytes: what `remote.py` fetches into.

Who reads a tar holds a shared lock on it, who writes one an exclusive lock on the file aside; the kernel drops those of
a killed process. So what is locked stays, and a file aside without a lock is what a killed writer left.
"""

import contextlib
import fcntl
import os
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lvm.runtime.files import locked

TARS, ASIDE = "*/shards/[0-9]*.tar", "*/shards/.tmp-*.tar"


class TarCache:
    """All stores of a machine share the folder; `bound` is what this process adds to."""

    def __init__(self, folder: Path, bound: int) -> None:
        self.folder, self.bound = folder, bound

    def open(self, path: Path) -> BinaryIO | None:
        """A tar that stays as long as the file, or a map of it, is open; None where it is not there."""
        while True:
            try:
                file = open(path, "rb")  # noqa: SIM115
            except FileNotFoundError:
                return None
            fcntl.flock(file, fcntl.LOCK_SH)
            if path.is_file() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
                os.utime(path)  # when it was last used
                return file
            file.close()  # it left the cache between the two lines

    def used(self, path: Path, when: float) -> None:
        """Say that a tar was in use until then."""
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < when:
                os.utime(path, (when, when))

    @contextmanager
    def writing(self, path: Path, size: int, let_go: Callable[[], bool]) -> Iterator[BinaryIO]:
        """A file of `size` bytes that becomes `path` on a clean exit. Its bytes count from now on.

        Tars longest not used leave until it fits, then those that `let_go` closes; it says whether there was one.
        Where other readers have mapped too much for that, the cache grows beyond its bound until they let go.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / ".lock"):
            self.make_room(size, let_go)
            aside = _reserve(path, size)
        with _renamed(aside, path):
            yield aside

    @contextmanager
    def writing_ahead(self, path: Path, size: int, needed: Collection[Path]) -> Iterator[BinaryIO | None]:
        """The same for a tar that is not needed yet: no `needed` one leaves for it; None where there is no room."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / ".lock"):
            fits = self._shrink(self.bound - size, needed) <= self.bound - size
            aside = _reserve(path, size) if fits else None
        if aside is None:
            yield None
            return
        with _renamed(aside, path):
            yield aside

    def make_room(self, size: int, let_go: Callable[[], bool]) -> None:
        while self._shrink(self.bound - size) > self.bound - size:
            if not let_go():
                break

    def _shrink(self, most: int, needed: Collection[Path] = ()) -> int:
        """Remove tars nobody reads, those longest not used first, down to `most` bytes; what is there then."""
        total = 0
        for path in self.folder.glob(ASIDE):
            if not _remove_unless_locked(path):
                total += _size(path)
        tars = [(path.stat(), path) for path in self.folder.glob(TARS)]
        total += sum(stat.st_size for stat, _ in tars)
        for stat, path in sorted(tars, key=lambda tar: tar[0].st_mtime_ns):
            if total <= most:
                break
            if path not in needed and _remove_unless_locked(path):
                total -= stat.st_size
        return total


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Hold `path` as `locked` does, unless another holds it; whether it is ours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _reserve(path: Path, size: int) -> BinaryIO:
    """A new file aside that its writer has locked, as long as it will be."""
    file = open(path.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{path.name}"), "w+b")  # noqa: SIM115
    fcntl.flock(file, fcntl.LOCK_EX)
    file.truncate(size)
    return file


@contextmanager
def _renamed(aside: BinaryIO, path: Path) -> Iterator[None]:
    try:
        yield
        aside.flush()
        os.fdatasync(aside.fileno())
        os.replace(aside.name, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside.name)
        aside.close()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # complete by now, and counted as a tar
        return 0


def _remove_unless_locked(path: Path) -> bool:
    try:
        file = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError:
        return True
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        path.unlink(missing_ok=True)
    return True
