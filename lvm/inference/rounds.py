"""What the engine answered so far to prompts that go beyond the context, so that a killed job goes on where it was.

    FOLDER/<digest of what is asked>.jsonl      a line for each round: its answers, and a checksum

In a round each rollout is asked once more, for what its window holds. Rounds are replayed as they were, with the same
prompts together, so that what follows is to the bit what would have followed; a line that was not written whole, and
all after it, is drawn again. Other prompts or options have another file.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lvm.inference.engine import Result
from lvm.inference.rollout import Prompt


class Rounds:
    """The rounds of prompts that are answered together; `question` is what decides the answers beside them, in JSON."""

    def __init__(self, folder: Path, question: dict[str, Any], prompts: Sequence[Prompt]):
        digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode())
        for prompt in prompts:
            digest.update(repr((prompt.codes.shape, prompt.num_pictures, prompt.tuple_size)).encode())
            digest.update(prompt.codes.astype("<i8").tobytes())
        self.file = folder / f"{digest.hexdigest()[:16]}.jsonl"
        self._stream: BinaryIO | None = None

    def through(self, drawn: Iterator[Result]) -> Iterator[Result]:
        """The answers of the next round: as they were, else as they are drawn; these stand in the file at the end."""
        stream = self._open()
        start = stream.tell()
        found = _read(stream.readline())
        if found is not None:
            yield from found
            return
        stream.seek(start)
        stream.truncate()
        found = []
        for one in drawn:
            found.append(one)
            yield one
        stream.write(_line(found))
        stream.flush()
        os.fsync(stream.fileno())

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _open(self) -> BinaryIO:
        if self._stream is None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.touch()
            self._stream = self.file.open("r+b")
        return self._stream


def _line(found: list[Result]) -> bytes:
    answers = [[number, tokens.tolist(), log_probs.astype(float).tolist()] for number, tokens, log_probs in found]
    text = json.dumps(answers, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _read(line: bytes) -> list[Result] | None:
    """None where it is not whole."""
    checksum, _, text = line.partition(b" ")
    if not text.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text[:-1]):
        return None
    return [
        (number, np.array(tokens, np.int64), np.array(log_probs, np.float32))
        for number, tokens, log_probs in json.loads(text)
    ]
