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
    from jaxtyping import UInt8, UInt16

MAX_FRAMES = 8  # of a clip on a row
LINE = 12  # pixels of a line of text


def choose_items(store: TokenStore, rows: int) -> list[int]:
    """Items spread over the store, clips and pictures alike; of a picture the view that shows most channels."""
    channels = np.stack([store.has(channel) for channel in store.channels]).sum(0)
    chosen: list[int] = []
    kinds = [(store.num_pictures == 1), (store.num_pictures > 1)]
    kinds = [kind for kind in kinds if kind.any()]
    for kind in kinds:
        (candidates,) = np.nonzero(kind & (channels == channels[kind].max()) if kind is kinds[0] else kind)
        spread = np.linspace(0, len(candidates) - 1, max(1, rows // len(kinds))).astype(int)
        chosen += np.unique(candidates[spread]).tolist()
    return chosen


def pictures_of(store: TokenStore, i: int) -> list[tuple[str, int]]:
    """(channel, frame) of every cell of an item's row."""
    frames = np.unique(
        np.linspace(0, store.num_pictures[i] - 1, min(MAX_FRAMES, int(store.num_pictures[i]))).astype(int)
    )
    one = np.array([i])
    return [
        (channel, frame)
        for bit, channel in enumerate(store.channels)
        for frame in frames.tolist()
        if int(store.channel_mask[one[0]]) >> bit & 1
        or (store.base[i] >= 0 and int(store.channel_mask[store.base[i]]) >> bit & 1)
    ]


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
