"""What a sweep is: configs/sweep/NAME.yaml, its stages, and the members that these come to.

    overrides: [experiment=scaling]                 # of every member, as of train.py
    stages:                                         # in this order; a stage may use what earlier ones found
      lr:
        grid: {model: [ladder_0.1m, ladder_1m], optim.lr: [0.002, 0.004]}           # every combination
      branch:
        grid:
          model: [ladder_0.1m, ladder_1m]
          trainer.max_steps:                        # values that bring others with them
            2320: {optim.decay_from_step: 1856, optim.decay_steps: 464}
        best: {stage: lr, key: optim.lr, by: model}                                 # of the same model's members
        branch_from: {stage: trunk, by: model, step: optim.decay_from_step}

Two keys of a grid are no overrides: `variant` names a set of them (`muon: {optim.matrices: muon}`), `flops` gives each
member the steps that so many FLOPs pay for. A member is an ordinary run folder, SWEEP/STAGE/KEY=VALUE,KEY=VALUE.
"""

import difflib
import functools
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvm.runtime import UserError, build, config_folder
from lvm.runtime.config_files import YAML_SUFFIXES, load_config

VARIANT, FLOPS = "variant", "flops"
RESULT = "result.json"  # of a run (lvm/training/outcome.py)


@dataclass(frozen=True)
class Best:
    """A value from the member of an earlier stage with the lowest final validation loss."""

    stage: str
    key: str  # of that stage's grid
    by: str | None = None  # key of both grids: the best of the members that agree with this one in it; None: of all


@dataclass(frozen=True)
class BranchFrom:
    """A checkpoint of a member of an earlier stage, which this member continues."""

    stage: str
    step: int | str  # of the checkpoint, or the override that holds it, as optim.decay_from_step
    by: str | None = None  # key of both grids whose value says which member


@dataclass(frozen=True)
class Stage:
    grid: dict[str, Any]
    overrides: tuple[str, ...] = ()  # of each of its members
    best: Best | None = None
    branch_from: BranchFrom | None = None


@dataclass(frozen=True)
class SweepConfig:
    stages: dict[str, Stage]
    overrides: tuple[str, ...] = ()  # of every member


@dataclass(frozen=True)
class Member:
    """One run of a sweep. What an earlier stage decides is not in its overrides yet."""

    stage: str
    name: str
    folder: Path
    values: dict[str, str] = field(hash=False)  # of the grid's keys, as in the name
    overrides: tuple[str, ...] = ()
    best: Best | None = None
    branch_from: BranchFrom | None = None

    @property
    def id(self) -> str:
        return f"{self.stage}/{self.name}"

    def value(self, key: str) -> str | None:
        """Of one of its overrides."""
        return next((o.partition("=")[2] for o in reversed(self.overrides) if o.partition("=")[0] == key), None)


@dataclass(frozen=True)
class Sweep:
    name: str
    folder: Path
    config: SweepConfig
    overrides: tuple[str, ...]  # of the command line, of every member
    members: dict[str, list[Member]]  # by stage, in order

    def all_members(self) -> list[Member]:
        return [member for members in self.members.values() for member in members]


def sweep_names() -> list[str]:
    return sorted(file.stem for file in (config_folder() / "sweep").glob("*.yaml"))


def read_sweep(name_or_file: str) -> SweepConfig:
    """A name in configs/sweep, or a YAML file. Raises `UserError`."""
    is_file = Path(name_or_file).suffix in YAML_SUFFIXES
    if not is_file and name_or_file not in sweep_names():
        near = difflib.get_close_matches(name_or_file, sweep_names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sweep_names())}; or give a YAML file"
        raise UserError(f"there is no sweep {name_or_file!r}; {hint}")
    return sweep_config(load_config(name_or_file if is_file else f"sweep/{name_or_file}"), name_or_file)


def sweep_config(values: Mapping[str, Any], where: str) -> SweepConfig:
    """Checked beyond its types: what a stage refers to is there, and has the keys. Raises `UserError`."""
    config = build(SweepConfig, values, f"sweep {where}")
    if not config.stages:
        raise UserError(f"sweep {where} has no members: its `stages` are empty; give one a grid")
    names = list(config.stages)
    for number, (name, stage) in enumerate(config.stages.items()):
        if not re.fullmatch(r"[\w.-]+", name):
            raise UserError(f"sweep {where}: stage {name!r} becomes a folder; use letters, digits, - and _")
        if not stage.grid or not all(stage.grid.values()):
            empty = next((key for key, values in stage.grid.items() if not values), None)
            what = f"its {empty} has no values" if empty else "its grid is empty"
            raise UserError(f"sweep {where}: stage {name} has no members, {what}")
        for kind, reference in (("best", stage.best), ("branch_from", stage.branch_from)):
            if reference is not None:
                _check_reference(f"sweep {where}: {kind} of stage {name}", reference, config, names[:number], stage)
    return config


def _check_reference(
    what: str, reference: Best | BranchFrom, config: SweepConfig, earlier: list[str], stage: Stage
) -> None:
    if reference.stage not in earlier:
        known = ", ".join(earlier) or "none"
        raise UserError(f"{what} names stage {reference.stage!r}, which is no earlier one; earlier: {known}")
    theirs = config.stages[reference.stage].grid
    wanted = [(reference.by, theirs), (reference.by, stage.grid)] if reference.by else []
    if isinstance(reference, Best):
        if reference.key in (VARIANT, FLOPS):
            raise UserError(f"{what} takes {reference.key!r}, which is no override; name a key that one can be set to")
        wanted.append((reference.key, theirs))
    for key, grid in wanted:
        if key not in grid:
            raise UserError(f"{what} needs the key {key!r}, which its grid lacks; it has {', '.join(grid)}")


def make_sweep(name_or_file: str, folder: Path, config: SweepConfig, overrides: Sequence[str] = ()) -> Sweep:
    """The sweep with its members. Composes the configs that budgets in FLOPs are computed from. Raises `UserError`."""
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key in ("run_dir", "branch_from"):
            raise UserError(f"{override}: the sweep gives each member its own {key}; leave it out")
        for name, stage in config.stages.items():
            brought = {k for values in stage.grid.values() if isinstance(values, Mapping) for v in values.values() if v
                       for k in v}  # fmt: skip
            if key in stage.grid or key in brought or (stage.best and stage.best.key == key):
                raise UserError(f"{override}: stage {name} varies {key}; change the sweep's file to fix it")
    members = {
        name: _members(name, stage, folder / name, (*config.overrides, *stage.overrides), overrides)
        for name, stage in config.stages.items()
    }
    return Sweep(Path(name_or_file).stem, folder, config, tuple(overrides), members)


def _members(name: str, stage: Stage, folder: Path, common: Sequence[str], overrides: Sequence[str]) -> list[Member]:
    choices = [_choices(name, key, values) for key, values in stage.grid.items()]
    members = []
    for chosen in itertools.product(*choices):
        values = {key: text for key, (text, _) in zip(stage.grid, chosen)}
        own = [override for _, brought in chosen for override in brought]
        given = last_of_each([*common, *own, *overrides])
        if FLOPS in values:
            given = last_of_each([*given, *steps_for(float(values[FLOPS]), given)])
        folder_name = ",".join(f"{_file_name(key)}={_file_name(text)}" for key, text in values.items())
        members.append(
            Member(name, folder_name, folder / folder_name, values, tuple(given), stage.best, stage.branch_from)
        )
    names = [member.name for member in members]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise UserError(f"stage {name} has two members named {twice}; a value is there twice")
    return members


def _choices(stage: str, key: str, values: Any) -> list[tuple[str, list[str]]]:
    """(value as in a name, overrides it stands for) of one key of a grid."""
    if isinstance(values, Mapping):
        pairs = [(value if key == VARIANT else _typed(value), brought) for value, brought in values.items()]
    elif isinstance(values, Sequence) and not isinstance(values, str):
        pairs = [(value, None) for value in values]
    else:
        raise UserError(f"stage {stage}: {key} is {values!r}; give a list of values, or VALUE: {{KEY: VALUE}} of each")
    if key == VARIANT and not isinstance(values, Mapping):
        raise UserError(f"stage {stage}: variants are names with overrides, as muon: {{optim.matrices: muon}}")
    choices = []
    for value, brought in pairs:
        if brought is not None and not isinstance(brought, Mapping):
            raise UserError(f"stage {stage}: {key}={value} brings {brought!r}; give a mapping of overrides")
        own = [] if key in (VARIANT, FLOPS) else [f"{key}={hydra_text(value)}"]
        own += [f"{other}={hydra_text(its)}" for other, its in (brought or {}).items()]
        choices.append((plain_text(value), own))
    return choices


def _typed(value: Any) -> Any:
    """A number that was a key of JSON, where all keys are strings."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def steps_for(flops: float, overrides: Sequence[str]) -> list[str]:
    """Overrides for a run of so many FLOPs: its steps, and a validation at its end. PAD counts as tokens here."""
    from lvm.model import LVMConfig

    config = compose(overrides)
    model, seq_len = build(LVMConfig, config["model"], "model"), config["data"]["seq_len"]
    per_step = model.flops_per_token(seq_len) * seq_len * config["trainer"]["batch_size"]
    steps = round(flops / per_step)
    if steps < 1:
        raise UserError(f"flops {flops:g} are less than one step of {per_step:.3g}; use more, or a smaller model")
    return [f"trainer.max_steps={steps}", f"trainer.validate_every_steps={steps}"]


# Overrides.


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """The config of train.py for these overrides, to be read only."""
    return _compose(tuple(re.sub(r"^tokenizer=", "vqgan=", override) for override in overrides))


@functools.lru_cache(maxsize=4096)
def _compose(overrides: tuple[str, ...]) -> dict[str, Any]:
    return load_config("train", overrides)


def last_of_each(overrides: Sequence[str]) -> list[str]:
    """Of several overrides of a key the last one, which Hydra would refuse for a group."""
    return list({override.partition("=")[0]: override for override in overrides}.values())


def plain_text(value: Any) -> str:
    """A value as people write it: 0.002, 1e+13, ladder_1m."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if isinstance(value, str):
        return value
    return hydra_text(value) if isinstance(value, Mapping | Sequence) else json.dumps(value)


def hydra_text(value: Any) -> str:
    """A value as Hydra's grammar of overrides reads it back."""
    if isinstance(value, str):
        read_as_text = re.fullmatch(r"[A-Za-z_/.][\w./@-]*", value) and value.lower() not in ("null", "true", "false")
        return value if read_as_text else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{hydra_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(hydra_text, value)) + "]"
    return plain_text(value)


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.=+@-]", "_", text)
