"""The store of the embedded world, built when it is missing: training needs no preparation.

It lies under $LVM_CACHE (~/.cache/lvm), in a folder named after everything that decides its bytes.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lvm.runtime.files import cache_folder
from lvm.sources import open_source
from lvm.store.job import build_store
from tokenizer import VQGAN


def ensure_world_store(
    world_config: Mapping[str, Any], vqgan: VQGAN, cache: str | Path | None = None, **options: Any
) -> Path:
    """The complete store of a world (the mapping of configs/data/source/world.yaml) under this tokenizer.

    Built if it is missing, resumed if it is partial; `options` go to `build_store`. Two processes at once write
    the same bytes, and only a complete store has a store.json. Raises `UserError`.
    """
    source = open_source({"kind": "world", **world_config})
    key = hashlib.sha256(f"{source.fingerprint()}\n{vqgan.fingerprint}".encode()).hexdigest()[:16]
    path = (Path(cache) if cache is not None else cache_folder()) / "stores" / f"world-{key}"
    build_store(source, path, vqgan, exclusive=False, **options)
    return path
