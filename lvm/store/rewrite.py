"""New stores out of old ones, without encoding again: several as one, or one as two.

    merge("runs/all", ["runs/photos", "runs/clips"])
    split("runs/all", "runs/train", "runs/test", share=0.1)

Shards are written anew from the codes of the old ones, so the same stores give the same bytes. Items on an exclude
list are left behind. A new store takes the place of its name only when it is whole.
"""

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.runtime import UserError, atomic_folder, write_json
from lvm.runtime.hashing import seed_from, uniform
from lvm.sources.base import MAX_CHANNELS
from lvm.store.excluding import check_known
from lvm.store.job import finish
from lvm.store.remote import refuse_url
from lvm.store.shard import Record, Shard, write_shard
from lvm.store.store import TokenStore

if TYPE_CHECKING:
    from jaxtyping import Bool, Int64, UInt16

# What becomes one shard: items of some stores, in the order in which they are written.
Part = list[tuple[TokenStore, "Int64[np.ndarray, 'items']"]]

Quarantine = tuple[list[dict[str, Any]], list[dict[str, Any]]]  # what was broken and what was blank in a shard


def merge(out: str | Path, paths: Sequence[str | Path]) -> TokenStore:
    """One store of the items of several, made with one tokenizer: their shards in order, the union of their channels.

    An id that two stores hold under different views becomes one id, in the shard where it comes first.
    Raises `UserError` where they hold the same view of it, for stores of different tokenizers or grids, and where
    `out` exists.
    """
    out = _absent(out)
    stores = [TokenStore(path) for path in paths]
    first = stores[0]
    for store in stores[1:]:
        _check_alike(first, store)
    parts: list[Part] = []
    quarantine: list[Quarantine] = []
    home: dict[str, int] = {}  # id -> part
    for store in stores:
        admitted = store.admitted
        for shard in range(len(store.shards)):
            items = _items_in_order(store, shard, admitted)
            places = np.array([home.setdefault(store.id(i), len(parts)) for i in items.tolist()], np.int64)
            parts.append([])
            for place in np.unique(places).tolist():
                parts[place].append((store, items[places == place]))
            sidecar = store.sidecar(shard)
            quarantine.append((sidecar["broken"], sidecar.get("blank", [])))
    plan: dict[str, Any] = {
        "source": "+".join(dict.fromkeys(store.name for store in stores)),
        "channels": list(dict.fromkeys(channel for store in stores for channel in store.channels)),
        "labels": list(dict.fromkeys(label for store in stores for label in store.labels)),
        "resize": "+".join(dict.fromkeys(store.info["resize"] for store in stores)),
        **_how_encoded(stores),
        "made_by": "merge",
    }
    if len(plan["channels"]) > MAX_CHANNELS:
        raise UserError(f"the stores have {len(plan['channels'])} channels together; a store holds {MAX_CHANNELS}")
    with atomic_folder(out) as aside:
        _write_store(aside, parts, plan, stores, quarantine)
    return TokenStore(out)


def split(
    path: str | Path,
    out_a: str | Path,
    out_b: str | Path,
    share: float | None = None,
    ids: Collection[str] | None = None,
) -> tuple[TokenStore, TokenStore]:
    """Two stores of one: `share` of its groups, or the groups of `ids`, go to `out_b`, the rest to `out_a`.

    No group is on both sides, whatever its views and frames. With a share, the side depends on the group's hash alone,
    in another way than what plans hold out. What could not be read is named by the old store only.
    Raises `UserError` for an id that is not there and where a side would be empty.
    """
    out_a, out_b = _absent(out_a), _absent(out_b)
    if out_a == out_b:
        raise UserError(f"both sides of {path} are to be {out_a}; name two folders")
    store = TokenStore(path)
    if ids is not None:
        found = store.find(ids)
        check_known(store, ids, found, "mend the list")
        to_b = np.isin(store.group, store.group[np.concatenate([np.zeros(0, np.int64), *found.values()])])
        rule = "ids " + hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()
    elif share is not None and 0 < share < 1:
        to_b = uniform(seed_from("split"), store.group) < share
        rule = f"share {share:g}"
    else:
        raise UserError(f"share {share}: must be between 0 and 1")
    sides = [(out_a, ~to_b & store.admitted), (out_b, to_b & store.admitted)]
    for out, mask in sides:
        if not mask.any():
            raise UserError(f"{out} would be empty ({len(np.unique(store.group))} groups in {path}); change the share")
    plan = {
        "source": store.name,
        "channels": list(store.channels),
        "labels": list(store.labels),
        "resize": store.info["resize"],
        **_how_encoded([store]),
    }
    with atomic_folder(out_a) as aside_a, atomic_folder(out_b) as aside_b:
        for aside, (_, mask), side in zip((aside_a, aside_b), sides, "ab"):
            parts = _regrouped(store, mask)
            nothing: list[Quarantine] = [([], [])] * len(parts)
            _write_store(aside, parts, {**plan, "made_by": f"split {side} {rule}"}, [store], nothing)
    return TokenStore(out_a), TokenStore(out_b)


def _how_encoded(stores: Sequence[TokenStore]) -> dict[str, Any]:
    """`precision` and `keep_blank` of all, as `make_plan` has them; blank pictures are there if any store kept them."""
    return {
        "keep_blank": any(store.info.get("keep_blank", True) for store in stores),
        "precision": "+".join(dict.fromkeys(kind for store in stores for kind in store.precision.split("+"))),
    }


def _absent(out: str | Path) -> Path:
    refuse_url(out, "a store is written into", "name one and copy it there")
    if Path(out).exists():
        raise UserError(f"{out} exists; name another folder")
    return Path(out)


def _check_alike(first: TokenStore, store: TokenStore) -> None:
    for what, of in (
        ("tokenizer", lambda store: store.tokenizer_fingerprint[:12]),
        ("grid", lambda store: f"{store.grid[0]} x {store.grid[1]}"),
        ("picture size", lambda store: f"{store.info['size']} px"),
    ):
        if of(first) != of(store):
            raise UserError(
                f"{store.where} has {what} {of(store)}, {first.where} has {of(first)}; tokenize one of them again"
            )


def _items_in_order(
    store: TokenStore, shard: int, admitted: "Bool[np.ndarray, 'items']"
) -> "Int64[np.ndarray, 'admitted']":
    """The items of a shard as their source gave them: by id, then view."""
    items = np.array(store.items_of_shard(shard), np.int64)
    items = items[admitted[items]]
    return items[np.lexsort((store.view[items], store.item[items]))]


def _regrouped(store: TokenStore, mask: "Bool[np.ndarray, 'items']") -> list[Part]:
    """The items of `mask`, neighbouring shards together as long as they are no larger than the store's largest."""
    largest = max(len(store.items_of_shard(shard)) for shard in range(len(store.shards)))
    parts: list[Part] = []
    size = largest
    for shard in range(len(store.shards)):
        items = _items_in_order(store, shard, mask)
        if not len(items):
            continue
        if size + len(items) > largest:
            parts.append([])
            size = 0
        parts[-1].append((store, items))
        size += len(items)
    return parts


def _write_store(
    out: Path,
    parts: list[Part],
    plan: dict[str, Any],
    stores: list[TokenStore],
    quarantine: list[Quarantine],
) -> None:
    units = 0
    for number, (part, (broken, blank)) in enumerate(zip(parts, quarantine)):
        shard = Shard(tuple(plan["channels"]), broken=broken, blank=blank)
        codes = _add_part(shard, part, plan["labels"])
        num_ids = len({record.id for record in shard.items})
        write_shard(out, number, range(units, units + num_ids), shard, codes)
        units += num_ids
    made_from = [store.fingerprint for store in stores]
    parts_of_name = [plan["made_by"], *made_from, *(store.exclusion for store in stores)]
    digest = hashlib.sha256("\n".join(parts_of_name).encode()).hexdigest()
    keys = ("version", "size", "tokenizer", "tokenizer_fingerprint", "num_codes", "grid", "block_pictures")
    common = {key: stores[0].info[key] for key in keys}
    made = {"source_fingerprint": digest, "made_from": made_from, "units": units, "num_shards": len(parts)}
    write_json(out / "plan.json", {**common, **plan, **made})
    finish(out)


def _add_part(shard: Shard, part: Part, labels: list[str]) -> "UInt16[np.ndarray, 'p t']":
    """Register the items of a part; their codes in the order in which `write_shard` expects them."""
    came_from: dict[tuple[str, int], TokenStore] = {}
    alike: dict[str, tuple[TokenStore, int, str]] = {}  # id -> where it was seen first, its group and resize rule
    codes = [np.zeros((0, part[0][0].tokens_per_picture if part else 0), np.uint16)]
    for store, items in part:
        new_bits = [shard.channels.index(channel) for channel in store.channels]
        bit_numbers = np.arange(len(new_bits))
        channel_mask, num_pictures = store.channel_mask, store.num_pictures
        new_label = _new_labels(store, items, labels)
        metas: dict[int, list[dict[str, Any]]] = {}
        pictures: list[tuple[int, int, int]] = []  # item, bit, frame
        for i in items.tolist():
            at = store.shard_of(i)
            if at not in metas:
                metas[at] = store.metas_of_shard(at)
            meta = metas[at][i - store.items_of_shard(at).start] if metas[at] else {}
            strings = dict(store.strings(i))
            id, view, count = strings.pop("id"), int(store.view[i]), int(num_pictures[i])
            other = came_from.setdefault((id, view), store)
            if other is not store:
                raise UserError(
                    f"{id} (view {view}) is both in {other.where} and in {store.where}; exclude it from one"
                )
            first, group, resize = alike.setdefault(id, (store, int(store.group[i]), store.info["resize"]))
            if (group, resize) != (int(store.group[i]), store.info["resize"]):
                raise UserError(
                    f"{id} has another group or resize rule in {first.where} than in {store.where}, so that its views "
                    "do not belong together; exclude it from one"
                )
            # Bits of the old store in the order of the new one's.
            bits = sorted(np.flatnonzero(channel_mask[i] >> bit_numbers & 1).tolist(), key=new_bits.__getitem__)
            record = Record(id, int(store.group[i]), view, int(new_label[store.label[i]]), strings, meta)
            shard.add_record(record, sum(1 << new_bits[bit] for bit in bits), count)
            pictures += [(i, bit, frame) for bit in bits for frame in range(count)]
        codes.append(store.pictures(*np.array(pictures, np.int64).reshape(-1, 3).T))
    return np.concatenate(codes)


def _new_labels(
    store: TokenStore, items: "Int64[np.ndarray, 'items']", labels: list[str]
) -> "Int64[np.ndarray, 'old']":
    """Old label -> its number among `labels`; the last place, which -1 finds, says none."""
    largest = int(store.label[items].max(initial=-1))
    if tuple(labels) == store.labels:
        return np.append(np.arange(largest + 1), -1)
    if largest >= len(store.labels):
        raise UserError(f"{store.where} has class {largest} without a name, which other stores have; tokenize it again")
    return np.append([labels.index(name) for name in store.labels[: largest + 1]], -1).astype(np.int64)
