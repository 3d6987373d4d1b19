"""What an evaluation must know of the data a model was trained on: of a run its config says it, of an exported folder
training_data.json, since config.json is read by other programs.

    {"held_out_per_mille": 20, "exclude_groups": ["camvid/0016E5"], "world": {"kind": "world", "seed": 0, ...}}
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lvm.data.config import DataConfig
from lvm.runtime import UserError, build, read_json, write_json
from lvm.runtime.checkpoint import read_state

FILE = "training_data.json"


@dataclass(frozen=True)
class TrainingData:
    held_out_per_mille: int | None = None  # of the groups, by their hash; None: nothing says
    exclude_groups: tuple[str, ...] = ()  # of all sources: held out by name
    world: Mapping[str, Any] | None = None  # config of the embedded world, where it was among the sources

    def __post_init__(self) -> None:
        if not 0 <= (self.held_out_per_mille or 0) <= 1000:
            raise UserError(f"held_out_per_mille is {self.held_out_per_mille}; use 0 to 1000, or null for not known")

    def __bool__(self) -> bool:
        """Whether anything is known."""
        return self != TrainingData()

    def save(self, folder: Path) -> None:
        write_json(folder / FILE, asdict(self))


def data_of_config(config: Mapping[str, Any]) -> TrainingData:
    """Of the config of a run. One on a token file (`data.jsonl`) holds out nothing and knows no groups."""
    data = config.get("data") or {}
    if "sources" not in data:
        return TrainingData()
    excluded = [group for source in data["sources"].values() for group in (source or {}).get("exclude_groups") or ()]
    share = data.get("held_out_per_mille", DataConfig.held_out_per_mille)
    return TrainingData(share, tuple(excluded), config.get("world") if "world" in data["sources"] else None)


def data_of_checkpoint(checkpoint: Path) -> TrainingData:
    """Of a checkpoint without the config of its run: what its plan says."""
    facts = read_state(checkpoint).get("plan", {}).get("facts", {})
    excluded = [group for source in facts.get("excluded", {}).values() for group in source["groups"]]
    return TrainingData(facts.get("held_out_per_mille"), tuple(excluded))


def data_of_model(path: Path) -> TrainingData:
    """Of a run, one of its checkpoints or a model folder; empty where nothing says. Raises `UserError`."""
    if (path / FILE).is_file():
        return build(TrainingData, read_json(path / FILE), str(path / FILE))
    of_checkpoint = (path / "manifest.json").is_file()
    if of_checkpoint or (path / "checkpoints").is_dir():
        for folder in (path, *path.resolve().parents[:3]):
            if (folder / "config.json").is_file() and "trainer" in (config := read_json(folder / "config.json")):
                return data_of_config(config)
    return data_of_checkpoint(path) if of_checkpoint else TrainingData()
