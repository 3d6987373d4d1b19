"""Pictures decoded from their codes, in rows with names below: what `lvm inspect` and `lvm data --out` draw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw

from lvm.evaluation.sheet import enlarge
from lvm.runtime import UserError
from tokenizer import VQGAN, pretrained_names

if TYPE_CHECKING:
    from jaxtyping import UInt8, UInt16

LARGEST = 160  # pixels a side of a shown picture
LINE = 12  # pixels of a line of text
ANSWER = (40, 150, 80)  # under the pictures that answer others


@dataclass(frozen=True)
class Cell:
    name: str
    decoded: "UInt8[np.ndarray, 'y x 3']"
    original: "UInt8[np.ndarray, 'y x 3'] | None" = None
    answer: bool = False


@dataclass(frozen=True)
class Row:
    title: str
    cells: list[Cell]


def decode(vqgan: VQGAN, codes: "UInt16[np.ndarray, 'n t']", grid: tuple[int, int]) -> "UInt8[np.ndarray, 'n y x 3']":
    with torch.inference_mode():
        pixels = [
            vqgan.decode(torch.from_numpy(part.astype(np.int64)), grid) for part in np.array_split(codes, len(codes))
        ]
    return (rearrange(torch.cat(pixels), "n c y x -> n y x c") * 255).round().to(torch.uint8).numpy()


def codes_of(plan: Any, sentence: Mapping[str, Any]) -> "UInt16[np.ndarray, 'n t']":
    """The codes of the pictures of a sentence that `plan.explain` or `plan.samples` names."""
    store, pictures = plan.stores[sentence["source"]], sentence["pictures"]
    items, frames = (np.array([picture[key] for picture in pictures]) for key in ("item", "frame"))
    bits = np.array([store.channels.index(picture["channel"]) for picture in pictures])
    return store.pictures(items, bits, frames)


def sentence_rows(
    plan: Any, vqgan: VQGAN, sentences: Sequence[Mapping[str, Any]], titles: Sequence[str] | None = None
) -> list[Row]:
    """A row for each sentence that `plan.explain` or `plan.samples` names; pictures that a window cuts are whole."""
    for name, store in plan.stores.items():
        if store.tokenizer_fingerprint not in ("", vqgan.fingerprint) or store.num_codes != vqgan.config.num_embeddings:
            raise UserError(
                f"the store of source {name} was not made with this tokenizer; name that one with --tokenizer"
            )
    rows = []
    for sentence, title in zip(sentences, titles or [""] * len(sentences)):
        pictures = sentence["pictures"]
        if not pictures:
            continue
        decoded = decode(vqgan, codes_of(plan, sentence), plan.stores[sentence["source"]].grid)
        cells = [
            Cell(picture["channel"], pixels, answer=picture["role"] == "answer")
            for picture, pixels in zip(pictures, decoded)
        ]
        rows.append(Row(f"{title}{sentence['entry']} ({sentence['recipe']})", cells))
    return rows


def sheet(rows: Sequence[Row]) -> Image.Image:
    """Titles above the rows, names below the cells, originals above what was decoded."""
    side = cell_side(rows)
    tall = [LINE + 4 + (side + 2) * (1 + any(c.original is not None for c in row.cells)) + LINE for row in rows]
    image = Image.new("RGB", (max(len(row.cells) for row in rows) * (side + 4) + 4, sum(tall) + 4), "white")
    pen, top = ImageDraw.Draw(image), 0
    for row, height in zip(rows, tall):
        pen.text((4, top), row.title, fill="black")
        for column, cell in enumerate(row.cells):
            left, y = 4 + column * (side + 4), top + LINE + 4
            for picture in (cell.original, cell.decoded):
                if picture is not None:
                    image.paste(Image.fromarray(enlarge(picture, side)), (left, y))
                    y += side + 2
            pen.text((left, y - 2), cell.name, fill=ANSWER if cell.answer else "gray")
            if cell.answer:
                pen.line((left, y - 1, left + side - 1, y - 1), fill=ANSWER, width=2)
        top += height
    return image


def cell_side(rows: Sequence[Row]) -> int:
    """Whole multiples of small pictures; large ones reduced."""
    pixels = rows[0].cells[0].decoded.shape[0]
    return min(LARGEST, pixels * max(1, 96 // pixels))


def find_tokenizer(store: Any, given: str | None) -> VQGAN:
    """The tokenizer named, else the one the store remembers, else a shipped one of the same fingerprint."""
    for name in [given] if given else [getattr(store, "info", {}).get("tokenizer") or "", *pretrained_names()]:
        if not name or (not given and name not in pretrained_names() and not Path(name).exists()):
            continue
        vqgan = VQGAN.from_pretrained(name)
        if vqgan.fingerprint == store.tokenizer_fingerprint or (given and not store.tokenizer_fingerprint):
            return vqgan
        if given:
            raise UserError(
                f"tokenizer {given} ({vqgan.fingerprint[:12]}) is not the one {store.where} was made with "
                f"({store.tokenizer_fingerprint[:12]}); name that one"
            )
    raise UserError(
        f"the tokenizer of {store.where} ({store.tokenizer_fingerprint[:12]}) is not where it was; give --tokenizer"
    )
