"""KEY=VALUE arguments of a verb, as a frozen dataclass."""

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

from lvm.runtime import UserError, build

T = TypeVar("T")


def read_value(text: str) -> Any:
    """A number, true, false or null as JSON writes them; anything else is a string."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def options_from(cls: type[T], arguments: Sequence[str], where: str = "") -> T:
    """`cls` from arguments such as nodes=8. Raises `UserError` for one without = and as `build` does."""
    for argument in arguments:
        if "=" not in argument:
            known = ", ".join(field.name for field in fields(cls))  # type: ignore[arg-type]
            raise UserError(f"{argument!r} is no KEY=VALUE; known keys: {known}")
    pairs = (argument.split("=", 1) for argument in arguments)
    return build(cls, {key: read_value(value) for key, value in pairs}, where)
