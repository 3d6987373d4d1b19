"""Check or list a token store: lvm store verify|ls STORE"""

import argparse
from collections.abc import Sequence

import numpy as np

from lvm.store import TokenStore, verify


def summary(store: TokenStore) -> str:
    """What is in a store, a few lines for people."""
    counts, masks = store.num_pictures.astype(np.int64), store.channel_mask
    rows = [
        ("source", f"{store.name} ({store.info['units']:,} units, {store.info['size']} px, {store.info['resize']})")
    ]
    rows.append(("items", f"{len(store):,} of {len(np.unique(store.item)):,} ids"))
    rows.append(
        ("views", f"{len(np.unique(store.view))}, labels {len(store.labels)}, groups {len(np.unique(store.group)):,}")
    )
    for bit, channel in enumerate(store.channels):
        rows.append((channel, f"{int(counts[masks >> bit & 1 == 1].sum()):,} pictures"))
    pictures = sum(shard["pictures"] for shard in store.info["shards"])
    size = sum(shard["bytes"] for shard in store.info["shards"])
    tokens = pictures * store.tokens_per_picture
    rows.append(
        ("tokens", f"{tokens:,} ({store.grid[0]} x {store.grid[1]} a picture, {size / max(tokens, 1):.2f} bytes each)")
    )
    rows.append(("shards", f"{len(store.shards)}"))
    rows.append(("broken", f"{sum(shard['broken'] for shard in store.info['shards'])}"))
    rows.append(
        ("tokenizer", f"{store.info['tokenizer'] or '?'} {store.tokenizer_fingerprint[:12]} ({store.num_codes} codes)")
    )
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("lvm store", description=__doc__)
    parser.add_argument("action", choices=["verify", "ls"])
    parser.add_argument("store")
    arguments = parser.parse_args(argv)
    if arguments.action == "verify":
        store = verify(arguments.store)
        print(f"{arguments.store}: {len(store.shards)} shards, {len(store):,} items, all as written")
    else:
        print(summary(TokenStore(arguments.store)))
    return 0
