"""What the foreign formats share: lines of JSON with `tokens`, and which tokens make a sentence of pictures.

A sentence is uint16 [p, t]: p pictures of t codes each.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.runtime import UserError
from lvm.store.layout import BLOCK_PICTURES

if TYPE_CHECKING:
    from jaxtyping import Int, UInt16

CHARACTERS_PER_TOKEN = 8  # at most: "65535, " in DeLVM's lists, 5.34 in base64


@dataclass(frozen=True)
class Sentence:
    line: int  # in the file, from 1
    codes: "UInt16[np.ndarray, 'p t']"


def broken(path: Path, line: int, why: str) -> UserError:
    return UserError(f"{path} line {line}: {why}; mend or remove that line")


def require_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path} is {'no file' if path.exists() else 'missing'}; name a file of tokens")


def require_absent(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path} exists; remove it or name another file")


def token_lines(path: Path, tokens_per_picture: int) -> Iterator[tuple[int, int, Any]]:
    """(line, byte where it starts, its `tokens` as they stand) of each line that is not blank. Raises `UserError`."""
    require_file(path)
    longest = BLOCK_PICTURES * tokens_per_picture * CHARACTERS_PER_TOKEN + 1024
    line = start = 0
    with open(path, "rb") as file:
        while text := file.readline(longest + 1):
            line += 1
            if len(text) > longest:
                raise broken(path, line, f"longer than a sentence of {BLOCK_PICTURES} pictures")
            if text.strip():
                try:
                    value = json.loads(text)
                except (ValueError, RecursionError):
                    raise broken(path, line, "not JSON") from None
                if not isinstance(value, dict) or "tokens" not in value:
                    raise broken(path, line, 'not an object with "tokens"')
                yield line, start, value["tokens"]
            start += len(text)


def make_sentence(
    path: Path, line: int, tokens: "Int[np.ndarray, 'tokens']", num_codes: int, tokens_per_picture: int
) -> Sentence:
    """Raises `UserError` for tokens that are no codes and for parts of pictures."""
    if len(tokens) == 0 or len(tokens) % tokens_per_picture:
        raise broken(path, line, f"{len(tokens)} tokens are no whole pictures of {tokens_per_picture}")
    pictures = len(tokens) // tokens_per_picture
    if pictures > BLOCK_PICTURES:
        raise broken(path, line, f"{pictures} pictures, more than the {BLOCK_PICTURES} a store takes in one sentence")
    outside = (tokens < 0) | (tokens >= num_codes)
    if outside.any():
        at = int(np.argmax(outside))
        raise broken(path, line, f"token {at} is {tokens[at]}, the tokenizer's codes are 0..{num_codes - 1}")
    return Sentence(line, tokens.astype(np.uint16).reshape(pictures, tokens_per_picture))
