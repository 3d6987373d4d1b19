"""`open_source`: from a config, a file or a folder to a source."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lvm.pictures.decode import SUFFIXES as PICTURE_SUFFIXES
from lvm.runtime import UserError, build, config_folder, parse_options
from lvm.sources.base import Source
from lvm.sources.listing import VIDEO_SUFFIXES, walk_files

# kind: the module of lvm.sources, imported when it is used, its configuration and its source.
KINDS = {
    "pictures": ("pictures", "PicturesConfig", "PicturesSource"),
    "manifest": ("manifest", "ManifestConfig", "ManifestSource"),
    "coco": ("coco", "CocoConfig", "CocoSource"),
    "collection": ("collection", "CollectionConfig", "CollectionSource"),
    "tars": ("tars", "TarsConfig", "TarsSource"),
    "videos": ("videos", "VideosConfig", "VideosSource"),
    "world": ("world", "WorldConfig", "WorldSource"),
}


def open_source(config: "Mapping[str, Any] | str | Path", overrides: Sequence[str] = ()) -> Source:
    """A mapping with `kind` and that kind's options; a YAML file of one, by path or by its name in
    configs/data/source/; or a folder of pictures, videos or tars. `overrides` are options as KEY=VALUE. Raises
    `UserError`.
    """
    if not isinstance(config, Mapping):
        config = _read(config)
    config = {**config, **parse_options(overrides)}
    values = {key: value for key, value in config.items() if key != "kind"}
    kind = config.get("kind", "pictures" if "path" in config else None)
    if kind in KINDS:
        module, settings, source = KINDS[kind]
        found = importlib.import_module(f"lvm.sources.{module}")
        return getattr(found, source)(build(getattr(found, settings), values))
    raise UserError(f"source kind {kind!r} is unknown; use one of {', '.join(KINDS)}")


def kind_of(folder: Path) -> str:
    """By the files in it; pictures come first."""
    kind = "pictures"
    for path in walk_files(folder):
        name = path.lower()
        if name.endswith(PICTURE_SUFFIXES):
            return "pictures"
        if name.endswith(VIDEO_SUFFIXES):
            kind = "videos"
        elif name.endswith(".tar") and kind == "pictures":
            kind = "tars"
    return kind


def _read(given: str | Path) -> Mapping[str, Any]:
    if str(given).lower().endswith(".tar"):  # a file, a pattern or a URL
        return {"kind": "tars", "path": str(given)}
    path = Path(given).expanduser()
    if path.is_dir():
        return {"kind": kind_of(path), "path": str(path)}
    if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES:
        return {"kind": "videos", "path": str(path)}
    named = config_folder() / "data" / "source" / f"{given}.yaml"
    if path.suffix not in (".yaml", ".yml") and named.is_file():
        path = named
    if not path.exists():
        known = sorted(file.stem for file in named.parent.glob("*.yaml"))
        raise UserError(
            f"source {str(given)!r} does not exist; give a folder of pictures, a YAML file, or one of "
            + ", ".join(known)
        )
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"{path} is neither a folder of pictures nor a YAML file that describes a source")
    from lvm.runtime.config_files import load_config

    return load_config(path)
