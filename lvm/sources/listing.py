"""Files below a folder."""

import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif")


def walk_files(root: Path) -> Iterator[str]:
    """Relative posix paths of all files below `root`; hidden ones left out, links to folders followed once."""
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
            if not file.startswith("."):
                yield file if relative == "." else f"{relative}/{file}"


def list_files(
    root: Path, suffixes: tuple[str, ...], include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[str]:
    """Those of one kind that the patterns admit, sorted."""
    found = (path for path in walk_files(root) if path.lower().endswith(suffixes))
    return sorted(path for path in found if _admitted(path, include, exclude))


def _admitted(path: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    if include and not any(fnmatch(path, pattern) for pattern in include):
        return False
    return not any(fnmatch(path, pattern) for pattern in exclude)
