"""Which weights a model folder holds, told without reading all of them."""

import hashlib
import os
from pathlib import Path

from lvm.runtime.errors import UserError

END_BYTES = 2**20


def model_fingerprint(folder: Path) -> str:
    """sha256 of config.json and of name, size, first and last MiB of each file of weights.

    Any training step changes the ends of every file; where the folder lies and when it was copied does not matter.
    Raises `UserError` for a folder without weights.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))
    if not files:
        raise UserError(f"{folder} holds no weights; MODEL is a folder with config.json and safetensors")
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with open(file, "rb") as opened:
            digest.update(opened.read(END_BYTES))
            opened.seek(max(END_BYTES, size - END_BYTES), os.SEEK_SET)
            digest.update(opened.read())
    return digest.hexdigest()
