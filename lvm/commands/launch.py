"""Submit a job to Slurm, or start it here: lvm launch experiment=... launcher=slurm nodes=2 gpus=8 time=24:00:00

Every KEY=VALUE that is none of the launcher's is an override of the training, as for train.py. The launcher's:

    launcher=slurm|local|FILE.yaml    configs/launcher/NAME.yaml (slurm)
    kind=train|tokenize|evaluate|generate|sweep    which `lvm KIND` runs (train); what is left over are its arguments
    nodes= gpus= time= partition= account= qos= constraint= mem= container= chain= tasks= members= background=
    launcher.KEY=VALUE                these and the others of lvm/cluster/job_script.py (setup, sbatch, template, ...)
    run_dir=DIR                       where script and logs go (as train.py names it; runs/KIND-NAME for other kinds)
    --dry-run                         print the job script, write and submit nothing

The same command again continues the run: nothing is submitted where one of its jobs waits or runs, or it is finished.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from lvm.cluster.job_script import KINDS, JobPlan, Kind, LauncherConfig, plan_job, python_words
from lvm.cluster.launch import AtWork, files_of, read_members, refuse_twice, submit_job, write_files
from lvm.commands import evaluate, generate, tokenize
from lvm.commands._options import read_value
from lvm.commands.train import run_name
from lvm.model import LVMConfig
from lvm.runtime import UserError, build, read_json
from lvm.runtime.checkpoint import list_checkpoints, read_state
from lvm.runtime.config_files import load_config
from lvm.runtime.configs import differences, shown
from lvm.training import OptimConfig, TrainerConfig
from lvm.training.optim import only_the_fall_differs, progress, with_length

# What of a composed config decides the weights; all else may change when a run is continued.
_IDENTITY = ("model", "data", "world", "optim", "seed", "init_from", "branch_from", "codebook_start", "vqgan")
_IDENTITY_OF_TRAINER = ("batch_size", "document_mask", "loss_on", "precision")
_TEXTS = {field.name for field in fields(LauncherConfig) if "str" in str(field.type) and "list" not in str(field.type)}
_LISTS = {field.name for field in fields(LauncherConfig) if "list" in str(field.type)}


@dataclass(frozen=True)
class Command:
    """What the words of the command say."""

    kind: Kind
    launcher: LauncherConfig
    run_dir: Path | None  # of another kind than train, whose overrides hold it
    arguments: list[str]  # what is left over
    dry_run: bool


def read_command(argv: Sequence[str]) -> Command:
    """Raises `UserError` for an unknown kind, launcher or key of it."""
    own, rest = split_arguments([word for word in argv if word != "--dry-run"])
    kind = own.pop("kind", "train")
    if kind not in KINDS:
        raise UserError(f"kind={kind} is unknown; use one of {', '.join(KINDS)}")
    name = own.pop("launcher", "slurm")
    values = load_config(name if name.endswith((".yaml", ".yml")) else f"launcher/{name}")
    values |= {key: launcher_value(key, text) for key, text in own.items()}
    run_dir = None
    if kind in ("tokenize", "evaluate", "generate"):
        run_dir = given_folder(rest)
        rest = [word for word in rest if not word.startswith("run_dir=")]
    return Command(kind, build(LauncherConfig, values, "launcher"), run_dir, rest, "--dry-run" in argv)


def split_arguments(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The launcher's KEY=VALUE, without "launcher." before the key; the words that are left over."""
    known = {field.name for field in fields(LauncherConfig)} - {"type"} | {"kind", "launcher"}
    own: dict[str, str] = {}
    rest = []
    for word in argv:
        key, equals, value = word.partition("=")
        if equals and (key in known or key.startswith("launcher.")):
            own[key.removeprefix("launcher.")] = value
        else:
            rest.append(word)
    return own, rest


def launcher_value(key: str, text: str) -> Any:
    """Text stays text, whatever it looks like; one text is a list of one."""
    if key in _TEXTS:
        return None if text == "null" else text
    value = read_value(text)
    return [value] if key in _LISTS and isinstance(value, str) else value


# Training: the config is composed here, so that a mistake is said before anything waits in a queue.


def given_folder(words: Sequence[str]) -> Path | None:
    """run_dir=DIR among words; the last counts."""
    given = [word.partition("=")[2].strip("'") for word in words if word.startswith("run_dir=")]
    return Path(given[-1]) if given else None


def in_folder(run_dir: Path) -> str:
    """The override; in quotes for Hydra, since names of runs hold =."""
    return f"run_dir='{run_dir}'"


def with_ranks(overrides: Sequence[str], launcher: LauncherConfig) -> list[str]:
    """Those given but the run's folder, and one rank a task."""
    ranks = {"trainer.num_nodes": launcher.nodes, "trainer.devices": launcher.tasks_on_a_node}
    added = [f"{key}={value}" for key, value in ranks.items()]
    if launcher.gpus and not any(word.startswith("trainer.accelerator=") for word in overrides):
        added.append("trainer.accelerator=cuda")  # auto would train on the CPU of a node whose driver is ill
    kept = [word for word in overrides if word.partition("=")[0] not in (*ranks, "run_dir")]
    return [*kept, *added]


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """The whole config of a training. Raises `UserError` for any mistake that needs no data to be seen."""
    config = load_config("train", [re.sub(r"^tokenizer=", "vqgan=", override) for override in overrides])
    build(TrainerConfig, config["trainer"], "trainer")
    build(OptimConfig, config["optim"], "optim")
    build(LVMConfig, config["model"], "model")
    return config


def check_batch_divides(config: Mapping[str, Any]) -> None:
    trainer = build(TrainerConfig, config["trainer"], "trainer")
    ranks = trainer.num_nodes * int(trainer.devices)
    size = trainer.micro_batch_size or max(1, trainer.batch_size // ranks)
    if trainer.batch_size % (ranks * size):
        rounded = ranks * size * max(1, round(trainer.batch_size / (ranks * size)))
        raise UserError(
            f"trainer.batch_size {trainer.batch_size} is no multiple of {ranks} ranks x {size} windows; use {rounded}"
        )


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    optim = with_length(build(OptimConfig, config["optim"], "optim"), config["trainer"]["max_steps"], 1.0)
    trainer = {key: config["trainer"].get(key) for key in _IDENTITY_OF_TRAINER}
    data = {key: value for key, value in config["data"].items() if key != "new_plan"}
    return {key: config.get(key) for key in _IDENTITY} | {"optim": asdict(optim), "trainer": trainer, "data": data}


def refuse_other_run(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Raise `UserError`, showing the difference, if the folder is of a run with other settings."""
    former = next((p for p in (run_dir / "slurm" / "config.json", run_dir / "config.json") if p.is_file()), None)
    if former is None:
        if run_dir.is_dir() and not (run_dir / "slurm").is_dir() and any(run_dir.iterdir()):
            raise UserError(f"{run_dir} holds something else than a run; name another run_dir")
        return
    before, now = identity(read_json(former)), identity(config)
    if config["data"]["new_plan"]:
        before |= {key: now[key] for key in ("data", "world")}
    saved, wanted = (build(OptimConfig, side["optim"], "optim") for side in (before, now))
    if only_the_fall_differs(saved, wanted, done(run_dir, saved)):
        before["optim"] = now["optim"]
    if lines := differences(before, now):
        raise UserError(
            f"{run_dir} is of a run with other settings: {shown(lines)}; set them back, name another run_dir, or "
            "remove it if nothing in it is wanted"
        )


def done(run_dir: Path, optim: OptimConfig) -> int:
    """Steps or tokens behind the newest checkpoint, whichever the schedule counts."""
    found = list_checkpoints(run_dir / "checkpoints")
    state = read_state(found[-1])["train"] if found else {"step": 0, "tokens": 0}
    return progress(optim, state["step"], state["tokens"], 0)[0]


def finished(run_dir: Path, max_steps: int) -> bool:
    result = run_dir / "result.json"
    facts = read_json(result) if result.is_file() else {}
    return bool(facts.get("finished")) and facts.get("step", 0) >= max_steps


# The kinds.


def launch_training(command: Command, argv: Sequence[str]) -> int:
    run_dir = (given_folder(command.arguments) or Path("runs") / run_name(command.arguments)).absolute()
    overrides = [*with_ranks(command.arguments, command.launcher), in_folder(run_dir)]
    config = compose(overrides)
    plan = plan_of(command, run_dir, overrides)
    check_batch_divides(config)
    refuse_other_run(run_dir, config)
    if not command.dry_run and finished(run_dir, config["trainer"]["max_steps"]):
        print(f"finished at step {config['trainer']['max_steps']}: {run_dir}; nothing is submitted")
        return 0
    return carry_out(command, plan, argv, config)


def launch_sweep(command: Command, argv: Sequence[str]) -> int:
    members = read_members(command.launcher.members)
    name = f"sweep-{Path(str(command.launcher.members)).stem}"
    run_dir = (given_folder(command.arguments) or Path("runs") / name).absolute()
    shared = with_ranks(command.arguments, command.launcher)
    for own in members:
        if given_folder(own) is None:
            own.append(in_folder(run_dir / run_name(own).removeprefix("train-")))
        config = compose([*shared, *own])
        check_batch_divides(config)
        refuse_other_run(Path(config["run_dir"]), config)
    folders = [next(w for w in own if w.startswith("run_dir=")) for own in members]
    if twice := {folder for folder in folders if folders.count(folder) > 1}:
        raise UserError(f"two members of {command.launcher.members} have {min(twice)}; give each a folder of its own")
    return carry_out(command, plan_of(command, run_dir, shared, len(members)), argv, None, members)


def launch_tokenizing(command: Command, argv: Sequence[str]) -> int:
    """An array, each task of which does its share of the shards."""
    words = tokenize.make_parser().parse_intermixed_args(command.arguments)  # argparse says what is wrong, and exits
    if (words.num_shards, words.shard) != (1, 0):
        raise UserError("--num-shards and --shard are the array's; give tasks=N instead")
    run_dir = (command.run_dir or Path("runs") / f"tokenize-{Path(words.store).name}").absolute()
    return carry_out(command, plan_of(command, run_dir, command.arguments), argv)


def launch_evaluation(command: Command, argv: Sequence[str]) -> int:
    """An array, each task of which evaluates its share of the cases."""
    words = evaluate.make_parser().parse_intermixed_args(command.arguments)
    if words.shard:
        raise UserError("--shard is the array's; give tasks=N instead")
    if command.launcher.tasks > 1 and words.suite == "demo":
        raise UserError(f"tasks={command.launcher.tasks} for --suite demo, which one process does; leave tasks out")
    run_dir = (command.run_dir or Path("runs") / f"evaluate-{Path(words.out).name}").absolute()
    return carry_out(command, plan_of(command, run_dir, command.arguments), argv)


def launch_generating(command: Command, argv: Sequence[str]) -> int:
    """An array, each task of which answers its share of the prompts."""
    words = generate.parse(command.arguments)
    if words.shard:
        raise UserError("--shard is the array's; give tasks=N instead")
    if command.launcher.tasks > 1 and not (words.prompts or words.queries):
        raise UserError(f"tasks={command.launcher.tasks} for one prompt; give --prompts or --queries, or tasks=1")
    generate.asked_prompts(words)  # a mistake in a list of prompts is said before anything waits in a queue
    run_dir = (command.run_dir or Path("runs") / f"generate-{words.out.name}").absolute()
    return carry_out(command, plan_of(command, run_dir, command.arguments), argv)


_LAUNCH = {
    "train": launch_training,
    "sweep": launch_sweep,
    "tokenize": launch_tokenizing,
    "evaluate": launch_evaluation,
    "generate": launch_generating,
}


def plan_of(command: Command, run_dir: Path, arguments: list[str], num_members: int = 1) -> JobPlan:
    if command.launcher.type == "local":
        return JobPlan(command.kind, run_dir, "", arguments, command.launcher)
    return plan_job(command.launcher, command.kind, run_dir, arguments, num_members, must_fit=not command.dry_run)


def carry_out(
    command: Command,
    plan: JobPlan,
    argv: Sequence[str],
    config: Mapping[str, Any] | None = None,
    members: Sequence[Sequence[str]] = (),
) -> int:
    run_dir = plan.run_dir
    words = [*python_words(), "-m", "lvm", plan.kind, *plan.arguments]
    if command.dry_run:
        print(plan.script or shlex.join(words))
        return 0
    files = files_of(plan, config, ["lvm", "launch", *argv], members)
    if command.launcher.type == "local":
        return start_here(plan, files, words)
    try:
        refuse_twice(run_dir)
        ids = submit_job(plan, files)
    except AtWork as work:
        print(f"nothing is submitted: {work}; lvm logs {shown_path(run_dir)} follows it")
        return 0
    print(f"job {' -> '.join(ids)} submitted: {shown_path(run_dir)}/slurm/{command.kind}.sh")
    print(follow_hint(command.kind, run_dir, ids[-1]))
    return 0


def start_here(plan: JobPlan, files: Mapping[str, str], words: list[str]) -> int:
    config = plan.config
    if plan.kind == "sweep" or config.nodes > 1:
        raise UserError("launcher=local runs one training on one machine; use launcher=slurm, or `lvm sweep`")
    if config.gpus > torch.cuda.device_count():
        raise UserError(f"gpus={config.gpus} is more than this machine has ({torch.cuda.device_count()})")
    write_files(plan.run_dir, files)
    sys.stdout.flush()
    if not config.background:
        os.execv(words[0], words)
    with open(plan.run_dir / "logs" / "job.log", "ab") as log:
        started = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=os.environ
        )
    print(f"process {started.pid} started; lvm logs {shown_path(plan.run_dir)} follows it, kill {started.pid} stops it")
    return 0


def shown_path(path: Path) -> str:
    """As short as it can be typed here."""
    return shlex.quote(str(path.relative_to(Path.cwd()) if Path.cwd() in path.parents else path))


def follow_hint(kind: Kind, run_dir: Path, job: str) -> str:
    if kind in ("train", "evaluate"):
        return f"lvm logs {shown_path(run_dir)} --follow; lvm runs {shown_path(run_dir.parent)}; scancel {job} stops it"
    return f"squeue -j {job}; tail -f {shown_path(run_dir)}/logs/*; scancel {job} stops it"


def main(argv: Sequence[str]) -> int:
    if any(word in ("-h", "--help") for word in argv):
        print(__doc__)
        return 0
    command = read_command(argv)
    return _LAUNCH[command.kind](command, argv)
