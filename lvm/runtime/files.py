"""Files that are complete or absent: written aside, synced, renamed."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lvm.runtime.errors import UserError


def cache_folder() -> Path:
    """$LVM_CACHE, or ~/.cache/lvm: what can be made again."""
    return Path(os.environ.get("LVM_CACHE") or "~/.cache/lvm").expanduser()


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on a clean exit it is synced and renamed over `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield aside
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new folder beside `path`; on a clean exit it takes the place of `path`, which must not exist then."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{path.name}")
    aside.mkdir()
    try:
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                with open(file, "rb") as opened:
                    os.fsync(opened.fileno())
            else:
                sync_folder(file)
        sync_folder(aside)
        if path.exists():
            raise UserError(f"{path} appeared while it was being written; remove one of the two writers")
        os.rename(aside, path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the file `path`, made if missing, as a lock between processes; the kernel drops that of a killed one."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def claimed(folder: str | os.PathLike[str]) -> Iterator[bool]:
    """One process at a time makes `folder`, which is not there yet. Raises `UserError` where another one is at it.

    The lock lies in the folder above, which is made if missing, and goes when this process is done, with what it made
    and left empty; the kernel drops that of a killed one. False where the file system has no locks.
    """
    place = Path(folder).resolve()
    made = [parent for parent in place.parents if not parent.exists()]
    lock = place.parent / f".making-{hashlib.sha256(os.fsencode(place)).hexdigest()[:12]}.lock"
    descriptor, taken = _lock(lock, folder)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, f"pid {os.getpid()}".encode())
        yield taken
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)
        with contextlib.suppress(OSError):  # not empty
            for parent in made:
                parent.rmdir()


def _lock(lock: Path, folder: str | os.PathLike[str]) -> tuple[int, bool]:
    """The open file, and whether it is locked; again where its last holder removed it, or its folder, meanwhile."""
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == os.stat(lock).st_ino:
                return descriptor, True
        except BlockingIOError:
            owner = os.read(descriptor, 20).decode() or "another process"
            os.close(descriptor)
            raise UserError(f"{folder} is being made by {owner}; wait for it, or name another folder") from None
        except FileNotFoundError:
            pass
        except OSError:  # a file system without locks
            return descriptor, False
        os.close(descriptor)


def atomic_write(path: str | os.PathLike[str], content: bytes | str) -> None:
    with atomic_path(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


def sweep(folder: Path, *names: str) -> None:
    """Remove what killed writers of these files and folders left; whoever calls is their only writer by now."""
    for left in folder.glob(".tmp-????????-*"):
        if left.name[len(".tmp-12345678-") :] in names:
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any, sort_keys: bool = True) -> None:
    atomic_write(path, json.dumps(value, indent=1, sort_keys=sort_keys) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON ({error}); write it again") from None


def sha256_file(path: str | os.PathLike[str]) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
