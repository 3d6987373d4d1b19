"""From a data config to its plan: windows composed from token stores, or a JSONL of the reference as it stands."""

from collections.abc import Mapping
from typing import Any

from lvm.data.base import Plan
from lvm.data.jsonl_plan import JsonLinesPlan
from lvm.data.plan import TokenPlan


def open_plan(config: Mapping[str, Any]) -> Plan:
    """A `JsonLinesPlan` for a config that names a `jsonl`, else a `TokenPlan`. Raises `UserError`."""
    if "jsonl" in config:
        return JsonLinesPlan.from_config(config)
    return TokenPlan.from_config(config)
