"""The token store: pictures tokenised once, read by memory map; and the bulk job that writes it.

Reading needs numpy alone. The others come with torch, so they are imported when first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lvm.store.excluding import exclude
from lvm.store.simulated import SimulatedConfig, SimulatedStore
from lvm.store.store import TokenStore

if TYPE_CHECKING:
    from lvm.store.checking import verify
    from lvm.store.ensure import ensure_world_store
    from lvm.store.job import JobReport, build_store, run_job
    from lvm.store.rewrite import merge, split

_LATER = {
    "build_store": "job",
    "run_job": "job",
    "JobReport": "job",
    "ensure_world_store": "ensure",
    "verify": "checking",
    "merge": "rewrite",
    "split": "rewrite",
}

__all__ = [
    "JobReport",
    "SimulatedConfig",
    "SimulatedStore",
    "TokenStore",
    "build_store",
    "ensure_world_store",
    "exclude",
    "merge",
    "run_job",
    "split",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"lvm.store.{_LATER[name]}"), name)
    globals()[name] = value
    return value
