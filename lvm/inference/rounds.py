"""What the engine answered so far to prompts that go beyond the context, so that a killed job goes on where it was.

    FOLDER/<digest of what is asked>.jsonl      a line for each round: a checksum of it and all before, its answers

In a round each rollout is asked once more, for what its window holds. Rounds are replayed as they were, with the same
prompts together; what follows is then to the bit what would have followed, where the arithmetic is the same (kind of
machine, threads, torch). A line that was not written whole, and all after it, is drawn again. Other prompts or options
have another file.
"""

import base64
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lvm.inference.engine import Result
from lvm.inference.rollout import Prompt

VERSION = 1


class Rounds:
    """The rounds of prompts that are answered together by one call; `question` is all that decides the answers beside
    them, in JSON."""

    def __init__(self, folder: Path, question: dict[str, Any], prompts: Sequence[Prompt]):
        digest = hashlib.sha256(json.dumps([VERSION, question], sort_keys=True).encode())
        for prompt in prompts:
            digest.update(repr((prompt.codes.shape, prompt.num_pictures, prompt.tuple_size)).encode())
            digest.update(prompt.codes.astype("<i8").tobytes())
        self.file = folder / f"{digest.hexdigest()[:16]}.jsonl"
        self._stream: BinaryIO | None = None
        self._checksum = 0  # of all lines so far

    def through(self, drawn: Iterator[Result]) -> Iterator[Result]:
        """The answers of the next round: as they were, else as they are drawn; these stand in the file at the end."""
        stream = self._open()
        start = stream.tell()
        found = self._read(stream.readline())
        if found is not None:
            yield from found
            return
        stream.seek(start)
        stream.truncate()
        found = []
        for one in drawn:
            found.append(one)
            yield one
        try:
            stream.write(self._line(found))
            stream.flush()
            os.fsync(stream.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.file)) from None

    def close(self) -> None:
        if self._stream is not None:
            with suppress(OSError):  # what a full disk did not take was said before
                self._stream.close()

    def _open(self) -> BinaryIO:
        if self._stream is None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.touch()
            self._stream = self.file.open("r+b")
        return self._stream

    def _line(self, found: list[Result]) -> bytes:
        answers = [
            [number, len(tokens), _packed(tokens.astype("<i4")), _packed(log_probs.astype("<f4"))]
            for number, tokens, log_probs in found
        ]
        text = json.dumps(answers).encode()
        self._checksum = zlib.crc32(text, self._checksum)
        return b"%08x %s\n" % (self._checksum, text)

    def _read(self, line: bytes) -> list[Result] | None:
        """None where it is not whole, or does not follow the lines before."""
        checksum, _, text = line.partition(b" ")
        expected = zlib.crc32(text[:-1], self._checksum)
        if not text.endswith(b"\n") or checksum != b"%08x" % expected:
            return None
        self._checksum = expected
        return [
            (number, _unpacked(tokens, "<i4", rows).astype(np.int64), _unpacked(log_probs, "<f4", rows))
            for number, rows, tokens, log_probs in json.loads(text)
        ]


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _unpacked(text: str, dtype: str, rows: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype).reshape(rows, -1)
