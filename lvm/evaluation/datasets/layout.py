"""What readers of public layouts share: lists of files, errors that show the expected tree, channels of the photo."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvm.pictures.decode import SUFFIXES
from lvm.pictures.derive import DERIVED, derive
from lvm.runtime import UserError
from lvm.runtime.hashing import seed_from, uniform

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import UInt8


def refuse(what: str, tree: str) -> UserError:
    """`tree`: what the folder should hold, in one line."""
    return UserError(f"{what}; expected {tree}")


def refuse_options(options: Any, names: Sequence[str], of: str) -> None:
    """Raises `UserError` for fields of these names that are not at their defaults: they are options `of` other data."""
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    for name in names:
        if (value := getattr(options, name)) != defaults[name]:
            raise UserError(f"{name}={value} is an option of {of} alone; leave it out, or name {of} with --data")


def pictures_in(folder: Path) -> dict[str, Path]:
    """Stem -> file, sorted by name; files of other kinds and hidden ones left out."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != ".")
    return {path.stem: path for path in files}


def derived_channels(id: str, picture: "UInt8[np.ndarray, 'y x 3']") -> "dict[str, UInt8[np.ndarray, 'y x 3']]":
    """What is made of the photo alone, by its id."""
    drawn = {}
    for name in DERIVED:
        seed = seed_from("derive", id, 0, name)
        drawn[name] = derive(name, picture, float(uniform(seed)), seed)
    return drawn
