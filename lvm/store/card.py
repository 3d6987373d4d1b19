"""What a store says of itself to people: the rows of `lvm store ls`, and README.md, the card that lies in it."""

from collections import Counter

import numpy as np

from lvm.store.store import TokenStore


def facts(store: TokenStore) -> list[tuple[str, str]]:
    """What is in a store, from its numeric columns alone."""
    info, counts, masks = store.info, store.num_pictures.astype(np.int64), store.channel_mask
    pictures = sum(shard["pictures"] for shard in info["shards"])
    size = sum(shard["bytes"] for shard in info["shards"])
    tokens = pictures * store.tokens_per_picture
    grid = f"{store.grid[0]} x {store.grid[1]} a picture, {size / max(tokens, 1):.2f} bytes each"
    views, groups = len(np.unique(store.view)), len(np.unique(store.group))
    return [
        ("source", f"{store.name} ({info['units']:,} units, {info['size']} px, {info['resize']})"),
        ("items", f"{len(store):,} of {len(np.unique(store.item)):,} ids"),
        ("views", f"{views}, labels {len(store.labels)}, groups {groups:,}"),
        *(
            (channel, f"{int(counts[masks >> bit & 1 == 1].sum()):,} pictures")
            for bit, channel in enumerate(store.channels)
        ),
        ("tokens", f"{tokens:,} ({grid})"),
        ("shards", f"{len(store.shards)}"),
        ("broken", f"{sum(shard['broken'] for shard in info['shards'])}"),
        ("blank", f"{sum(shard.get('blank', 0) for shard in info['shards'])}"),
        ("tokenizer", f"{info['tokenizer'] or '?'} {store.tokenizer_fingerprint[:12]} ({store.num_codes} codes)"),
        ("precision", store.precision),
    ]


def card(store: TokenStore, command: str = "") -> str:
    """README.md of a store: the same for the same store, but for the command that made it. Reads all strings."""
    licences: Counter[str] = Counter()
    for shard in range(len(store.shards)):
        licences.update(strings.get("licence", "not known") for strings in store.strings_of_shard(shard))
    made_by = f"`{command}`" if command else store.info.get("made_by", "")
    rows = [*facts(store), ("tokenizer's fingerprint", store.tokenizer_fingerprint), ("fingerprint", store.fingerprint)]
    rows += [("made by", made_by)] if made_by else []
    by_count = sorted(licences.items(), key=lambda pair: (-pair[1], pair[0]))
    return "\n".join(
        [
            f"# {store.name}",
            "",
            "A token store: pictures as codes of one tokenizer. `lvm inspect STORE --out sheet.png` shows some of it.",
            "",
            *_table(("", ""), rows),
            "",
            *_table(("licence", "ids"), [(licence, f"{count:,}") for licence, count in by_count]),
            "",
        ]
    )


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> list[str]:
    cells = [tuple(" ".join(text.split()).replace("|", "\\|") for text in row) for row in [head, ("---", "---"), *rows]]
    return [f"| {left} | {right} |" for left, right in cells]
