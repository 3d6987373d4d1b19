"""The job script: what is asked of Slurm, and a template of slurm/ filled in with it.

A template is a job script in which @{name} stands for a value; the names are the keys of `values_of`.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from lvm.cluster.partitions import binds_tasks, check_request, choose_partition, cpus_for_each, minutes
from lvm.cluster.slurm import has_slurm, require_slurm
from lvm.runtime import UserError

Kind = Literal["train", "tokenize", "evaluate", "generate", "sweep"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class LauncherConfig:
    type: Literal["slurm", "local"] = "slurm"
    nodes: int = 1
    gpus: int = 1  # a node, and as many tasks; 0: a job on the CPU
    tasks_per_node: int | None = None  # None: gpus, or 1 without
    cpus_per_task: int | None = None  # None: a node's shared among its GPUs, or among the tasks where there are none
    mem: str | None = None  # of a node, as 200G; 0: all of it; None: what the cluster gives
    time: str | int = "24:00:00"  # as Slurm writes it; a number: minutes
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    container: str | None = None  # FILE.sif: apptainer; else an image for pyxis
    container_mounts: list[str] = field(default_factory=list)  # PATH or PATH:WHERE, beside the folders of the job
    sbatch: list[str] = field(default_factory=list)  # further options
    setup: list[str] = field(default_factory=list)  # lines of shell before the start
    template: str | None = None  # a job script of the user's; None: slurm/KIND.sh
    python: str | None = None  # None: the one of this command; in a container its `python`
    signal_seconds: int = 120  # before the limit the tasks are told to save
    chain: int = 1  # jobs that follow one another
    tasks: int = 1  # of the array of kind=tokenize or generate
    members: str | None = None  # of kind=sweep: a file with the overrides of one member a line
    background: bool = False  # of type local

    def __post_init__(self) -> None:
        least = {"nodes": 1, "gpus": 0, "signal_seconds": 1, "chain": 1, "tasks": 1}
        for name, value in (*least.items(), ("tasks_per_node", 1), ("cpus_per_task", 1)):
            if (given := getattr(self, name)) is not None and given < value:
                raise UserError(f"{name} is {given}; use {value} or more")
        if self.gpus and self.tasks_per_node not in (None, self.gpus):
            raise UserError(f"tasks_per_node is {self.tasks_per_node} and gpus {self.gpus}; one task has one GPU")
        minutes(self.time)
        for name in ("sbatch", "setup"):
            if any("\n" in line for line in getattr(self, name)):
                raise UserError(f"launcher.{name} has a value of several lines; give a list of lines")

    @property
    def tasks_on_a_node(self) -> int:
        return self.tasks_per_node or max(1, self.gpus)


@dataclass(frozen=True)
class JobPlan:
    """What would be submitted."""

    kind: Kind
    run_dir: Path
    script: str
    arguments: list[str]  # of lvm KIND, what the array adds left out
    config: LauncherConfig

    @property
    def arguments_file(self) -> str:
        return "overrides.txt" if self.kind in ("train", "sweep") else "arguments.txt"


# Filling in a template.


def template_folder() -> Path:
    """`slurm/`: beside the packages in a checkout, inside the package in a wheel."""
    for folder in (Path(__file__).parents[2] / "slurm", Path(__file__).parents[1] / "slurm"):
        if folder.is_dir():
            return folder
    raise UserError("the folder slurm/ is missing from this installation; install the project again")


def fill_in(template: str, values: Mapping[str, str], where: str) -> str:
    """The template with each @{name} replaced. Raises `UserError` for a name that has no value."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise UserError(f"{where} asks for @{{{match[1]}}}, which is unknown; known: {', '.join(sorted(values))}")
        return values[match[1]]

    return re.sub(r"@\{([\w -]*)\}", value, template)


def sbatch_lines(config: LauncherConfig) -> str:
    """#SBATCH lines of what was asked for and is not in every script."""
    named = [(name, getattr(config, name)) for name in ("mem", "partition", "account", "qos", "constraint")]
    options = [f"--{name}={shlex.quote(str(value))}" for name, value in named if value is not None]
    if config.gpus:
        options.insert(0, f"--gpus-per-node={config.gpus}")
    return "\n".join(f"#SBATCH {option}" for option in [*options, *config.sbatch])


def environment_lines(config: LauncherConfig) -> str:
    """The caller's Python first on the path, and its cache."""
    lines = ["export PYTHONUNBUFFERED=1"]
    if config.container is None:
        lines.insert(0, f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"')
    if cache := os.environ.get("LVM_CACHE"):
        lines.append(f"export LVM_CACHE={shlex.quote(str(Path(cache).expanduser().resolve()))}")
    return "\n".join(lines)


def mounted(config: LauncherConfig, run_dir: Path) -> list[str]:
    """What a container sees of the outside, each under its own name: the working folder, the run's, the cache."""
    cache = Path(os.environ.get("LVM_CACHE") or "~/.cache/lvm").expanduser().resolve()
    own = [Path.cwd(), run_dir, *([cache] if cache.is_dir() else [])]
    inner = {str(path) for path in own if any(other in path.parents for other in own)}
    return [f"{path}:{path}" for path in dict.fromkeys(map(str, own)) if path not in inner] + config.container_mounts


def container_words(config: LauncherConfig, run_dir: Path) -> tuple[str, str]:
    """(options of srun, what stands before python) to run in the container, if there is one."""
    if config.container is None:
        return "", ""
    mounts = mounted(config, run_dir)
    if not config.container.endswith(".sif"):
        words = [f"--container-image={config.container}", f"--container-mounts={','.join(mounts)}"]
        return shlex.join([*words, f"--container-workdir={Path.cwd()}"]), ""
    image = Path(config.container).resolve()
    if not image.is_file():
        raise UserError(f"container={config.container} does not exist; give an apptainer image, or one for pyxis")
    binds = [word for mount in mounts for word in ("--bind", mount)]
    nv = ["--nv"] if config.gpus else []
    return "", shlex.join(["apptainer", "exec", *nv, *binds, "--pwd", str(Path.cwd()), str(image)]) + " "


def check_pyxis() -> None:
    options = subprocess.run(["srun", "--help"], capture_output=True, text=True, timeout=60).stdout
    if "--container-image" not in options:
        raise UserError("this Slurm has no pyxis (srun knows no --container-image); give container=FILE.sif")


def check_path(path: Path) -> None:
    if found := re.search(r"""["'\\%$`\s]""", str(path)):
        raise UserError(f"{str(path)!r} holds {found[0]!r}, which job scripts read otherwise; use another folder")


def python_words() -> list[str]:
    """The Python of this command; -P: a folder `tokenizer` where somebody works is not taken for the package."""
    here = Path(__file__).parents[2] == Path.cwd()
    return [sys.executable] if here else [sys.executable, "-P"]


def values_of(
    config: LauncherConfig, kind: Kind, run_dir: Path, cpus: int, binds: bool, num_members: int
) -> dict[str, str]:
    """What stands for each placeholder of a template."""
    srun_options, before_python = container_words(config, run_dir)
    words = ["python"] if config.container else python_words()
    python = shlex.join([config.python] if config.python else words)
    return {
        "name": f"lvm-{run_dir.name}",
        "nodes": str(config.nodes),
        "tasks_per_node": str(config.tasks_on_a_node),
        "cpus_per_task": str(cpus),
        "gpus": str(config.gpus),
        "time": str(config.time),
        "folder": str(Path.cwd()),
        "run_dir": str(run_dir),
        "requeue": "--requeue" if config.chain == 1 else "--no-requeue",
        "signal_seconds": str(config.signal_seconds),
        "options": sbatch_lines(config),
        "environment": environment_lines(config),
        "setup": "\n".join(config.setup),
        "srun_options": " ".join(filter(None, [f"--cpus-per-task={cpus}", "--cpu-bind=cores" * binds, srun_options])),
        "python": before_python + python,
        "tasks": str(config.tasks),
        "last_task": str((num_members if kind == "sweep" else config.tasks) - 1),
    }


def plan_job(
    config: LauncherConfig,
    kind: Kind,
    run_dir: Path,
    arguments: Sequence[str],
    num_members: int = 1,
    must_fit: bool = True,
) -> JobPlan:
    """Fill in the template. Raises `UserError` for what this cluster cannot run (unless `must_fit` is false and there
    is no Slurm here); writes nothing."""
    for path in (run_dir, Path.cwd()):
        check_path(path)
    if any("\n" in argument for argument in arguments):
        raise UserError("an argument of several lines cannot be handed to a job; put it into a config file")
    if kind != "train" and config.nodes * config.tasks_on_a_node > 1:
        raise UserError(f"kind={kind} runs on one GPU or none a task; use nodes=1 gpus=1")
    cpus, binds = config.cpus_per_task or 1, True
    if must_fit or has_slurm():
        require_slurm()
        partition = choose_partition(config.partition)
        cpus = config.cpus_per_task or cpus_for_each(partition, config.gpus, config.tasks_on_a_node)
        check_request(partition, config.nodes, config.gpus, cpus * config.tasks_on_a_node, config.time)
        binds = binds_tasks()
        if config.container and not config.container.endswith(".sif"):
            check_pyxis()
    file = Path(config.template) if config.template else template_folder() / f"{kind}.sh"
    if not file.is_file():
        raise UserError(f"launcher.template={file} does not exist; copy one of {template_folder()}")
    script = fill_in(file.read_text(), values_of(config, kind, run_dir, cpus, binds, num_members), str(file))
    return JobPlan(kind, run_dir, re.sub(r"\n{3,}", "\n\n", script), list(arguments), config)
