"""From token stores to windows: mixture, schedule, packing and the loader. Window i is a pure function of (plan, i)."""

from lvm.data.base import Plan, Window
from lvm.data.config import PLAN_VERSION, DataConfig, EntryConfig, SourceConfig, StageConfig, data_config
from lvm.data.held_out import held_out_plan
from lvm.data.jsonl_plan import JsonLinesConfig, JsonLinesPlan
from lvm.data.loader import WindowDataset, WindowLoader
from lvm.data.opening import open_plan
from lvm.data.plan import TokenPlan

__all__ = [
    "PLAN_VERSION",
    "DataConfig",
    "EntryConfig",
    "JsonLinesConfig",
    "JsonLinesPlan",
    "Plan",
    "SourceConfig",
    "StageConfig",
    "TokenPlan",
    "Window",
    "WindowDataset",
    "WindowLoader",
    "data_config",
    "held_out_plan",
    "open_plan",
]
