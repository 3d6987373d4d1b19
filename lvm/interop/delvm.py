"""DeLVM's token files: train.bin, a sentence a line, {"tokens": [5, 0, 17]}; and train.bin.meta beside it.

The meta file is an .npy of int64 [sentences, 2]: the byte where a line starts and the number of its tokens. DeLVM has
neither BOS nor EOS. Its files keep code 0; its trainer takes it for "no target" (internlm/data/collaters.py).
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lvm.interop.token_file import Sentence, broken, make_sentence, require_absent, require_file, token_lines
from lvm.runtime import UserError, atomic_path

if TYPE_CHECKING:
    from jaxtyping import Int64, UInt16


def meta_path(path: Path) -> Path:
    return path.with_name(path.name + ".meta")


def read_delvm(path: str | Path, num_codes: int, tokens_per_picture: int) -> Iterator[Sentence]:
    """The sentences of a train.bin, read line by line. Raises `UserError`, also where the meta file disagrees."""
    path = Path(path)
    require_file(path)
    meta = _load_meta(path)
    row = 0
    for line, start, values in token_lines(path, tokens_per_picture):
        if not isinstance(values, list):
            hint = " (base64 text is the reference's JSONL)" if isinstance(values, str) else ""
            raise broken(path, line, f"its tokens are no list{hint}")
        if not set(map(type, values)) <= {int}:
            raise broken(path, line, "its tokens are not all integers")
        if row >= len(meta) or meta[row].tolist() != [start, len(values)]:
            said = "no such line" if row >= len(meta) else f"byte {meta[row, 0]} with {meta[row, 1]} tokens"
            raise UserError(
                f"{meta_path(path)} row {row}: {said}, but line {line} of {path.name} starts at byte {start} with "
                f"{len(values)} tokens; find the meta file that belongs to it"
            )
        row += 1
        try:
            tokens = np.array(values, np.int64)
        except OverflowError:
            raise broken(path, line, "a token of more than 64 bits") from None
        yield make_sentence(path, line, tokens, num_codes, tokens_per_picture)
    if row < len(meta):
        raise UserError(f"{path} has {row} sentences and {meta_path(path).name} {len(meta)}; copy both files again")


def write_delvm(path: str | Path, sentences: "Iterable[UInt16[np.ndarray, 'p t']]") -> int:
    """Write a new train.bin and its meta file, complete or absent, as DeLVM's script does; how many sentences."""
    path = Path(path)
    require_absent(path)
    require_absent(meta_path(path))
    meta = []
    start = 0
    with atomic_path(path) as aside, atomic_path(meta_path(path)) as meta_aside:
        with open(aside, "wb") as file:
            for codes in sentences:
                meta.append((start, codes.size))
                start += file.write(json.dumps({"tokens": codes.reshape(-1).tolist()}).encode() + b"\n")
        with open(meta_aside, "wb") as file:
            np.save(file, np.array(meta, np.int64).reshape(-1, 2), allow_pickle=False)
    return len(meta)


def _load_meta(path: Path) -> "Int64[np.ndarray, 'sentences 2']":
    meta_file = meta_path(path)
    if not meta_file.is_file():
        raise UserError(f"{meta_file} is missing; DeLVM writes it beside {path.name}, copy both")
    try:
        meta = np.load(meta_file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError):
        raise UserError(f"{meta_file} is no .npy file; copy it again") from None
    if not isinstance(meta, np.ndarray) or meta.dtype.kind not in "iu" or meta.ndim != 2 or meta.shape[1] != 2:
        raise UserError(f"{meta_file} is no table of bytes and lengths, int64 [sentences, 2]; copy it again")
    return meta
