"""Look at a token store, decoded: lvm inspect STORE --out sheet.png"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw

from lvm.runtime import UserError, atomic_path
from lvm.store import TokenStore
from tokenizer import VQGAN, pretrained_names

if TYPE_CHECKING:
    from jaxtyping import Int64, UInt8, UInt16

MAX_CELLS = 12  # on a row; of a clip with several channels fewer frames are shown
LINE = 12  # pixels of a line of text


def shown_channels(store: TokenStore) -> "Int64[np.ndarray, 'items']":
    """Mask of the channels of each item, those of its view 0 included."""
    return store.channel_mask | np.where(store.base >= 0, store.channel_mask[store.base], 0)


def choose_items(store: TokenStore, rows: int) -> list[int]:
    """Items spread over the store: of each id the view that shows most, of each set of channels as many."""
    masks = shown_channels(store)
    num_shown = np.stack([masks >> bit & 1 for bit in range(len(store.channels))]).sum(0)
    richest = np.argsort(-num_shown, kind="stable")
    _, first = np.unique(store.item[richest], return_index=True)
    items = np.sort(richest[first])
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


def decode(vqgan: VQGAN, codes: "UInt16[np.ndarray, 'n t']", grid: tuple[int, int]) -> "UInt8[np.ndarray, 'n y x 3']":
    with torch.inference_mode():
        pixels = [
            vqgan.decode(torch.from_numpy(part.astype(np.int64)), grid) for part in np.array_split(codes, len(codes))
        ]
    return (rearrange(torch.cat(pixels), "n c y x -> n y x c") * 255).round().to(torch.uint8).numpy()


def sheet(store: TokenStore, vqgan: VQGAN, rows: int) -> Image.Image:
    """One row an item: its name above, every channel decoded from its codes, named below."""
    items = choose_items(store, rows)
    cells = [pictures_of(store, i) for i in items]
    flat = [(i, store.bit(channel), frame) for i, row in zip(items, cells) for channel, frame in row]
    numbers, bits, frames = (np.array(column) for column in zip(*flat))
    decoded = decode(vqgan, store.pictures(numbers, bits, frames), store.grid)
    zoom = max(1, 96 // decoded.shape[1])
    side = decoded.shape[1] * zoom
    height = side + 2 * LINE + 6
    image = Image.new("RGB", (max(len(row) for row in cells) * (side + 4) + 4, len(items) * height), "white")
    pen, start = ImageDraw.Draw(image), 0
    for row, (i, names) in enumerate(zip(items, cells)):
        label = store.labels[store.label[i]] if 0 <= store.label[i] < len(store.labels) else ""
        pen.text((4, row * height), f"{store.id(i)}  view {store.view[i]}  {label}", fill="black")
        for column, (channel, frame) in enumerate(names):
            picture = Image.fromarray(decoded[start]).resize((side, side), Image.Resampling.NEAREST)
            left, top = 4 + column * (side + 4), row * height + LINE + 2
            image.paste(picture, (left, top))
            pen.text((left, top + side), channel if store.num_pictures[i] == 1 else f"{channel} {frame}", fill="gray")
            start += 1
    return image


def find_tokenizer(store: TokenStore, given: str | None) -> VQGAN:
    """The tokenizer named, else the one the store remembers, else a shipped one of the same fingerprint."""
    for name in [given] if given else [store.info.get("tokenizer") or "", *pretrained_names()]:
        if not name or (not given and name not in pretrained_names() and not Path(name).exists()):
            continue
        vqgan = VQGAN.from_pretrained(name)
        if vqgan.fingerprint == store.tokenizer_fingerprint:
            return vqgan
        if given:
            raise UserError(
                f"tokenizer {given} ({vqgan.fingerprint[:12]}) is not the one {store.path} was made with "
                f"({store.tokenizer_fingerprint[:12]}); name that one"
            )
    raise UserError(
        f"the tokenizer of {store.path} ({store.tokenizer_fingerprint[:12]}) is not where it was; give --tokenizer"
    )


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("lvm inspect", description=__doc__)
    parser.add_argument("store")
    parser.add_argument("--out", required=True, help="picture to write (.png)")
    parser.add_argument("--items", type=int, default=12, help="rows (12)")
    parser.add_argument("--tokenizer", metavar="NAME_OR_PATH", help="the one the store remembers, if not given")
    arguments = parser.parse_args(argv)
    out = Path(arguments.out)
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: give a name that ends in .png")
    store = TokenStore(arguments.store)
    image = sheet(store, find_tokenizer(store, arguments.tokenizer), max(1, arguments.items))
    with atomic_path(out) as aside:
        image.save(aside, format="PNG")
    print(f"{out}: {image.width} x {image.height} pixels")
    return 0
