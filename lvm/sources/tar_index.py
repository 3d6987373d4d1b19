"""Where the files of a tar lie, found by its headers alone: bodies are passed over, locally and through fsspec.

    index of photos-0001.tar      000000001  jpg 512 48213, json 49664 731, seg.png 51200 2044
                                  000000002  ...

It is kept in the cache under the tar's path, size and time of change. Names in a tar are only ids: nothing is ever
written under them. What lies before a damaged place is used, and the damage is told.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from lvm.runtime import UserError
from lvm.sources.remembering import remember, remembered

# Part of a remembered index's name: raise it when the same tar gives another index.
INDEX_VERSION = 1

BLOCK = 512
MAX_EXTENSION = 2**20  # bytes of a long name or of extended headers

Members = dict[str, tuple[int, int]]  # suffix, as jpg or seg.png -> first byte, number of bytes


class TarDamage(Exception):
    """Why a tar cannot be read on."""


@dataclass(frozen=True)
class TarSummary:
    path: str
    place: str  # of the whole index, in the cache
    num_samples: int
    suffixes: tuple[str, ...]
    damage: str  # "" if it was read to its end
    digest: str  # of the whole index
    stamp: tuple[Any, ...] = ()  # of the tar when it was summarised

    def check(self) -> None:
        """Raises `TarDamage` for a tar of this machine that was written anew since."""
        if not is_remote(self.path) and tuple(_stamp(self.path)) != self.stamp:
            raise TarDamage("has changed since it was listed")


# Files here and elsewhere.


def is_remote(path: str) -> bool:
    return "://" in path


def file_system(path: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it. Raises `UserError`."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise UserError(f"{path} cannot be opened ({error})") from None


def out_of_reach(path: str, error: Exception) -> UserError:
    """A network that fails says nothing about the data: no reason to quarantine them."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{path} cannot be reached ({reason}); the same command continues")


def read_ranges(path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """(first byte, number of bytes) each. Raises `OSError`, or `UserError` for a network that fails."""
    if is_remote(path):
        system, inside = file_system(path)
        try:
            starts, ends = [start for start, _ in ranges], [start + size for start, size in ranges]
            return system.cat_ranges([inside] * len(ranges), starts, ends, on_error="raise")
        except FileNotFoundError:
            raise
        except Exception as error:
            raise out_of_reach(path, error) from None
    with open(path, "rb") as file:
        parts = []
        for start, size in ranges:
            file.seek(start)
            parts.append(file.read(size))
        return parts


# Headers.


def tar_members(file: BinaryIO, total: int) -> Iterator[tuple[str, int, int]]:
    """(name, first byte, number of bytes) of each regular file of a tar of `total` bytes. Raises `TarDamage`."""
    offset = 0
    extended: dict[str, str] = {}  # path and size for the next member
    while True:
        file.seek(offset)
        block = file.read(BLOCK)
        if offset == 0 and block[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5"):
            raise TarDamage("is compressed; unpack it into a plain tar, which can be read at any place")
        if len(block) < BLOCK:
            raise TarDamage("is empty" if offset == 0 == len(block) else f"is torn at byte {offset:,}")
        if not any(block):
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
            size = int(extended.get("size", info.size))
        except (tarfile.HeaderError, ValueError):
            raise TarDamage("is not a tar" if offset == 0 else f"has a damaged header at byte {offset:,}") from None
        body = offset + BLOCK
        if info.type == tarfile.GNUTYPE_SPARSE:
            raise TarDamage(f"holds a sparse file at byte {offset:,}, which is not read")
        if not (info.isreg() or info.type not in tarfile.SUPPORTED_TYPES or info.type in _EXTENSIONS):
            size = 0  # folders and links have no body
        if size < 0 or body + size > total:
            raise TarDamage(f"is torn within {extended.get('path', info.name)[:200]!r} at byte {offset:,}")
        if info.type in _EXTENSIONS:
            if size > MAX_EXTENSION:
                raise TarDamage(f"has a damaged header at byte {offset:,}")
            extended |= _extension(info.type, file.read(size), offset)
        else:
            if info.isreg():
                yield extended.get("path", info.name), body, size
            extended = {}
        offset = body + -(-size // BLOCK) * BLOCK


_EXTENSIONS = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE, *tarfile.GNU_TYPES[:2])


def _extension(kind: bytes, body: bytes, offset: int) -> dict[str, str]:
    """What a long name or an extended header says of the member that follows: path and size."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": body.split(b"\0")[0].decode("utf-8", "replace")}
    fields = {}
    if kind in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
        try:
            while body.strip(b"\0"):
                digits = body[: body.index(b" ")]
                record, body = body[len(digits) + 1 : int(digits) - 1], body[max(1, int(digits)) :]
                key, _, value = record.partition(b"=")
                fields[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        except ValueError:
            raise TarDamage(f"has a damaged header at byte {offset:,}") from None
    return {key: fields[key] for key in ("path", "size") if key in fields}


# The index.


def find_samples(members: Iterator[tuple[str, int, int]]) -> tuple[dict[str, Members], str]:
    """Files of the same path up to the first dot of their name are a sample (of two of one name the later counts, as in
    a tar that was added to); and what ended the reading too early."""
    samples: dict[str, Members] = {}
    damage = ""
    try:
        for name, offset, size in members:
            folder, slash, file = name.removeprefix("./").rpartition("/")
            stem, dot, suffix = file.partition(".")
            if stem and dot:
                samples.setdefault(folder + slash + stem, {})[suffix.lower()] = (offset, size)
    except TarDamage as reason:
        damage = str(reason)
    return samples, damage


def read_index(path: str) -> tuple[list[tuple[str, Members]], str]:
    """All samples of a tar, and its damage. Raises `UserError` for a network that fails."""
    try:
        if is_remote(path):
            system, inside = file_system(path)
            with system.open(inside, "rb") as file:
                samples, damage = find_samples(tar_members(file, system.info(inside)["size"]))
        else:
            with open(path, "rb") as file:
                samples, damage = find_samples(tar_members(file, Path(path).stat().st_size))
    except OSError as error:
        if is_remote(path) and not isinstance(error, FileNotFoundError):
            raise out_of_reach(path, error) from None
        samples, damage = {}, "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
    except UserError:
        raise
    except Exception as error:
        if not is_remote(path):
            raise
        raise out_of_reach(path, error) from None
    return list(samples.items()), damage


def _stamp(path: str) -> list[Any]:
    """What changes when the file does; [] if it cannot be asked."""
    if not is_remote(path):
        try:
            found = Path(path).stat()
        except OSError:
            return []
        return [str(Path(path).absolute()), found.st_size, found.st_mtime_ns]
    system, inside = file_system(path)
    try:
        info = system.info(inside)
    except FileNotFoundError:
        return []
    except Exception as error:
        raise out_of_reach(path, error) from None
    changed = [str(info[key]) for key in ("mtime", "LastModified", "last_modified", "created", "ETag") if key in info]
    return [path, info.get("size"), *changed]


def summarise(path: str) -> TarSummary:
    """From the cache where the tar has not changed since, else by reading its headers."""
    stamp = _stamp(path)
    place = remembered("tar-index", [INDEX_VERSION, path, *stamp])
    try:
        with open(place) as file:
            num_samples, suffixes, damage, digest = json.loads(file.readline())
        return TarSummary(path, str(place), num_samples, tuple(suffixes), damage, digest, tuple(stamp))
    except (OSError, ValueError, TypeError):
        return replace(_write_index(path, place)[0], stamp=tuple(stamp))


def load_samples(summary: TarSummary) -> list[tuple[str, Members]]:
    """Raises `TarDamage` for a tar that has changed since it was summarised."""
    try:
        with open(summary.place) as file:
            file.readline()
            text = file.readline()
        if hashlib.sha256(text.encode()).hexdigest() == summary.digest:
            return json.loads(text)
    except (OSError, UnicodeDecodeError):
        pass
    again, samples = _write_index(summary.path, Path(summary.place))  # the cache was lost, or is another machine's
    if again.digest != summary.digest:
        raise TarDamage("has changed while it was read")
    return samples


def _write_index(path: str, place: Path) -> tuple[TarSummary, list[tuple[str, Members]]]:
    samples, damage = read_index(path)
    text = json.dumps(samples) + "\n"
    suffixes = tuple(sorted({suffix for _, members in samples for suffix in members}))
    digest = hashlib.sha256(text.encode()).hexdigest()
    if not damage.startswith(("does not exist", "cannot be read")):  # which may pass
        remember(place, json.dumps([len(samples), suffixes, damage, digest]) + "\n" + text)
    return TarSummary(path, str(place), len(samples), suffixes, damage, digest), samples
