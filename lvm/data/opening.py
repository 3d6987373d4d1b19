"""From a data config to its plan: windows composed from token stores, or a JSONL of the reference as it stands."""

from collections.abc import Mapping
from typing import Any, cast

from lvm.data.jsonl_plan import JsonLinesPlan
from lvm.data.plan import TokenPlan


def open_plan(config: Mapping[str, Any]) -> TokenPlan:
    """A `JsonLinesPlan`, which has the same interface, for a config that names a `jsonl`. Raises `UserError`."""
    if "jsonl" in config:
        return cast(TokenPlan, JsonLinesPlan.from_config(config))
    return TokenPlan.from_config(config)
