"""Look at a token store, decoded: lvm inspect STORE --out sheet.png|page.html

lvm inspect STORE --out page.html --originals mixed root=DIR     # beside the pictures it was made of
lvm inspect STORE --out page.html --sentences CONFIG             # and the sentences that training reads from it
"""

import argparse
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lvm.commands._strips import Cell, Row, cell_side, decode, find_tokenizer, sentence_rows, sheet
from lvm.commands.data import open_plan
from lvm.evaluation.report import png
from lvm.runtime import UserError, atomic_path
from lvm.runtime.page import STYLE, section, table
from lvm.sources import BrokenItem, Source, open_source
from lvm.store import TokenStore
from tokenizer import VQGAN

if TYPE_CHECKING:
    from jaxtyping import Int64, UInt8

MAX_CELLS = 12  # on a row; of a clip with several channels fewer frames are shown
MAX_SOURCES = 40  # rows of the table of counts


def shown_channels(store: TokenStore) -> "Int64[np.ndarray, 'items']":
    """Mask of the channels of each item, those of its view 0 included."""
    columns, mask = store.columns(), np.zeros(len(store), np.int64)
    for bit, channel in enumerate(store.channels):
        mask |= columns.has(channel).astype(np.int64) << bit
    return mask


def choose_items(store: TokenStore, rows: int) -> list[int]:
    """Items spread over the store: of each id the view that shows most, of each set of channels as many."""
    masks = shown_channels(store)
    num_shown = np.stack([masks >> bit & 1 for bit in range(len(store.channels))]).sum(0)
    richest = np.argsort(-num_shown, kind="stable")
    _, first = np.unique(store.item[richest], return_index=True)
    items = np.sort(richest[first])
    items = items[store.admitted[items]]
    if not len(items):
        raise UserError(f"every item of {store.where} is on its exclude list; there is nothing to show")
    kinds = np.unique(np.stack([masks[items], store.num_pictures[items] > 1], 1), axis=0, return_inverse=True)[1]
    kinds = kinds.reshape(-1)
    chosen: list[int] = []
    for kind in range(kinds.max() + 1):
        members = items[kinds == kind]
        wanted = max(1, rows * (kind + 1) // (kinds.max() + 1) - rows * kind // (kinds.max() + 1))
        chosen += members[np.unique(np.linspace(0, len(members) - 1, wanted).astype(int))].tolist()
    return chosen


def pictures_of(store: TokenStore, i: int) -> list[tuple[str, int]]:
    """(channel, frame) of every cell of an item's row."""
    mask, count = int(shown_channels(store)[i]), int(store.num_pictures[i])
    channels = [channel for bit, channel in enumerate(store.channels) if mask >> bit & 1]
    frames = np.unique(np.linspace(0, count - 1, min(count, max(2, MAX_CELLS // len(channels)))).astype(int))
    return [(channel, frame) for channel in channels for frame in frames.tolist()]


def item_rows(store: TokenStore, vqgan: VQGAN, rows: int, source: Source | None = None) -> list[Row]:
    """A row an item: every channel decoded from its codes, below its original where `source` is given."""
    items = choose_items(store, rows)
    cells = [pictures_of(store, i) for i in items]
    flat = [(i, store.bit(channel), frame) for i, row in zip(items, cells) for channel, frame in row]
    numbers, bits, frames = (np.array(column) for column in zip(*flat))
    decoded = iter(decode(vqgan, store.pictures(numbers, bits, frames), store.grid))
    units = {} if source is None else {source.unit_id(unit): unit for unit in range(len(source))}
    found = []
    for i, names in zip(items, cells):
        given = originals(source, units, store, i)
        label = store.labels[store.label[i]] if 0 <= store.label[i] < len(store.labels) else ""
        row = []
        for channel, frame in names:
            pictures = given.get(channel)
            name = channel if store.num_pictures[i] == 1 else f"{channel} {frame}"
            row.append(Cell(name, next(decoded), None if pictures is None else pictures[frame]))
        found.append(Row(f"{store.id(i)}  view {store.view[i]}  {label}".rstrip(), row))
    return found


def originals(source: Source | None, units: dict[str, int], store: TokenStore, i: int) -> dict[str, Any]:
    """The pictures of item i by channel, those of its view 0 where the view lacks them; {} where they are gone."""
    if source is None or store.id(i) not in units:
        return {}
    try:
        items = source.read(units[store.id(i)], int(store.info["size"]))
    except BrokenItem:
        return {}
    found: dict[str, Any] = {}
    for view in (0, int(store.view[i])):
        for item in items:
            if item.view == view and item.id == store.id(i):
                found |= item.channels
    return found


def counts(store: TokenStore) -> list[list[Any]]:
    """Pictures by source (the first part of the ids, where there are a few) and channel; a last row of all."""
    first = [store.id(i).split("/")[0] for i in range(len(store))]
    names = sorted(set(first))
    if len(names) > MAX_SOURCES or any("/" not in store.id(i) for i in range(len(store))):
        names, first = [store.name], [store.name] * len(store)
    rows, of = [], np.array(first)
    for name in names:
        here = (of == name) & store.admitted
        pictures = [
            int(store.num_pictures[here & (store.channel_mask >> bit & 1 == 1)].astype(np.int64).sum())
            for bit in range(len(store.channels))
        ]
        rows.append([name, int(here.sum()), *pictures, sum(pictures) * store.tokens_per_picture])
    return [*rows, ["all", *(sum(column) for column in zip(*(row[1:] for row in rows)))]] if len(rows) > 1 else rows


PAGE_STYLE = """
.strip { display: flex; gap: 4px; overflow-x: auto; margin-bottom: 10px; }
figure { margin: 0; } figure img { display: block; margin-bottom: 2px; }
figure img.small { image-rendering: pixelated; }
figcaption { font-size: .75rem; color: var(--soft); }
"""


def page(store: TokenStore, items: Sequence[Row], sentences: Sequence[Row]) -> str:
    """One self-contained page: counts, items, sentences."""
    side = cell_side(items)

    def image(picture: "UInt8[np.ndarray, 'y x 3']") -> str:
        kind = "small" if len(picture) <= side else ""
        return f'<img class="{kind}" width="{side}" height="{side}" alt="" src="{png(picture)}">'

    def strip(row: Row) -> str:
        figures = []
        for cell in row.cells:
            pictures = [picture for picture in (cell.original, cell.decoded) if picture is not None]
            shown = "".join(image(picture) for picture in pictures)
            figures.append(
                f"<figure>{shown}<figcaption>{escape(cell.name)}{' →' if cell.answer else ''}</figcaption></figure>"
            )
        return f'<h3>{escape(row.title)}</h3><div class="strip">{"".join(figures)}</div>'

    titles = ["source", "items", *store.channels, "tokens"]
    cells = [[row[0], *(f"{value:,}" for value in row[1:])] for row in counts(store)]
    beside = any(cell.original is not None for row in items for cell in row.cells)
    above = " Above the original, below what its tokens say." if beside else ""
    body = [
        section("What is in it", "Pictures by source and channel.", table(titles, cells)),
        section("Items", f"Every channel, decoded from its tokens.{above}", *map(strip, items)),
        section("Sentences", "As training reads them; → marks answers.", *map(strip, sentences)),
    ]
    about = f"{len(store):,} items of {store.tokens_per_picture} tokens a picture, {store.where}"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(store.name)}</title><style>{STYLE}{PAGE_STYLE}</style>"
        f'<h1>{escape(store.name)}</h1><p class="soft">{escape(about)}</p>{"".join(body)}</html>'
    )


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("lvm inspect", description=__doc__)
    parser.add_argument("store")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="options of --originals or --sentences")
    parser.add_argument("--out", required=True, help="what to write: a picture (.png) or a page (.html)")
    parser.add_argument("--items", type=int, default=12, help="rows (12)")
    parser.add_argument(
        "--originals", metavar="SOURCE", help="the source, to show its pictures beside the decoded ones"
    )
    parser.add_argument("--sentences", metavar="CONFIG", help="a data config over this store: show its sentences too")
    parser.add_argument("--windows", type=int, default=4, help="of --sentences (4)")
    parser.add_argument("--tokenizer", metavar="NAME_OR_PATH", help="the one the store remembers, if not given")
    arguments = parser.parse_intermixed_args(argv)
    out = Path(arguments.out)
    if out.suffix.lower() not in (".png", ".html"):
        raise UserError(f"--out {out}: give a name that ends in .png or .html")
    if arguments.originals and arguments.sentences and arguments.overrides:
        raise UserError("KEY=VALUE belongs to --originals or to --sentences: put the other's options into its file")
    store = TokenStore(arguments.store)
    vqgan = find_tokenizer(store, arguments.tokenizer)
    source = None
    if arguments.originals:
        source = open_source(arguments.originals, arguments.overrides)
        if source.fingerprint() != store.info["source_fingerprint"]:
            raise UserError(
                f"--originals {arguments.originals} is not what {store.where} was made of; name that source"
            )
    sentences = []
    if arguments.sentences:
        plan = open_plan(arguments.sentences, arguments.overrides)
        shown = [(f"window {w}: ", one) for w in range(arguments.windows) for one in plan.explain(w)]
        sentences = sentence_rows(plan, vqgan, [one for _, one in shown], [title for title, _ in shown])
    items = item_rows(store, vqgan, max(1, arguments.items), source)
    with atomic_path(out) as aside:
        if out.suffix.lower() == ".html":
            aside.write_text(page(store, items, sentences), encoding="utf-8")
        else:
            sheet([*items, *sentences]).save(aside, format="PNG")
    for row in counts(store):
        print("  ".join(f"{value:,}" if isinstance(value, int) else f"{value:<12}" for value in row))
    print(f"{out}: {len(items)} items, {len(sentences)} sentences")
    return 0
