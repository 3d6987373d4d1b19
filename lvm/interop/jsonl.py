"""The reference's token files: JSONL, a sentence a line, {"tokens": base64 of little-endian int32}.

The files hold codes alone. Its trainer (EasyLM/data.py) puts BOS and EOS round each line where it is told to:
--text_processor.fields='<|8192|>,{tokens},<|8193|>'.
"""

import base64
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lvm.interop.token_file import Sentence, broken, make_sentence, require_absent, token_lines
from lvm.runtime import atomic_path

if TYPE_CHECKING:
    from jaxtyping import UInt16


def read_jsonl(path: str | Path, num_codes: int, tokens_per_picture: int) -> Iterator[Sentence]:
    """The sentences of a file, read line by line; blank lines are skipped, as by the reference. Raises `UserError`."""
    path = Path(path)
    for line, _, text in token_lines(path, tokens_per_picture):
        if not isinstance(text, str):
            hint = " (a list of numbers is DeLVM's format)" if isinstance(text, list) else ""
            raise broken(path, line, f"its tokens are no base64 text{hint}")
        try:
            raw = base64.b64decode(text, validate=True)
        except ValueError:
            raise broken(path, line, "its tokens are no base64") from None
        if len(raw) % 4:
            raise broken(path, line, f"its tokens are {len(raw)} bytes, no whole number of int32")
        yield make_sentence(path, line, np.frombuffer(raw, "<i4"), num_codes, tokens_per_picture)


def write_jsonl(path: str | Path, sentences: "Iterable[UInt16[np.ndarray, 'p t']]") -> int:
    """Write a new file, complete or absent, byte for byte as the reference's scripts do; how many sentences."""
    path = Path(path)
    require_absent(path)
    count = 0
    with atomic_path(path) as aside, open(aside, "wb") as file:
        for codes in sentences:
            text = base64.b64encode(np.ascontiguousarray(codes, "<i4").tobytes()).decode()
            file.write(json.dumps({"tokens": text}).encode() + b"\n")
            count += 1
    return count
