"""One shard: items and their codes become blocks in a tar, columns of the index, and strings.

The bytes depend on the items and codes alone: no time, owner, name of a machine or order of processes enters.
"""

import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.runtime import atomic_path, atomic_write, sha256_file, write_json
from lvm.runtime.hashing import group_hash
from lvm.sources.base import Item
from lvm.store import layout

if TYPE_CHECKING:
    from jaxtyping import UInt8, UInt16


@dataclass(frozen=True)
class Record:
    """What a store keeps of an item besides its codes."""

    id: str
    group: int  # the group's hash: its name is not kept
    view: int
    label: int
    strings: Mapping[str, str]  # caption, licence and origin, where there is one
    meta: Mapping[str, Any]


@dataclass
class Shard:
    """The items of a shard in the order they were read, and where their codes start."""

    channels: tuple[str, ...]
    items: list[Record] = field(default_factory=list)
    masks: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)  # pictures in a channel of the item
    starts: list[int] = field(default_factory=list)
    num_pictures: int = 0
    broken: list[dict[str, Any]] = field(default_factory=list)
    blank: list[dict[str, Any]] = field(default_factory=list)

    def add(self, item: Item) -> "list[UInt8[np.ndarray, 'n y x 3']]":
        """Register an item; its pictures in the order in which their codes are expected."""
        self.check(item)
        bits = [bit for bit, channel in enumerate(self.channels) if channel in item.channels]
        strings = {"caption": item.caption, "licence": item.licence, "origin": getattr(item, "origin", "")}
        strings = {key: text for key, text in strings.items() if text}
        record = Record(item.id, group_hash(item.group), item.view, item.label, strings, item.meta)
        self.add_record(record, sum(1 << bit for bit in bits), item.num_pictures)
        return [item.channels[self.channels[bit]] for bit in bits]

    def add_record(self, record: Record, mask: int, num_pictures: int) -> None:
        """Register an item whose codes follow: its channels in the order of their bits, each `num_pictures` long."""
        self.items.append(record)
        self.masks.append(mask)
        self.counts.append(num_pictures)
        self.starts.append(self.num_pictures)
        self.num_pictures += mask.bit_count() * num_pictures

    def check(self, item: Item) -> None:
        """Raise `ValueError` for an item that its source did not announce."""
        unknown = set(item.channels) - set(self.channels)
        lengths = {len(pictures) for pictures in item.channels.values()}
        if unknown or len(lengths) != 1 or not 0 < max(lengths) <= layout.BLOCK_PICTURES:
            raise ValueError(
                f"item {item.id!r} has channels {sorted(item.channels)} of {sorted(lengths)} pictures; a source may "
                f"yield {self.channels}, of one length <= {layout.BLOCK_PICTURES} an item"
            )

    def blocks(self) -> list[list[int]]:
        """Items of one channel mask and one number of pictures, at most BLOCK_PICTURES pictures together."""
        kinds: dict[tuple[int, int], list[int]] = {}
        for i, kind in enumerate(zip(self.masks, self.counts)):
            kinds.setdefault(kind, []).append(i)
        cut = []
        for (_, count), members in kinds.items():
            step = layout.BLOCK_PICTURES // count
            cut += [members[i : i + step] for i in range(0, len(members), step)]
        return cut


def write_shard(store: Path, number: int, units: range, shard: Shard, codes: "UInt16[np.ndarray, 'p t']") -> None:
    """Write the shard's files; the sidecar last, which makes the shard exist."""
    name = layout.shard_name(number)
    blocks = shard.blocks()
    block_columns: dict[str, Any] = {
        "block_mask": [shard.masks[block[0]] for block in blocks],
        "block_num_pictures": [shard.counts[block[0]] for block in blocks],
        "block_rows": [len(block) * shard.counts[block[0]] for block in blocks],
        "block_offset": np.full((len(blocks), len(shard.channels)), -1),
    }
    with atomic_path(layout.tar_path(store, name)) as aside:
        with open(aside, "wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for b, block in enumerate(blocks):
                count, first = shard.counts[block[0]], np.array([shard.starts[i] for i in block])
                bits = [bit for bit in range(len(shard.channels)) if shard.masks[block[0]] >> bit & 1]
                members = {}
                for position, bit in enumerate(bits):
                    rows = (first[:, None] + position * count + np.arange(count)).reshape(-1)
                    members[shard.channels[bit]] = codes[rows]
                for channel, offset in layout.write_block(tar, file, b, members).items():
                    block_columns["block_offset"][b, shard.channels.index(channel)] = offset
        tar_bytes, tar_sha256 = aside.stat().st_size, sha256_file(aside)

    ids: dict[str, int] = {}
    for item in shard.items:
        ids.setdefault(item.id, len(ids))
    order = [i for block in blocks for i in block]
    item_columns = {
        "item": [ids[shard.items[i].id] for i in order],
        "view": [shard.items[i].view for i in order],
        "label": [shard.items[i].label for i in order],
        "group": [shard.items[i].group for i in order],
        "block": [b for b, block in enumerate(blocks) for _ in block],
        "row": [row * shard.counts[block[0]] for block in blocks for row in range(len(block))],
    }
    if len(set(zip(item_columns["item"], item_columns["view"]))) != len(order):
        raise ValueError(f"units {units.start}..{units.stop - 1} yield an (id, view) twice")
    hashes = {}
    for dtypes, columns in ((layout.ITEM_COLUMNS, item_columns), (layout.BLOCK_COLUMNS, block_columns)):
        for column, dtype in dtypes.items():
            with atomic_path(layout.column_path(store, name, column)) as aside:
                with open(aside, "wb") as file:
                    np.save(file, np.asarray(columns[column], dtype=dtype), allow_pickle=False)
                hashes[f"index/{name}.{column}.npy"] = sha256_file(aside)

    first_of = {item.id: item for item in reversed(shard.items)}
    lines = [{"id": id, **first_of[id].strings} for id in ids]
    hashes[f"strings/{name}.jsonl"] = write_lines(layout.strings_path(store, name), lines)
    if any(item.meta for item in shard.items):
        metas = [dict(shard.items[i].meta) for i in order]
        hashes[f"strings/{name}.meta.jsonl"] = write_lines(layout.meta_path(store, name), metas)
    write_json(
        layout.sidecar_path(store, name),
        {
            "name": name,
            "bytes": tar_bytes,
            "sha256": tar_sha256,
            "units": [units.start, units.stop],
            "ids": len(ids),
            "items": len(order),
            "blocks": len(blocks),
            "pictures": shard.num_pictures,
            "broken": shard.broken,
            "blank": shard.blank,
            "files": hashes,
        },
    )


def lines_of(values: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(value, sort_keys=True, ensure_ascii=False) + "\n" for value in values)


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> str:
    atomic_write(path, lines_of(lines))
    return sha256_file(path)
