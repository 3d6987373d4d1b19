"""RAVEN, I-RAVEN, RAVEN-FAIR and PGM: a .npz for each matrix, in folders by kind.

    RAVEN-10000/center_single/RAVEN_8_test.npz             image [16, 160, 160] uint8, target: number of the right one
    RAVEN-10000/distribute_four/RAVEN_18_test.npz          of images 8..15; images 0..7 are the panels that are given
    neutral/PGM_neutral_test_0.npz                         PGM; image [409600] or [160, 160, 16] read as [16, 160, 160]

Only files of the test split are read (of names with `_test`), all where none is called so. The rules of a matrix lie in
arrays that only code could unpack: its kind here is its folder. RAVEN's own choices can be told without the matrix (Hu
et al., 2021): prefer I-RAVEN or RAVEN-FAIR.
"""

import hashlib
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lvm.evaluation.annotated import Remembered
from lvm.runtime import UserError
from lvm.sources.base import BrokenItem
from lvm.world.puzzle_pictures import BLANK, LINE

if TYPE_CHECKING:
    from jaxtyping import UInt8

    from lvm.evaluation.cases import Picture

SIDE = 160  # pixels of a panel
NUM_CHOICES = 8
MAX_BYTES = 2**22  # of a file, unpacked; 16 panels are 400 KiB
TREE = "FOLDER/KIND/NAME_test.npz with arrays image [16, 160, 160] and target"


class RavenMatrices:
    """See the head of this file, and `lvm.evaluation.matrices.Matrices`. Raises `UserError`."""

    channels: tuple[str, ...] = ("image", "solution")

    def __init__(self, folder: Path, size: int):
        files = sorted(folder.glob("**/*.npz"))
        self.files = [file for file in files if "_test" in file.stem] or files
        if not self.files:
            raise UserError(f"{folder} has no .npz below it; expected {TREE}")
        self.name, self._size = folder.resolve().name, size
        self.ids = [file.relative_to(folder).with_suffix("").as_posix() for file in self.files]
        self.groups = self.ids
        self.labels = [file.parent.name for file in self.files]
        self._kept = Remembered()

    def __len__(self) -> int:
        return len(self.files)

    def has(self, i: int, channel: str) -> bool:
        return channel in self.channels

    def may_ask(self, i: int) -> bool:
        return True

    def views(self, i: int) -> Sequence[int]:
        return (0,)

    def _matrix(self, i: int) -> "tuple[UInt8[np.ndarray, '16 160 160'], int]":
        found: tuple[np.ndarray, int] = self._kept(i, lambda: read_matrix(self.files[i]))
        return found

    def read(self, i: int, view: int, channels: Collection[str] | None = None) -> "Mapping[str, Picture]":
        given, right = self._matrix(i)
        filled = [*given[:8], given[8 + right]]
        return {"image": draw_matrix([*given[:8], None], self._size), "solution": draw_matrix(filled, self._size)}

    def right_choice(self, i: int) -> int:
        return self._matrix(i)[1]

    def panels(self, i: int) -> "UInt8[np.ndarray, '9 y x 3']":
        given, right = self._matrix(i)
        return np.stack([draw_panel(panel, self._size) for panel in (*given[:8], given[8 + right])])

    def choices(self, i: int) -> "UInt8[np.ndarray, '8 y x 3']":
        return np.stack([draw_panel(panel, self._size) for panel in self._matrix(i)[0][8:]])

    def filled(self, i: int) -> "UInt8[np.ndarray, '8 y x 3']":
        given, _ = self._matrix(i)
        return np.stack([draw_matrix([*given[:8], choice], self._size) for choice in given[8:]])

    def fingerprint(self) -> str:
        names = "\n".join(f"{name} {file.stat().st_size}" for name, file in zip(self.ids, self.files))
        return f"{hashlib.sha256(names.encode()).hexdigest()} {self._size}"


def read_matrix(file: Path) -> "tuple[UInt8[np.ndarray, '16 160 160'], int]":
    """Panels and choices, and the number of the right choice. Raises `BrokenItem`; never unpickles."""
    try:
        with zipfile.ZipFile(file) as archive:  # unpacked sizes, so that no small file becomes a large array
            if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
                raise ValueError(f"holds more than {MAX_BYTES} bytes")
        with np.load(file, allow_pickle=False) as arrays:
            lacking = [name for name in ("image", "target") if name not in arrays.files]
            if lacking:
                raise ValueError(f"has no array {lacking[0]}")
            image, target = arrays["image"], arrays["target"]
        if image.dtype != np.uint8 or image.size != 16 * SIDE**2:
            raise ValueError(f"image is {image.dtype} {list(image.shape)}, not uint8 [16, {SIDE}, {SIDE}]")
        right = int(target.reshape(-1)[0]) if target.size == 1 and target.dtype.kind in "iu" else -1
        if not 0 <= right < NUM_CHOICES:
            raise ValueError("target is no number from 0 to 7")
    except Exception as error:  # a damaged archive raises a dozen types from zipfile, zlib and numpy
        raise BrokenItem(str(file), f"{error}; expected {TREE}") from None
    return image.reshape(16, SIDE, SIDE), right


def draw_panel(panel: "UInt8[np.ndarray, 'y x']", size: int) -> "UInt8[np.ndarray, 'size size 3']":
    return np.asarray(Image.fromarray(panel).resize((size, size), Image.Resampling.BOX).convert("RGB"))


def draw_matrix(cells: "Sequence[UInt8[np.ndarray, 'y x'] | None]", size: int) -> "UInt8[np.ndarray, 'size size 3']":
    """Nine cells with lines between them, at full size and then made smaller; None is a blank cell."""
    canvas = np.empty((3 * SIDE, 3 * SIDE, 3), np.uint8)
    for k, cell in enumerate(cells):
        top, left = SIDE * (k // 3), SIDE * (k % 3)
        canvas[top : top + SIDE, left : left + SIDE] = BLANK if cell is None else cell[..., None]
    half = 3 * SIDE // 160
    for at in (0, SIDE, 2 * SIDE, 3 * SIDE):
        canvas[max(0, at - half) : at + half] = LINE
        canvas[:, max(0, at - half) : at + half] = LINE
    return np.asarray(Image.fromarray(canvas).resize((size, size), Image.Resampling.BOX))
