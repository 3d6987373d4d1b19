"""A store that lies elsewhere (s3://, gs://, https://, memory://, ... whatever fsspec opens), read through a cache.

    TokenStore("s3://bucket/store")             # LVM_REMOTE_CACHE_BYTES=50e9, under $LVM_CACHE/remote

store.json and exclude.txt are asked for each time a store is opened; everything else is fetched once, whole, checked
against its hash, and kept on disk under the store's layout. Tars leave the cache in the order of their last use when
they would take more than the bound; one that any process of this machine has mapped stays.
"""

import contextlib
import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from lvm.runtime import UserError, atomic_write, read_json, sha256_file
from lvm.runtime.files import cache_folder, locked

CACHE_BYTES = 50 * 10**9
BATCH = 512  # files asked for at once
TRIES = 3

Answer = TypeVar("Answer")


def is_url(path: str | Path) -> bool:
    return "://" in str(path)


def refuse_url(path: str | Path, what: str, instead: str) -> None:
    if is_url(path):
        raise UserError(f"{path}: {what} a folder of this machine; {instead}")


def bound_in_bytes(given: int | None) -> int:
    """The argument, else $LVM_REMOTE_CACHE_BYTES (as 50e9), else 50 GB."""
    text = given if given is not None else os.environ.get("LVM_REMOTE_CACHE_BYTES") or CACHE_BYTES
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        raise UserError(f"LVM_REMOTE_CACHE_BYTES is {text!r}; give a number of bytes, as 50e9") from None


class RemoteFolder:
    """The files of one store, as they are in the cache; `path` is the folder there.

    The folder's name hangs on the address and on the bytes of store.json: a store that was written anew is another.
    """

    def __init__(self, url: str, bound: int | None = None) -> None:
        import fsspec

        self.url, self.bound = url.rstrip("/"), bound_in_bytes(bound)
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise UserError(f"{url} cannot be opened ({error})") from None
        info = self.read("store.json")
        if info is None:
            raise UserError(f"{url} is not a complete token store (no store.json); make one with `lvm tokenize`")
        key = hashlib.sha256(self.url.encode() + b"\n" + info).hexdigest()[:16]
        self.cache = cache_folder() / "remote"
        self.path = self.cache / key
        if not (self.path / "store.json").is_file():
            atomic_write(self.path / "store.json", info)

    def read(self, name: str) -> bytes | None:
        """The bytes of a small file as they are there now; None if there is none."""
        address = f"{self._root}/{name}"
        return self._ask(name, lambda: self._files.cat_file(address) if self._files.exists(address) else None)

    def fetch(self, files: Mapping[str, str | None]) -> None:
        """Bring the files that are not in the cache, checked against their sha256 where it is given."""
        missing = [name for name in files if not (self.path / name).is_file()]
        for start in range(0, len(missing), BATCH):
            names = missing[start : start + BATCH]
            asides = [self.path / name for name in names]
            asides = [path.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{path.name}") for path in asides]
            for folder in {aside.parent for aside in asides}:
                folder.mkdir(parents=True, exist_ok=True)
            try:
                remote, local = [f"{self._root}/{name}" for name in names], [str(aside) for aside in asides]
                self._ask(names[0], partial(self._files.get, remote, local))
                for name, aside in zip(names, asides):
                    expected = files[name]
                    if expected is not None and sha256_file(aside) != expected:
                        raise UserError(f"{self.url}/{name} is damaged (its sha256 differs); copy the store anew")
                    os.replace(aside, self.path / name)
            finally:
                for aside in asides:
                    aside.unlink(missing_ok=True)

    def fetch_parts(self, folder: str, shards: Sequence[tuple[str, str]]) -> None:
        """Bring what the shards (name and hash of the tar) have in `folder`, and their sidecars, which say what."""
        self.fetch({f"shards/{name}.json": None for name, _ in shards})
        parts: dict[str, str | None] = {}
        for name, sha256 in shards:
            sidecar = read_json(self.path / "shards" / f"{name}.json")
            if sidecar["sha256"] != sha256:
                raise UserError(f"{self.url}/shards/{name}.json is not the one of store.json; copy the store anew")
            parts |= {file: hash for file, hash in sidecar["files"].items() if file.startswith(f"{folder}/")}
        self.fetch(parts)

    def open_tar(self, name: str, size: int, sha256: str, let_go: Callable[[], bool]) -> BinaryIO:
        """A tar of the cache, fetched if need be; it stays there as long as the file, or a map of it, is open.

        `let_go` closes one that the caller has open, where there is no room otherwise; it says whether there was one.
        """
        path = self.path / name
        while True:
            try:
                file = open(path, "rb")  # noqa: SIM115
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
                with locked(path.with_name(f".lock-{path.name}")):  # one process fetches, the others wait
                    if not path.is_file():
                        self._make_room(size, name, let_go)
                        self.fetch({name: sha256})
                continue
            fcntl.flock(file, fcntl.LOCK_SH)
            if path.is_file() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
                os.utime(path)
                return file
            file.close()  # it left the cache between the two lines

    def _make_room(self, size: int, name: str, let_go: Callable[[], bool]) -> None:
        """Remove the tars longest not used, of all stores, until one more of `size` bytes fits under the bound.

        Where other readers have mapped too much for that, the cache grows beyond its bound until they let go.
        """
        if size > self.bound:
            raise UserError(
                f"{self.url}/{name} has {size} bytes and LVM_REMOTE_CACHE_BYTES is {self.bound}; raise it above that"
            )
        with locked(self.cache / ".lock"):
            while self._shrink(self.bound - size) > self.bound - size:
                if not let_go():
                    break
            for aside in self.cache.glob("*/*/.tmp-*"):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - aside.stat().st_mtime > 3600:  # of a process that was killed
                        aside.unlink()

    def _shrink(self, bound: int) -> int:
        """Remove unmapped tars, those longest not used first, down to `bound` bytes; what all the others have."""
        tars = [(path.stat(), path) for path in self.cache.glob("*/shards/[0-9]*.tar")]
        total = sum(stat.st_size for stat, _ in tars)
        for stat, path in sorted(tars, key=lambda tar: tar[0].st_mtime_ns):
            if total <= bound:
                break
            if _remove_unless_mapped(path):
                total -= stat.st_size
        return total

    def _ask(self, name: str, question: "Callable[[], Answer]") -> "Answer":
        """Ask the file system; a failure that may pass is tried again, one that stays is the user's to know."""
        for attempt in range(TRIES):
            try:
                return question()
            except FileNotFoundError:
                raise UserError(f"{self.url}/{name} is missing; copy the store anew") from None
            except Exception as error:  # each file system has its own
                if attempt + 1 == TRIES or isinstance(error, PermissionError):
                    why = " ".join(str(error).split()) or type(error).__name__
                    raise UserError(
                        f"{self.url}/{name} cannot be fetched ({why}); check the network and your credentials"
                    ) from None
                time.sleep(2.0**attempt)
        raise AssertionError


def _remove_unless_mapped(path: Path) -> bool:
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        path.unlink(missing_ok=True)
    return True
