"""`open_suite`: from a name and options as KEY=VALUE to a suite."""

import importlib
from collections.abc import Sequence

from lvm.evaluation.cases import Suite
from lvm.evaluation.suites import SUITES
from lvm.evaluation.suites.base import Context
from lvm.runtime import UserError, build, parse_options


def open_suite(name: str, context: Context, overrides: Sequence[str] = ()) -> Suite:
    """Raises `UserError` for an unknown name or option, and for data that cannot be used."""
    if name not in SUITES:
        raise UserError(f"--suite {name!r} is unknown; use one of {', '.join(SUITES)}, all, demo")
    module = importlib.import_module(f"lvm.evaluation.suites.{name}")
    return module.make(context, build(module.Options, parse_options(overrides), name))
