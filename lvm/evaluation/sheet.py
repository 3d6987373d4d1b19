"""Prompt grids as one labelled PNG: for the README and for a look without a browser."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lvm.evaluation.strips import Cell, Strip
from lvm.evaluation.suite import Grid
from lvm.runtime.files import atomic_path

if TYPE_CHECKING:
    from jaxtyping import UInt8

CELL = 96  # pixels a side of a picture
GAP, HEAD, SIDE = 4, 26, 116
PAPER, INK, SOFT, ANSWER = (255, 255, 255), (30, 30, 30), (110, 110, 110), (217, 130, 43)
LINE = 14  # pixels of a line of text


def enlarge(picture: "UInt8[np.ndarray, 'y x 3']", side: int) -> "UInt8[np.ndarray, 'side side 3']":
    """To `side` x `side`: whole pixels for small pictures, smoothly for the rest."""
    exact = side % picture.shape[0] == 0 and side % picture.shape[1] == 0
    resample = Image.Resampling.NEAREST if exact else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(np.asarray(picture)).resize((side, side), resample))


def draw_sheet(grids: Sequence[Grid], rows_each: int = 2, cell: int = CELL) -> Image.Image:
    """All grids below each other: titles at the left, column names above and where they change."""
    font, bold = ImageFont.load_default(size=13), ImageFont.load_default(size=14)
    columns = max((len(grid.columns) for grid in grids), default=0)
    heights, names = [], None
    for grid in grids:
        heights.append((HEAD if grid.columns != names else GAP) + (cell + GAP) * len(grid.rows[:rows_each]))
        names = grid.columns
    sheet = Image.new("RGB", (SIDE + columns * (cell + GAP) + GAP, sum(heights) + GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    top, names = 0, None
    for grid, height in zip(grids, heights):
        y = top + (HEAD if grid.columns != names else GAP)
        if grid.columns != names:
            for k, name in enumerate(grid.columns):
                pen.text((SIDE + k * (cell + GAP) + cell / 2, y - 6), name, SOFT, font, anchor="ms")
        names = grid.columns
        pen.text((8, y + cell / 2), grid.title.replace(" ", "\n", 1), INK, bold, anchor="lm")
        for row in grid.rows[:rows_each]:
            for k, picture in enumerate(row):
                sheet.paste(Image.fromarray(enlarge(picture, cell)), (SIDE + k * (cell + GAP), y))
            y += cell + GAP
        top += height
    return sheet


def report_sheet(path: str | Path, grids: Sequence[Grid], rows_each: int = 2, cell: int = CELL) -> None:
    """Write `draw_sheet` as a PNG of few colours' worth of bytes, atomically."""
    with atomic_path(path) as aside:
        draw_sheet(grids, rows_each, cell).save(aside, format="PNG", optimize=True)


def strip_sheet(path: str | Path, strips: Sequence[Strip], cell: int = CELL) -> None:
    """Strips below each other, their prompts in half the size above their answers; written atomically."""
    drawn = [draw_strip(strip, cell) for strip in strips]
    width = max((image.width for image in drawn), default=1)
    sheet = Image.new("RGB", (width, max(1, sum(image.height for image in drawn))), PAPER)
    top = 0
    for image in drawn:
        sheet.paste(image, (0, top))
        top += image.height
    with atomic_path(path) as aside:
        sheet.save(aside, format="PNG", optimize=True)


def draw_strip(strip: Strip, cell: int = CELL) -> Image.Image:
    font, bold = ImageFont.load_default(size=11), ImageFont.load_default(size=14)
    rows = [(strip.prompt, cell // 2, 0)] if strip.prompt else []
    rows += [(cells, cell, LINE * (1 + max(len(one.notes) for one in cells))) for cells in strip.rows if cells]
    width = max(4 * cell, *(len(cells) * (side + GAP) for cells, side, _ in rows)) + 2 * GAP
    image = Image.new("RGB", (width, HEAD + sum(side + words + GAP for _, side, words in rows) + GAP), PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((GAP, HEAD / 2), f"{strip.task}: {strip.title}", INK, bold, anchor="lm")
    top = HEAD
    for cells, side, words in rows:
        for k, one in enumerate(cells):
            draw_cell(image, pen, one, (GAP + k * (side + GAP), top), side, font if words else None)
        top += side + words + GAP
    return image


def draw_cell(
    image: Image.Image, pen: ImageDraw.ImageDraw, one: Cell, place: tuple[int, int], side: int, font: Any
) -> None:
    """With its words below, unless there is no font."""
    left, top = place
    image.paste(Image.fromarray(enlarge(one.picture, side)), place)
    if one.answer:
        pen.rectangle((left, top, left + side - 1, top + side - 1), outline=ANSWER, width=2)
    for line, words in enumerate((one.name, *one.notes) if font else ()):
        colour = SOFT if line else INK
        pen.text((left + side / 2, top + side + 2 + line * LINE), words, colour, font, anchor="ma")
