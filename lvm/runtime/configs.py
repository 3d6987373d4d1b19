"""From YAML to small frozen dataclasses, strictly: an unknown key is an error that names the nearest known one."""

import collections.abc
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from lvm.runtime.errors import UserError

T = TypeVar("T")


def config_folder() -> Path:
    """`configs/`: beside the packages in a checkout, inside the package in a wheel."""
    for folder in (Path(__file__).parents[2] / "configs", Path(__file__).parents[1] / "configs"):
        if folder.is_dir():
            return folder
    raise UserError("the folder configs/ is missing from this installation; install the project again")


def build(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """A `cls` from a mapping. Unknown keys, missing keys and wrong types raise a `UserError` that names the key."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where or cls.__name__} is {values!r}; it must be a mapping")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(fields)}"
            raise UserError(f"unknown config key {_path(where, key)!r}; {hint}")
    arguments = {key: _convert(hints[key], value, _path(where, key)) for key, value in values.items()}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in arguments:
            raise UserError(f"config key {_path(where, name)!r} is missing")
    return cls(**arguments)


def _path(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        errors = []
        for argument in (a for a in arguments if a is not type(None)):
            try:
                return _convert(argument, value, where)
            except UserError as error:
                errors.append(error)
        if len(errors) == 1 or isinstance(value, Mapping):
            raise errors[0]
        raise UserError(f"{where} is {value!r}; it must be {' or '.join(map(_hint_name, arguments))}")
    if origin is typing.Literal:
        if value not in arguments:
            raise UserError(f"{where} is {value!r}; use one of {', '.join(map(repr, arguments))}")
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        return build(hint, value, where)
    if origin in (list, tuple, collections.abc.Sequence):
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise UserError(f"{where} is {value!r}; it must be a list, as [{value}]")
        items = list(value)
        if origin is not tuple:
            return [_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items)]
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items))
        if len(items) != len(arguments):
            raise UserError(f"{where} has {len(items)} values; it takes {len(arguments)}")
        return tuple(_convert(a, item, f"{where}[{i}]") for i, (a, item) in enumerate(zip(arguments, items)))
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise UserError(f"{where} is {value!r}; it must be a mapping")
        return {key: _convert(arguments[1], item, _path(where, key)) for key, item in value.items()}
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string
        try:
            return float(value)
        except ValueError:
            pass
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise UserError(f"{where} is {value!r}; it must be of type {_hint_name(hint)}")


def _hint_name(hint: Any) -> str:
    if get_origin(hint) is typing.Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is not None or not isinstance(hint, type):
        return str(hint).replace("typing.", "")
    return "None" if hint is type(None) else hint.__name__


def flat(value: Any, where: str = "") -> collections.abc.Iterator[tuple[str, Any]]:
    """Dotted keys and leaves of nested mappings and lists."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flat(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from flat(item, f"{where}[{index}]")
    else:
        yield where, value


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One text for each leaf that differs: "optim.lr is 0.003 and was 0.004"."""
    before, after = dict(flat(saved)), dict(flat(now))
    absent = "absent"
    return [
        f"{key} is {after.get(key, absent)} and was {before.get(key, absent)}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key, absent) != after.get(key, absent)
    ]


def shown(lines: list[str], most: int = 6) -> str:
    return "; ".join(lines[:most]) + (f"; and {len(lines) - most} more" if len(lines) > most else "")


def parse_options(overrides: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE, the values YAML. Raises `UserError`."""
    from yaml import YAMLError, safe_load

    values = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        try:
            values[key] = safe_load(value)
        except YAMLError:
            equals = ""
        if not equals or not key:
            raise UserError(f"option {override!r} cannot be read; write KEY=VALUE")
    return values
