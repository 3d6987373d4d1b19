"""The tables of a large plan, computed once on a machine and mapped from then on.

They lie under $LVM_CACHE/plans, in a folder named after all that decides them. A small plan is quicker made than kept.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lvm.runtime import UserError, read_json, write_json
from lvm.runtime.files import atomic_folder, cache_folder, locked

TABLES_VERSION = 1  # raised where tables of the same plan have another form: those kept before are then made anew
LEAST_KEPT = 1 << 21  # items and slots together

Tables = dict[str, np.ndarray]


def folder_of(identity: Mapping[str, Any]) -> Path:
    text = json.dumps({"tables": TABLES_VERSION, **identity}, sort_keys=True)
    return cache_folder() / "plans" / hashlib.sha256(text.encode()).hexdigest()[:16]


def kept(identity: Mapping[str, Any], make: Callable[[], tuple[Tables, Any]]) -> tuple[Tables, Any]:
    """Tables and what is said of them, mapped from the cache; made, by one process of the machine, if missing."""
    folder = folder_of(identity)
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(folder.with_name(f".lock-{folder.name}")):  # the others wait
                if not folder.is_dir():
                    _write(folder, *make())
        except OSError as error:
            raise UserError(
                f"the tables of this plan cannot be written to {folder.parent} ({error}); free space there or set "
                "LVM_CACHE to another folder"
            ) from None
    try:
        info = read_json(folder / "about.json")
        return {name: _map(folder / f"{name}.npy") for name in info["tables"]}, info["about"]
    except (OSError, ValueError, EOFError, KeyError, TypeError, UserError) as error:
        raise UserError(f"the kept tables of this plan are damaged ({error}); remove {folder}") from None


def _write(folder: Path, tables: Tables, about: Any) -> None:
    with atomic_folder(folder) as aside:
        for name, table in tables.items():
            np.save(aside / f"{name}.npy", table, allow_pickle=False)
        write_json(aside / "about.json", {"tables": list(tables), "about": about})


def _map(path: Path) -> np.ndarray:
    """Memory-mapped; a plain ndarray, because np.memmap's own indexing is several times slower."""
    table = np.load(path, mmap_mode="r", allow_pickle=False)
    return table.view(np.ndarray) if table.ndim else np.array(table)
