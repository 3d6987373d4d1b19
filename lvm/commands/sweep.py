"""Sweeps of runs: grids, the best learning rate carried on, branches of a trunk; their table and their laws.

    lvm sweep run NAME [launcher=local|slurm] [workers=N] [stage=NAME] [out=FOLDER] [overrides of every member]
    lvm sweep list NAME                  members, their state and what would run
    lvm sweep table NAME_OR_FOLDER       size, lr, tokens, FLOPs, validation loss, tokens/s, state; --csv, --json
    lvm sweep fit RUNS --out DIR         scaling laws of the finished members; its own --help says more

NAME is a file of configs/sweep, or a YAML file anywhere; members are run folders runs/NAME/STAGE/MEMBER. The same
command again skips what is done and starts what failed again. For launcher=slurm, one array job a stage through Hydra's
submitit launcher: partition= time= gpus= nodes= account= qos= constraint= cpus= memory= setup=. Exit code 1 if a member
did not finish.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lvm.commands._options import read_value
from lvm.runtime import UserError, build, read_json
from lvm.runtime.configs import config_folder

VERBS = ("run", "list", "table", "fit")


@dataclass(frozen=True)
class SweepOptions:
    stage: str | None = None  # this one alone
    out: str | None = None  # the sweep's folder; None: runs/NAME


def split(arguments: Sequence[str]) -> tuple[SweepOptions, Any, list[str]]:
    """(options of the command, of the launcher, overrides of every member)."""
    from lvm.cluster.sweep_launchers import LaunchOptions

    own: dict[type, dict[str, Any]] = {SweepOptions: {}, LaunchOptions: {}}
    overrides = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals and not argument.startswith("~"):
            raise UserError(f"{argument!r} is no KEY=VALUE; lvm sweep --help shows what may be given")
        kind = next((kind for kind in own if key in {field.name for field in fields(kind)}), None)
        if kind is None:
            overrides.append(argument)
        else:
            own[kind][key] = value if key in ("time", "stage", "out") else read_value(value)
    return build(SweepOptions, own[SweepOptions]), build(LaunchOptions, own[LaunchOptions]), overrides


def open_sweep(name: str, options: SweepOptions, overrides: Sequence[str]) -> Any:
    from lvm.cluster.sweeps import make_sweep, read_sweep

    folder = Path(options.out or Path("runs") / Path(name).stem)
    return make_sweep(name, folder, read_sweep(name), overrides)


def sweep_of_folder(folder: Path) -> Any:
    """A sweep as its sweep.json says it was run."""
    from lvm.cluster.sweep_state import RECORD
    from lvm.cluster.sweeps import make_sweep, sweep_config

    saved = read_json(folder / RECORD)
    return make_sweep(saved["name"], folder, sweep_config(saved["config"], str(folder)), saved["overrides"])


def chosen_stages(sweep: Any, stage: str | None) -> list[str]:
    if stage is not None and stage not in sweep.members:
        raise UserError(f"sweep {sweep.name} has no stage {stage!r}; it has {', '.join(sweep.members)}")
    return list(sweep.members) if stage is None else [stage]


def check_config(overrides: Sequence[str]) -> None:
    """Raises `UserError` for what train.py would refuse before it opens any data."""
    from lvm.cluster.sweeps import compose
    from lvm.data.config import data_config
    from lvm.model import LVMConfig
    from lvm.training import OptimConfig, TrainerConfig

    config = compose(overrides)
    build(TrainerConfig, config["trainer"], "trainer")
    build(OptimConfig, config["optim"], "optim")
    build(LVMConfig, config["model"], "model")
    if "entries" in config["data"]:  # else a JSONL
        data_config({key: value for key, value in config["data"].items() if key != "new_plan"})


def run(arguments: Sequence[str]) -> int:
    from lvm.cluster.sweep_run import not_done, run_sweep
    from lvm.cluster.sweep_table import as_text, write_table

    name, *rest = arguments
    options, launch, overrides = split(rest)
    sweep = open_sweep(name, options, overrides)
    stages = chosen_stages(sweep, options.stage)
    stopped = run_sweep(sweep, launch, check_config, stages, lambda line: print(line, flush=True))
    print(as_text(write_table(sweep)))
    print(f"written to {sweep.folder}/table.json and table.md")
    if stopped:
        return 128 + stopped
    if missing := not_done(sweep, stages):
        print(f"not finished: {', '.join(missing)}; the same command runs them again", file=sys.stderr)
        return 1
    return 0


def show_list(arguments: Sequence[str]) -> int:
    from lvm.cluster.sweep_state import decide, look

    name, *rest = arguments
    options, _, overrides = split(rest)
    sweep = open_sweep(name, options, overrides)
    for stage in chosen_stages(sweep, options.stage):
        print(f"stage {stage}: {len(sweep.members[stage])} members in {sweep.folder / stage}")
        for member in sweep.members[stage]:
            decision = decide(sweep, member)
            state = "waits" if decision.waits_for else look(member, decision.overrides).kind
            waits = f" ({decision.waits_for})" if decision.waits_for else ""
            print(f"  {member.name}: {state}{waits}\n    python train.py {' '.join(decision.overrides)}")
    return 0


def show_table(arguments: Sequence[str]) -> int:
    from lvm.cluster.sweep_state import RECORD
    from lvm.cluster.sweep_table import as_csv, as_text, rows

    flags = [a for a in arguments if a.startswith("--")]
    names = [a for a in arguments if not a.startswith("--")]
    if len(names) != 1 or set(flags) - {"--csv", "--json"}:
        raise UserError(f"lvm sweep table {' '.join(arguments)}: give one NAME or FOLDER, and --csv or --json")
    folder = Path(names[0]) if "/" in names[0] or (Path(names[0]) / RECORD).is_file() else Path("runs") / names[0]
    if (folder / RECORD).is_file():
        sweep = sweep_of_folder(folder)
    elif "/" in names[0] and Path(names[0]).suffix not in (".yaml", ".yml"):
        raise UserError(f"{folder}/{RECORD} is missing; give the folder of a sweep, or the name of one")
    else:
        sweep = open_sweep(names[0], SweepOptions(), [])
    table = rows(sweep)
    if "--json" in flags:
        print(json.dumps(table, indent=1))
    elif "--csv" in flags:
        print(as_csv(table), end="")
    else:
        print(as_text(table))
    return 0


def main(argv: Sequence[str]) -> int | None:
    if argv and argv[0] == "fit":
        from lvm.cluster.laws import main as fit

        return fit(list(argv[1:]))
    if not argv or any(a in ("-h", "--help") for a in argv):
        print(__doc__)
        return 0
    verb, *arguments = argv
    if verb not in VERBS:
        raise UserError(f"lvm sweep has no {verb!r}; use {', '.join(VERBS)}")
    if not arguments:
        known = ", ".join(sorted(file.stem for file in (config_folder() / "sweep").glob("*.yaml")))
        raise UserError(f"lvm sweep {verb} needs the name of a sweep; known: {known}")
    return {"run": run, "list": show_list, "table": show_table}[verb](arguments)
