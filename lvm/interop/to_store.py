"""A foreign token file becomes a token store: each sentence an item, its pictures a clip in the channel `image`.

A plan shows such items with the recipe `verbatim` (one entry for each number of pictures), beside any other entry.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from lvm.interop.delvm import read_delvm
from lvm.interop.jsonl import read_jsonl
from lvm.interop.token_file import Sentence, require_file
from lvm.runtime import UserError, atomic_folder, sha256_file, write_json
from lvm.runtime.progress import Progress
from lvm.sources.base import Item
from lvm.store import TokenStore, layout
from lvm.store.job import finish
from lvm.store.shard import Shard, write_shard

CHANNEL = "image"
SHARD_SIZE = 8192  # sentences in a tar: 64 MB of 16 pictures of 256 codes

READERS: dict[str, Callable[[Path, int, int], Iterator[Sentence]]] = {"jsonl": read_jsonl, "delvm": read_delvm}


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer that foreign codes are said to be of: the file itself does not know."""

    name: str  # name or path that the store remembers
    fingerprint: str
    num_codes: int
    grid: tuple[int, int]  # rows and columns of codes of a picture
    resolution: int  # of a picture, in pixels

    @property
    def tokens_per_picture(self) -> int:
        return self.grid[0] * self.grid[1]


def import_tokens(
    file: str | Path, store: str | Path, vocabulary: Vocabulary, format: str = "jsonl", shard_size: int = SHARD_SIZE
) -> TokenStore:
    """The store of a file's sentences, in the order of its lines; complete or absent.

    A store of the same file and tokenizer is opened as it is. Raises `UserError` for a broken line and for a folder
    that holds anything else.
    """
    file, store = Path(file), Path(store)
    require_file(file)
    if shard_size < 1:
        raise UserError(f"shard_size is {shard_size}; use 1 or more")
    fingerprint = hashlib.sha256(f"{format}\n{file.name}\n{sha256_file(file)}".encode()).hexdigest()
    if store.exists():
        return _already(store, file, fingerprint, vocabulary)
    with atomic_folder(store) as aside:
        sentences = READERS[format](file, vocabulary.num_codes, vocabulary.tokens_per_picture)
        units = 0
        with Progress(None, f"import {file.name}, sentences") as progress:
            for number in count():
                part = list(islice(sentences, shard_size))
                if not part:
                    break
                _write_part(aside, number, units, file.name, part)
                units += len(part)
                progress.update(len(part))
        if not units:
            raise UserError(f"{file} holds no sentence; name a file of tokens")
        write_json(aside / "plan.json", plan_of_tokens(file.name, fingerprint, units, shard_size, vocabulary))
        finish(aside)
    return TokenStore(store)


def plan_of_tokens(
    source: str, fingerprint: str, units: int, shard_size: int, vocabulary: Vocabulary
) -> dict[str, Any]:
    """plan.json as of `lvm.store.job.make_plan`, for codes instead of pictures."""
    return {
        "version": layout.VERSION,
        "source": source,
        "source_fingerprint": fingerprint,
        "units": units,
        "shard_size": shard_size,
        "channels": [CHANNEL],
        "labels": [],
        "size": vocabulary.resolution,
        "resize": "none",
        "tokenizer": vocabulary.name,
        "tokenizer_fingerprint": vocabulary.fingerprint,
        "num_codes": vocabulary.num_codes,
        "grid": list(vocabulary.grid),
        "block_pictures": layout.BLOCK_PICTURES,
    }


def _write_part(store: Path, number: int, first: int, name: str, sentences: list[Sentence]) -> None:
    shard = Shard((CHANNEL,))
    codes = []
    for sentence in sentences:
        id = f"{name}:{sentence.line}"
        # A shard takes what stands for pictures as it comes and gives it back in the order of its codes.
        codes += shard.add(Item(id, id, 0, -1, {CHANNEL: sentence.codes}))
    write_shard(store, number, range(first, first + len(sentences)), shard, np.concatenate(codes))


def _already(store: Path, file: Path, fingerprint: str, vocabulary: Vocabulary) -> TokenStore:
    if (store / "store.json").is_file():
        made = TokenStore(store)
        if (made.info["source_fingerprint"], made.tokenizer_fingerprint) == (fingerprint, vocabulary.fingerprint):
            return made
    raise UserError(f"{store} exists and is not {file} under this tokenizer; name another folder")
