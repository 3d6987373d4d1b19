"""What is written of an answer: a picture of each candidate, a grid of all, the record; complete or absent.

OUT/answer-0.png answer-1.png ...   each candidate (answer-<candidate>-<picture>.png where several pictures follow)
    answer.png                      a copy of the chosen one, where a rule chooses (answer-chosen-<picture>.png)
    grid.png                        the prompt, and beside it a row for each candidate; of a long answer some pictures
    answer.json                     tokens, scores, seed, options
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lvm.inference.decoded import Decoded
from lvm.inference.prompt_files import Asked
from lvm.runtime.errors import UserError
from lvm.runtime.files import atomic_folder, read_json, write_json

if TYPE_CHECKING:
    from jaxtyping import UInt8

GAP = 4  # pixels between the cells of the grid
CELL = 96  # pixels: smaller pictures are enlarged in the grid by a whole factor
LARGEST_CELL = 384  # pixels: pictures of an original size larger than that are shrunk in the grid
MOST_COLUMNS = 64  # of a candidate's pictures in the grid; of more some, evenly spread


@dataclass(frozen=True)
class Answered:
    """A prompt's pictures and its answers', ready to be written."""

    asked: Asked
    shown: "UInt8[np.ndarray, 'n y x 3']"  # the prompt as the tokenizer was given it
    pictures: Decoded
    record: dict[str, Any]  # "chosen" is the number of the chosen candidate, or None
    size: tuple[int, int] | None = None  # width and height that pictures are given back; None: the tokenizer's


def answer_names(num_candidates: int, num_pictures: int) -> list[list[str]]:
    """File names by candidate and picture."""
    if num_pictures == 1:
        return [[f"answer-{c}.png"] for c in range(num_candidates)]
    return [[f"answer-{c}-{n}.png" for n in range(num_pictures)] for c in range(num_candidates)]


def chosen_names(num_pictures: int) -> list[str]:
    return ["answer.png"] if num_pictures == 1 else [f"answer-chosen-{n}.png" for n in range(num_pictures)]


def resized(picture: "UInt8[np.ndarray, 'y x 3']", size: tuple[int, int] | None) -> "UInt8[np.ndarray, 'y x 3']":
    """Stretched to width and height: undoes the squashing of the prompt, in size and aspect."""
    if size is None or size == (picture.shape[1], picture.shape[0]):
        return picture
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def grid_cell(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of a picture in the grid."""
    longer = max(size)
    if longer > LARGEST_CELL:
        return max(1, size[0] * LARGEST_CELL // longer), max(1, size[1] * LARGEST_CELL // longer)
    scale = max(1, -(-CELL // min(size))) if longer < CELL else 1
    return size[0] * scale, size[1] * scale


class Grid:
    """The prompt on the first row, and beside it a row of answers for each candidate; white between them."""

    def __init__(
        self,
        shown: "UInt8[np.ndarray, 'n y x 3']",
        num_candidates: int,
        num_answers: int,
        size: tuple[int, int] | None = None,  # width and height of the pictures that are written
    ):
        columns = np.linspace(0, num_answers - 1, min(num_answers, MOST_COLUMNS)).round().astype(int)
        self._columns = {number: len(shown) + place for place, number in enumerate(columns.tolist())}
        self._num_shown, self._aside = len(shown), 2 * GAP  # more room between prompt and answers
        self._cell = grid_cell(size or (shown.shape[2], shown.shape[1]))
        wide, high = self._cell[0] + GAP, self._cell[1] + GAP
        width = (len(shown) + len(self._columns)) * wide + GAP + self._aside
        self.pixels: np.ndarray = np.full((num_candidates * high + GAP, width, 3), 255, np.uint8)
        for column, picture in enumerate(shown):
            self._put(picture, 0, column)

    def place(self, number: int, candidates: "UInt8[np.ndarray, 'candidates y x 3']") -> None:
        """Picture `number` of the answers, where it is one of those that are shown."""
        if number in self._columns:
            for row, picture in enumerate(candidates):
                self._put(picture, row, self._columns[number])

    def _put(self, picture: "UInt8[np.ndarray, 'y x 3']", row: int, column: int) -> None:
        x, y = self._cell
        left = GAP + column * (x + GAP) + (self._aside if column >= self._num_shown else 0)
        top = GAP + row * (y + GAP)
        self.pixels[top : top + y, left : left + x] = enlarged(picture, self._cell)


def enlarged(picture: "UInt8[np.ndarray, 'y x 3']", cell: tuple[int, int]) -> "UInt8[np.ndarray, 'y x 3']":
    """By a whole factor pixels are repeated, so that codes stay visible as they are."""
    (x, rest_x), (y, rest_y) = divmod(cell[0], picture.shape[1]), divmod(cell[1], picture.shape[0])
    return resized(picture, cell) if rest_x or rest_y or x != y else picture.repeat(y, 0).repeat(x, 1)


def write_folder(answered: Answered, folder: Path, grid: bool) -> None:
    """All files of one answer. An empty folder in its place is taken over. Raises `UserError` for another."""
    pictures, record = answered.pictures, answered.record
    num_candidates, num_pictures = pictures.num_candidates, len(pictures)
    names = answer_names(num_candidates, num_pictures)
    try:
        if folder.is_dir():
            folder.rmdir()
    except OSError:
        raise UserError(f"{folder} was filled while its answer was drawn; name a new folder") from None
    seen = answered.shown[record["pictures_left_out"] :]
    sheet = Grid(seen, num_candidates, num_pictures, answered.size) if grid else None
    with atomic_folder(folder) as aside:
        for number, candidates in enumerate(pictures):
            if sheet is not None:
                sheet.place(number, candidates)
            for row, picture in zip(names, candidates):
                Image.fromarray(resized(picture, answered.size)).save(aside / row[number])
        if record["chosen"] is not None:
            for name, copy in zip(names[record["chosen"]], chosen_names(num_pictures)):
                shutil.copyfile(aside / name, aside / copy)
        if sheet is not None:
            Image.fromarray(sheet.pixels).save(aside / "grid.png")
        write_json(aside / "answer.json", record)


def files_of(record: dict[str, Any], folder: Path) -> list[list[str]]:
    """The paths of an answer's pictures by candidate."""
    return [[str(folder / name) for name in row] for row in record["pictures"]]


def is_complete(folder: Path) -> bool:
    """Whether its record can be read and all pictures that it names are there."""
    record = read_record(folder / "answer.json")
    return record is not None and all((folder / name).is_file() for row in record["pictures"] for name in row)


def read_record(file: Path) -> dict[str, Any] | None:
    """None where there is none, or what is there is damaged."""
    try:
        record = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("pictures"), list) else None


# Where the answers to many prompts lie.


class Folders:
    """A folder for each prompt, named by its id."""

    def __init__(self, out: Path, grid: bool) -> None:
        self.out, self.grid = out, grid

    def is_done(self, asked: Asked) -> bool:
        return is_complete(self.out / asked.id)

    def write(self, answered: Answered) -> None:
        folder = self.out / answered.asked.id
        if (folder / "answer.json").is_file():  # an answer that lost a file
            shutil.rmtree(folder)
        write_folder(answered, folder, self.grid)

    def record(self, asked: Asked) -> dict[str, Any]:
        """As answer.json says, its pictures' paths from `out`."""
        record: dict[str, Any] = read_json(self.out / asked.id / "answer.json")
        return record | {"pictures": [[f"{asked.id}/{name}" for name in row] for row in record["pictures"]]}
