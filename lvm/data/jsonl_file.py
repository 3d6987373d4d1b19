"""A JSONL of the reference, a sentence a line, {"tokens": base64 of little-endian int32}: an index, and reads by line.

    file = TokenFile("dataset.jsonl", num_codes=8192)
    file.codes([0, 1, 2])                       # an array for each sentence

A file may be terabytes. It is read once, without decoding, for the place and length of each line and its sha256; what
was found is kept under $LVM_CACHE for a file of this path, size and time. After that only the lines asked for are read.
"""

import binascii
import hashlib
import io
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from lvm.data.base64_codes import NO_CODE, decode_equal
from lvm.runtime import UserError, atomic_path, read_json, write_json
from lvm.runtime.files import cache_folder, locked
from lvm.runtime.progress import Progress
from lvm.store.remote import is_url

if TYPE_CHECKING:
    from jaxtyping import Int, Int32, Int64, UInt16

INDEX_VERSION = 1
BLOCK_BYTES = 8 << 20  # lines that are hashed together, while others are looked at
SHOW_PROGRESS_BYTES = 1 << 30
OPENING, CLOSING = b'{"tokens": "', b'"}\n'
COMPRESSED = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd", "bzip2": b"BZh", "xz": b"\xfd7zXZ"}


class BadLine(ValueError):
    """What is wrong with a line."""


# A line to its codes.


def base64_of(line: bytes) -> bytes:
    """The base64 text of a line; of one with nothing but tokens, as the reference writes it, without parsing JSON."""
    end = len(line) - len(CLOSING)
    plain = line.startswith(OPENING) and line.endswith(CLOSING) and line.find(b'"', len(OPENING)) == end
    if plain and b"\\" not in line:
        return line[len(OPENING) : end]
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise BadLine("not JSON") from None
    if not isinstance(value, dict) or "tokens" not in value:
        raise BadLine('not an object with "tokens"')
    text = value["tokens"]
    if not isinstance(text, str):
        hint = " (a list of numbers is DeLVM's format)" if isinstance(text, list) else ""
        raise BadLine(f"its tokens are no base64 text{hint}")
    return text.encode(errors="replace")  # half of a surrogate pair becomes ?, which is no base64 either


def count_codes(text: bytes) -> int:
    if len(text) % 4:
        raise BadLine("its tokens are no base64")
    size = len(text) // 4 * 3 - text.endswith(b"=") - text.endswith(b"==")
    if size % 4:
        raise BadLine(f"its tokens are {size} bytes, no whole number of int32")
    return size // 4


def decode(text: bytes, num_codes: int) -> "Int32[np.ndarray, 'codes']":
    """Of any text, saying what is wrong with it; `decode_equal` is faster where nothing is."""
    try:
        codes = np.frombuffer(binascii.a2b_base64(text, strict_mode=True), "<i4")
    except ValueError:
        raise BadLine("its tokens are no base64") from None
    unsigned = codes.view("<u4")  # negative codes are large ones
    if unsigned.max(initial=0) >= num_codes:
        at = int(np.argmax(unsigned >= num_codes))
        raise BadLine(f"token {at} is {codes[at]}, the codes are 0..{num_codes - 1} (data.num_codes)")
    return codes


# Bytes of a file, by place.


class LocalFile:
    """Held open: one that is renamed over it changes nothing. Reads by place may come from any thread or fork."""

    def __init__(self, path: str):
        if not Path(path).is_file():
            raise UserError(f"{path} is {'no file' if Path(path).exists() else 'missing'}; use data.jsonl=FILE")
        self.path = path
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        self._state = self._size_and_time()
        self.size = self._state[0]
        self.key = f"{Path(path).resolve()}\n{self._state}"

    def stream(self) -> BinaryIO:
        self._file.seek(0)
        return open(self._file.fileno(), "rb", buffering=1 << 20, closefd=False)

    def read(self, start: int, end: int) -> bytes:
        self.check()
        parts = []
        while start < end and (part := os.pread(self._file.fileno(), end - start, start)):
            parts.append(part)
            start += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def check(self) -> None:
        if self._size_and_time() != self._state:
            raise UserError(f"{self.path} changed while it was read; leave it alone and start again")

    def _size_and_time(self) -> tuple[int, int]:
        stat = os.fstat(self._file.fileno())
        return stat.st_size, stat.st_mtime_ns


class RemoteFile:
    """An address that fsspec opens, read by ranges."""

    def __init__(self, path: str):
        import fsspec

        self.path = path
        try:
            self._files, self._address = fsspec.core.url_to_fs(path)
            self.size = int(self._files.info(self._address)["size"])
            self.key = f"{path}\n{self._files.ukey(self._address)}"
        except FileNotFoundError:
            raise UserError(f"{path} is missing; use data.jsonl=FILE") from None
        except Exception as error:  # each file system has its own
            raise self._failed(error) from None

    def stream(self) -> BinaryIO:
        return cast(BinaryIO, io.BufferedReader(self._files.open(self._address, "rb"), 1 << 20))

    def read(self, start: int, end: int) -> bytes:
        try:
            return self._files.cat_file(self._address, start=start, end=end)
        except Exception as error:
            raise self._failed(error) from None

    def check(self) -> None:
        """Nothing: it would be a request each time."""

    def _failed(self, error: Exception) -> UserError:
        why = " ".join(str(error).split()) or type(error).__name__
        return UserError(f"{self.path} cannot be read ({why}); check the address and your credentials")


# The index.


@dataclass(frozen=True)
class LineIndex:
    """Where the sentences of a file are; blank lines hold none, as for the reference."""

    start: "Int64[np.ndarray, 'sentences+1']"  # byte where the line begins; the last is the size of the file
    codes_before: "Int64[np.ndarray, 'sentences+1']"  # in the sentences before; the last is all
    line: "Int64[np.ndarray, 'sentences+1']"  # number in the file, from 1
    sha256: str  # of the file
    lengths: dict[int, int]  # codes of a sentence -> how many sentences have so many


def open_index(file: LocalFile | RemoteFile) -> LineIndex:
    """The index of a file, made by the first process that asks while others wait. Raises `UserError` for a bad line."""
    key = hashlib.sha256(f"{INDEX_VERSION}\n{file.key}".encode()).hexdigest()[:16]
    folder = cache_folder() / "jsonl" / key
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        if not all((folder / name).is_file() for name in ("lines.int64", "file.json")):
            with atomic_path(folder / "lines.int64") as aside:
                about = make_index(file, aside)
            write_json(folder / "file.json", about)
    about = read_json(folder / "file.json")
    table = np.asarray(np.memmap(folder / "lines.int64", "<i8", "r"))  # a plain array: the [] of a memmap is slow
    start, codes_before, line = table.reshape(-1, 3).T
    lengths = {int(codes): count for codes, count in about["lengths"].items()}
    return LineIndex(start, codes_before, line, about["sha256"], lengths)


def make_index(file: LocalFile | RemoteFile, out: Path) -> dict[str, Any]:
    """Write the rows of a `LineIndex`, int64 [sentences + 1, 3], and return the rest of it."""
    digest, lengths = hashlib.sha256(), Counter[int]()
    place = total = line = 0
    shown = file.size if file.size > SHOW_PROGRESS_BYTES else None
    with (
        file.stream() as stream,
        open(out, "wb") as table,
        ThreadPoolExecutor(1) as hashing,
        Progress(shown, f"index {file.path}, bytes") as progress,
    ):
        while texts := stream.readlines(BLOCK_BYTES):
            if not line:
                _refuse_compressed(file.path, texts[0])
            hashed = hashing.submit(digest.update, b"".join(texts))
            rows = array("q")
            for text in texts:
                line += 1
                if not text.isspace():
                    try:
                        codes = count_codes(base64_of(text))
                    except BadLine as why:
                        raise broken(file.path, line, why) from None
                    rows.extend((place, total, line))
                    lengths[codes] += 1
                    total += codes
                place += len(text)
            table.write(rows)
            hashed.result()
            progress.update(place - progress.done)
        table.write(array("q", (place, total, line + 1)))
    file.check()
    if not total:
        raise UserError(f"{file.path} holds no codes; name a file of tokens with data.jsonl=FILE")
    return {"path": file.path, "bytes": place, "sha256": digest.hexdigest(), "lengths": dict(lengths)}


def _refuse_compressed(path: str, text: bytes) -> None:
    for kind, magic in COMPRESSED.items():
        if text.startswith(magic):
            raise UserError(f"{path} is compressed ({kind}) and would be read from its middle; decompress it first")


def broken(path: str, line: int, why: BadLine) -> UserError:
    return UserError(f"{path} line {line}: {why}; mend or remove that line")


# The file.


class TokenFile:
    """The sentences of a file by number, from 0 in the order of its lines. Raises `UserError` for what it cannot read.

    Opening looks at the length of every line and at the codes of the first one; a code that is none and damaged base64
    in the others are found when they are read.
    """

    def __init__(self, path: str, num_codes: int):
        self.path, self.num_codes = path, num_codes
        self._bytes = RemoteFile(path) if is_url(path) else LocalFile(path)
        self.index = open_index(self._bytes)
        self._last: dict[int, np.ndarray] = {}  # what the last call returned: neighbouring windows share sentences
        self.codes([0])

    def __len__(self) -> int:
        return len(self.index.start) - 1

    def check(self) -> None:
        """Raise `UserError` for a file that changed since it was opened."""
        self._bytes.check()

    def codes(self, sentences: Sequence[int]) -> "list[Int[np.ndarray, 'codes']]":
        found = {sentence: self._last[sentence] for sentence in sentences if sentence in self._last}
        for first, last in _runs(sorted(set(sentences) - found.keys())):
            found |= zip(range(first, last + 1), self._read(first, last))
        self._last = found
        return [found[sentence] for sentence in sentences]

    def _read(self, first: int, last: int) -> "list[Int[np.ndarray, 'codes']]":
        """The codes of sentences first .. last, which are one piece of the file."""
        starts = self.index.start[first : last + 2].tolist()
        counts = np.diff(self.index.codes_before[first : last + 2]).tolist()
        content = self._bytes.read(starts[0], starts[-1])
        lines = [content[start - starts[0] : end - starts[0]] for start, end in pairwise(starts)]
        places: dict[int, list[int]] = {}  # of the lines of equal length, which are decoded together
        for place, count in enumerate(counts):
            places.setdefault(count, []).append(place)
        codes: dict[int, Any] = {}
        for count, here in places.items():
            together = self._decode([lines[place] for place in here], count)
            codes |= zip(
                here, together if together is not None else (self._decode_one(first + p, lines[p]) for p in here)
            )
        return [codes[place] for place in range(len(lines))]

    def _decode(self, lines: list[bytes], count: int) -> "UInt16[np.ndarray, 'lines count'] | None":
        """The codes of lines of `count` each; None if any of them is not as nearly all are."""
        try:
            codes = decode_equal([base64_of(line) for line in lines], count)
        except BadLine:
            return None
        return codes if codes is not None and codes.max() < self.num_codes <= NO_CODE else None

    def _decode_one(self, sentence: int, line: bytes) -> "Int32[np.ndarray, 'codes']":
        number, (before, after) = int(self.index.line[sentence]), self.index.codes_before[sentence : sentence + 2]
        try:
            codes = decode(base64_of(line), self.num_codes)
        except BadLine as why:
            raise broken(self.path, number, why) from None
        if len(codes) != after - before:
            raise UserError(f"{self.path} line {number} changed while it was read; leave it alone and start again")
        return codes

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened_again, (self.path, self.num_codes, self.index.sha256)


def _opened_again(path: str, num_codes: int, sha256: str) -> TokenFile:
    file = TokenFile(path, num_codes)
    if file.index.sha256 != sha256:
        raise UserError(f"{path} changed while it was read; leave it alone and start again")
    return file


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of neighbouring numbers."""
    borders = [place for place in range(1, len(numbers)) if numbers[place] != numbers[place - 1] + 1]
    for first, end in zip([0, *borders], [*borders, len(numbers)]):
        if first < end:
            yield numbers[first], numbers[end - 1]
