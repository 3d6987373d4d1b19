"""From a name and overrides to a plain dict, composed by Hydra; whatever Hydra dislikes is said in one line.

    load_config("train", ["experiment=debug", "trainer.max_steps=20"])
    load_config("configs/data/demo.yaml", ["seed=1"])

Hydra's global state is restored after each call, so one process may compose as often as it likes.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lvm.runtime.configs import config_folder
from lvm.runtime.errors import UserError

YAML_SUFFIXES = (".yaml", ".yml")


def load_config(name_or_path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The composed config as plain containers, interpolations resolved.

    `name_or_path` is a file, or a name below configs/ with or without `.yaml` ("train", "data/demo"). The keys of
    the named file are at the top of the result; its `defaults` may be relative to its folder or, beginning with a
    slash, to configs/. Raises `UserError` for an unknown file, key, group or option, and for a value left at ???.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = find_config(name_or_path)

    def composed(arguments: Sequence[str]) -> DictConfig:
        # A file outside configs/ may still use our groups in its defaults.
        search = [f"hydra.searchpath=[file://{config_folder()}]"] if path.parent != config_folder() else []
        with initialize_config_dir(str(path.parent), version_base="1.3", job_name="lvm"):
            return compose(path.stem, overrides=[*search, *arguments])

    try:
        config = composed(overrides)
        result = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except YAMLError as error:
        raise UserError(f"{path} or a file it includes is not YAML: {one_line(error)}") from None
    except (HydraException, OmegaConfBaseException) as error:

        def known_keys() -> list[str]:
            groups = [o for o in overrides if "." not in o.split("=")[0] and not o.startswith(("+", "~"))]
            for arguments in (groups, []):
                try:
                    plain = OmegaConf.to_container(composed(arguments), resolve=False)
                    return list(flat_keys(plain)) if isinstance(plain, Mapping) else []
                except (HydraException, OmegaConfBaseException, YAMLError):
                    continue
            return []

        raise UserError(f"{explain(error, known_keys)} (config {path.name})") from None
    except ValueError as error:  # Hydra's parser of some overrides, as "=3"
        raise UserError(f"one of the overrides {' '.join(overrides)} is no KEY=VALUE: {one_line(error)}") from None
    if not isinstance(result, dict):
        raise UserError(f"{path} holds a {type(result).__name__}; a config file must be a mapping")
    return {str(key): value for key, value in result.items()}


def find_config(name_or_path: str | Path) -> Path:
    """The absolute path of a config file, given as a path or as a name below configs/."""
    given = Path(name_or_path)
    root = config_folder()
    if given.suffix in YAML_SUFFIXES:  # a file: where it was named from comes first
        candidates = [Path.cwd() / given, root / given]
    else:
        candidates = [folder / f"{given}{suffix}" for folder in (root, Path.cwd()) for suffix in YAML_SUFFIXES]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    known = sorted(str(file.relative_to(root).with_suffix("")) for file in root.rglob("*.yaml"))
    near = difflib.get_close_matches(str(given).removesuffix(".yaml"), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known below configs/: {', '.join(known) or 'nothing'}"
    raise UserError(f"config {str(name_or_path)!r} does not exist; {hint}")


def flat_keys(tree: Mapping[Any, Any], where: str = "") -> Iterator[str]:
    """Every dotted key of a nested mapping, inner nodes included."""
    for key, value in tree.items():
        yield (path := f"{where}.{key}" if where else str(key))
        if isinstance(value, Mapping):
            yield from flat_keys(value, path)


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def explain(error: BaseException, known_keys: Callable[[], list[str]]) -> str:
    """One line that quotes the value and the remedy, from Hydra's or OmegaConf's message."""
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    text = "\n".join(str(e) for e in chain)

    if match := re.search(r"Could not find '([^']+)'\s+Available options in '([^']+)':\s+((?:\S+\s*\n?)+)", text):
        name, group, options = match[1], match[2], match[3].split("Config search path")[0].split()
        return f"{group}={name.removeprefix(group + '/')} is unknown; known: {', '.join(options)}"
    if match := re.search(r"An item is already at '([^']+)'|Multiple values for (\S+?)\. ", text):
        key = match[1] or match[2]
        return f"config key {key!r} exists already; write {key}=VALUE without the +"
    if match := re.search(r"Could not override '([^']+)'|delete from config. '([^']+)' does not exist", text):
        key = (match[1] or match[2]).split("@")[0]
        keys = known_keys()
        near = difflib.get_close_matches(key, keys, n=1)
        if not near:  # a right name under a wrong parent
            near = [k for k in keys if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]][:1]
        tops = ", ".join(k for k in keys if "." not in k)
        return f"unknown config key {key!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {tops}")
    if match := re.search(r"Missing mandatory value: (\S+)", text):
        return f"config key {match[1]!r} has no value; give it as {match[1]}=VALUE"
    if match := re.search(r"Interpolation key '([^']+)' not found", text):
        where = re.search(r"full_key: (\S+)", text)
        return f"config key {where[1] if where else '?'!r} refers to ${{{match[1]}}}, which does not exist"
    if (override := getattr(error, "override", None)) is not None:  # OverrideParseException
        return f"override {override!r} cannot be read; write KEY=VALUE, in quotes where VALUE holds = , [ or a space"
    return one_line(error).split(" See https")[0]
