"""A store that lies elsewhere (s3://, gs://, https://, memory://, ... whatever fsspec opens), read through a cache.

    TokenStore("s3://bucket/store")             # LVM_REMOTE_CACHE_BYTES=50e9, under $LVM_CACHE/remote

store.json and exclude.txt are asked for each time a store is opened; everything else is fetched once, whole, checked
against its hash, and kept on disk under the store's layout. Tars leave the cache in the order of their last use when
they would take more than the bound; one that any process of this machine has mapped stays. A loader has them fetched
before they are needed: see `lvm/data/read_ahead.py`.
"""

import hashlib
import os
import random
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from lvm.runtime import UserError, atomic_write, read_json, sha256_file
from lvm.runtime.files import cache_folder, locked
from lvm.store.tar_cache import TarCache, locked_if_free

CACHE_BYTES = 50 * 10**9
BATCH = 512  # files asked for at once
TRIES = 3
PART = 8 << 20  # bytes of a tar that one request asks for
PARTS_AT_ONCE = 4  # requests of one tar under way; what they bring is in memory
REFUSALS = (401, 403, 410)  # HTTP: asking again does not help
# botocore keeps 10 connections, too few for hundreds of small files.
OPTIONS: dict[str, dict[str, Any]] = {"s3": {"config_kwargs": {"max_pool_connections": 64}}}

Answer = TypeVar("Answer")


class Stopped(Exception):
    """The reader is gone that a file was fetched for."""


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
            self._files, self._root = fsspec.core.url_to_fs(self.url, **_options(self.url))
        except (ImportError, ValueError) as error:
            raise UserError(f"{url} cannot be opened ({error})") from None
        info = self.read("store.json")
        if info is None:
            raise UserError(f"{url} is not a complete token store (no store.json); make one with `lvm tokenize`")
        key = hashlib.sha256(self.url.encode() + b"\n" + info).hexdigest()[:16]
        self.tars = TarCache(cache_folder() / "remote", self.bound)
        self.path = self.tars.folder / key
        if not (self.path / "store.json").is_file():
            atomic_write(self.path / "store.json", info)

    def read(self, name: str) -> bytes | None:
        """The bytes of a small file as they are there now; None if there is none."""

        def question() -> bytes | None:
            try:
                return self._files.cat_file(f"{self._root}/{name}")
            except FileNotFoundError:
                return None

        return self._ask(name, question)

    def sizes(self, folder: str) -> dict[str, int | None]:
        """Name -> bytes of the files of a folder, by listing it; None: it does not say. Empty where none can be listed.

        One request for 1,000 names of a bucket.
        """

        def question() -> dict[str, int | None]:
            try:
                listed = self._files.ls(f"{self._root}/{folder}", detail=True, refresh=True)
            except (FileNotFoundError, NotImplementedError):
                return {}
            return {entry["name"].rpartition("/")[2]: entry.get("size") for entry in listed}

        return self._ask(folder, question)

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
                self._ask(names[0], partial(self._get, names, asides))
                for name, aside in zip(names, asides):
                    expected = files[name]
                    if expected is not None and sha256_file(aside) != expected:
                        raise UserError(f"{self.url}/{name} is damaged (its sha256 differs); copy the store anew")
                    os.replace(aside, self.path / name)
            finally:
                for aside in asides:
                    aside.unlink(missing_ok=True)

    def _get(self, names: list[str], asides: list[Path]) -> None:
        try:
            self._files.get([f"{self._root}/{name}" for name in names], [str(aside) for aside in asides])
        except FileNotFoundError:
            gone = (name for name in names if not self._files.exists(f"{self._root}/{name}"))
            raise UserError(f"{self.url}/{next(gone, names[0])} is missing; copy the store anew") from None

    def fetch_parts(self, shards: Sequence[tuple[str, str]], wanted: Callable[[str], bool]) -> None:
        """Bring the wanted files of shards (name and hash of the tar), and their sidecars, which say what there is."""
        self.fetch({f"shards/{name}.json": None for name, _ in shards})
        parts: dict[str, str | None] = {}
        for name, sha256 in shards:
            sidecar = read_json(self.path / "shards" / f"{name}.json")
            if sidecar["sha256"] != sha256:
                raise UserError(f"{self.url}/shards/{name}.json is not the one of store.json; copy the store anew")
            parts |= {file: hash for file, hash in sidecar["files"].items() if wanted(file)}
        self.fetch(parts)

    # Tars.

    def open_tar(self, name: str, size: int, sha256: str, let_go: Callable[[], bool]) -> BinaryIO:
        """A tar of the cache, fetched if need be; it stays there as long as the file, or a map of it, is open.

        `let_go` closes one that the caller has open, where there is no room otherwise; it says whether there was one.
        """
        path = self.path / name
        while (file := self.tars.open(path)) is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(_lock_of(path)):  # one process fetches, the others wait
                if not path.is_file():
                    self._refuse_larger_than_cache(name, size)
                    with self.tars.writing(path, size, let_go) as aside:
                        self._fetch_tar(name, size, sha256, aside)
        return file

    def bring_tar(
        self, name: str, size: int, sha256: str, needed: Collection[Path], stopped: Callable[[], bool]
    ) -> bool:
        """Have a tar in the cache that will be read later; whether it is there.

        Not where another process fetches it now, nor where only `needed` tars, or mapped ones, could leave for it.
        Raises `Stopped` soon after `stopped` says so.
        """
        path = self.path / name
        with locked_if_free(_lock_of(path)) as mine:
            if not mine or path.is_file():
                return mine
            with self.tars.writing_ahead(path, size, needed) as aside:
                if aside is not None:
                    self._fetch_tar(name, size, sha256, aside, stopped)
        return aside is not None

    def _fetch_tar(
        self, name: str, size: int, sha256: str, aside: BinaryIO, stopped: Callable[[], bool] = lambda: False
    ) -> None:
        """Write a tar into the file `aside`, several parts at a time, and check it."""
        starts = range(0, size, PART)
        for first in range(0, len(starts), PARTS_AT_ONCE):
            some = list(starts[first : first + PARTS_AT_ONCE])
            for start, part in zip(some, self._ask(name, partial(self._parts, name, some, size), stopped)):
                aside.seek(start)
                aside.write(part)
        aside.seek(0)
        if hashlib.file_digest(aside, "sha256").hexdigest() != sha256:  # type: ignore[arg-type]
            raise UserError(f"{self.url}/{name} is damaged (its sha256 differs); copy the store anew")

    def _parts(self, name: str, starts: list[int], size: int) -> list[bytes]:
        ends = [min(start + PART, size) for start in starts]
        if len(starts) == 1:
            found = [self._files.cat_file(f"{self._root}/{name}", start=starts[0], end=ends[0])]
        else:
            found = self._files.cat_ranges([f"{self._root}/{name}"] * len(starts), starts, ends)
        parts = []
        for start, end, part in zip(starts, ends, found):
            if isinstance(part, BaseException):
                raise part
            # Some servers of HTTP ignore the range and send the file.
            parts.append(part[start:end] if len(part) == size else part)
        return parts

    def _refuse_larger_than_cache(self, name: str, size: int) -> None:
        if size > self.bound:
            raise UserError(
                f"{self.url}/{name} has {size} bytes and LVM_REMOTE_CACHE_BYTES is {self.bound}; raise it above that"
            )

    def _ask(
        self, name: str, question: "Callable[[], Answer]", stopped: Callable[[], bool] = lambda: False
    ) -> "Answer":
        """Ask the file system; a failure that may pass is tried again, one that stays is the user's to know."""
        for attempt in range(TRIES):
            if stopped():
                raise Stopped
            try:
                return question()
            except UserError:
                raise
            except FileNotFoundError:
                raise UserError(f"{self.url}/{name} is missing; copy the store anew") from None
            except Exception as error:  # each file system has its own
                refused = isinstance(error, PermissionError) or getattr(error, "status", None) in REFUSALS
                if attempt + 1 == TRIES or refused:
                    why = " ".join(str(error).split()) or type(error).__name__
                    times = "" if refused else f" {TRIES} times"
                    raise UserError(
                        f"{self.url}/{name} could not be fetched{times} ({why}); check the network and your credentials"
                    ) from None
            time.sleep(2.0**attempt * random.uniform(0.5, 1.5))  # readers that failed together ask again apart
        raise AssertionError


def _lock_of(path: Path) -> Path:
    return path.with_name(f".lock-{path.name}")


def _options(url: str) -> dict[str, Any]:
    """Of the file system, where the user's own fsspec configuration does not say."""
    import fsspec

    protocol = fsspec.core.split_protocol(url)[0]
    own = fsspec.config.conf.get(protocol, {})
    return {key: value for key, value in OPTIONS.get(protocol, {}).items() if key not in own}
