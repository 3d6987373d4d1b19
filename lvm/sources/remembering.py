"""What was found out about files: kept in the cache for as long as they stay as they are, so that a folder of a hundred
thousand videos, or a terabyte of tars, is looked through once and not by every task of a job."""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from lvm.runtime import atomic_write
from lvm.runtime.files import cache_folder


def remembered(kind: str, key: Any) -> Path:
    """Where what is known about `key` (plain JSON values) is kept: $LVM_CACHE/<kind>/<hash>.json."""
    return cache_folder() / kind / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.json"


def remember(path: Path, text: str) -> None:
    """Write it there; a cache that cannot be written only costs time."""
    with contextlib.suppress(OSError):
        atomic_write(path, text)
