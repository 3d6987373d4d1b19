"""Where things lie in a token store, and the bytes of a shard.

    store.json              what the store holds; derived from the sidecars once all shards are complete
    plan.json               what every job must agree on; frozen by the first
    README.md               a card for people: counts, licences, the command that made the store
    quarantine.jsonl        what was left out, broken or blank, and why
    exclude.txt             ids taken down, one a line: no reader shows them (`lvm store exclude`)
    shards/00000.tar        ustar, uncompressed; members b0000.image.npy: uint16 [pictures <= 2048, t]
    shards/00000.json       sidecar, written last: a shard without one does not exist
    index/00000.item.npy    one column a file, one row an item (24 bytes an item together); see ITEM_COLUMNS
    index/00000.block_*.npy one row a block
    strings/00000.jsonl     ids, captions, licences, origins; strings/00000.meta.jsonl: metadata of items

Items are numbered in the order of their pictures in the tars, so a range of items is a range of bytes.
"""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from lvm.runtime import UserError

if TYPE_CHECKING:
    from jaxtyping import UInt16

VERSION = 1
BLOCK_PICTURES = 2048

ITEM_COLUMNS: dict[str, Any] = {
    "item": np.uint32,  # number of the id within the shard
    "view": np.uint16,
    "label": np.int32,
    "group": np.uint64,
    "block": np.uint32,  # number of the block within the shard
    "row": np.uint16,  # of the item's first picture in its block
}
BLOCK_COLUMNS: dict[str, Any] = {
    "block_mask": np.int64,  # bit c: channel c is there
    "block_num_pictures": np.uint16,  # of each item of the block
    "block_rows": np.uint16,
    "block_offset": np.int64,  # [blocks, channels]: byte in the tar where the codes of the member start; -1 absent
}


def shard_name(shard: int) -> str:
    return f"{shard:05d}"


def tar_path(store: Path, name: str) -> Path:
    return store / "shards" / f"{name}.tar"


def sidecar_path(store: Path, name: str) -> Path:
    return store / "shards" / f"{name}.json"


def column_path(store: Path, name: str, column: str) -> Path:
    return store / "index" / f"{name}.{column}.npy"


def strings_path(store: Path, name: str) -> Path:
    return store / "strings" / f"{name}.jsonl"


def meta_path(store: Path, name: str) -> Path:
    return store / "strings" / f"{name}.meta.jsonl"


def exclude_path(store: Path) -> Path:
    return store / "exclude.txt"


def card_path(store: Path) -> Path:
    return store / "README.md"


def member_name(block: int, channel: str) -> str:
    return f"b{block:04d}.{channel}.npy"


def write_block(
    tar: tarfile.TarFile, file: BinaryIO, block: int, members: "Mapping[str, UInt16[np.ndarray, 'p t']]"
) -> dict[str, int]:
    """Append one webdataset sample; the byte at which each channel's codes start in `file`."""
    offsets = {}
    for channel, codes in members.items():
        content = io.BytesIO()
        np.save(content, np.ascontiguousarray(codes, dtype="<u2"), allow_pickle=False)
        header = tarfile.TarInfo(member_name(block, channel))
        header.size = len(content.getbuffer())
        header.mode = 0o644  # mtime, uid and gid are 0 already
        content.seek(0)
        tar.addfile(header, content)
        padding = -header.size % tarfile.BLOCKSIZE
        offsets[channel] = file.tell() - padding - codes.size * 2
    return offsets


def load_column(store: Path, name: str, column: str) -> np.ndarray:
    """Memory-mapped; a plain ndarray, because np.memmap's own indexing is several times slower."""
    path = column_path(store, name, column)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run `lvm store verify {store}`") from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); remove shard {name} and tokenize again") from None
