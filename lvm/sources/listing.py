"""Files below a folder."""

import os
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path


def list_files(
    root: Path, suffixes: tuple[str, ...], include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[str]:
    """Relative posix paths of the files below `root` that the patterns admit, sorted; hidden ones left out."""
    found: list[str] = []
    entered: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:  # a link to a folder above it
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = Path(folder).relative_to(root).as_posix()
        for file in files:
            if file.lower().endswith(suffixes) and not file.startswith("."):
                path = file if relative == "." else f"{relative}/{file}"
                if _admitted(path, include, exclude):
                    found.append(path)
    return sorted(found)


def _admitted(path: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    if include and not any(fnmatch(path, pattern) for pattern in include):
        return False
    return not any(fnmatch(path, pattern) for pattern in exclude)
