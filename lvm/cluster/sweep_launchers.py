"""Who starts the members of a stage: this machine, some at a time, or Slurm through Hydra's submitit launcher.

    launcher.start(stage, works)    # hand in all members of a stage
    launcher.poll(work)             # None while it is queued or works; else how it ended
    launcher.leave()                # the sweep itself is stopped

submitit only launches. What became of a job is asked of Slurm itself: submitit asks `sacct`, which many clusters lack,
and then waits for ever for a job that was killed.
"""

import datetime
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Protocol

from lvm.cluster import slurm
from lvm.cluster.job_script import python_words
from lvm.cluster.partitions import check_request, choose_partition, minutes
from lvm.cluster.sweeps import RESULT, Member, hydra_text
from lvm.runtime import UserError, atomic_write, write_json
from lvm.runtime.files import cache_folder
from lvm.runtime.slurm import fields, parse_job

LOG = "rank-0.log"
DEFAULT_MINUTES = 24 * 60
PATIENCE = 600.0  # seconds that Slurm may give no answer


@dataclass(frozen=True)
class LaunchOptions:
    launcher: Literal["local", "slurm"] = "local"
    workers: int | None = (
        None  # local: members at a time; None: one on each GPU, or one. slurm: jobs at a time; None: all
    )
    gpus: int | None = None  # of a member, on each node; None: local one where there are any, slurm none
    nodes: int = 1  # slurm, as all below
    partition: str | None = None
    time: str | int | None = None  # limit of a member: 24:00:00, or minutes
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    cpus: int | None = None  # of a rank
    memory: int | None = None  # GB of a node
    setup: str | None = None  # a shell command before each member, as "module load cuda"

    def __post_init__(self) -> None:
        for name in ("workers", "nodes", "cpus", "memory"):
            if (given := getattr(self, name)) is not None and given < 1:
                raise UserError(f"{name} is {given}; use 1 or more")
        for name in ("partition", "time", "account", "qos", "constraint", "memory", "setup", "cpus"):
            if self.launcher == "local" and getattr(self, name) is not None:
                raise UserError(f"{name}={getattr(self, name)} is for launcher=slurm; leave it out or use that")
        if self.launcher == "local" and self.nodes != 1:
            raise UserError(f"nodes={self.nodes} is for launcher=slurm; leave it out or use that")
        if self.time is not None:
            minutes(self.time)

    def devices(self) -> list[str]:
        """Overrides of a member that has more than one GPU or node."""
        ranks = self.gpus or 1
        some = [f"trainer.devices={ranks}"] if ranks > 1 else []
        return some + ([f"trainer.num_nodes={self.nodes}"] if self.nodes > 1 else [])


@dataclass
class Work:
    """A member that shall run now."""

    member: Member
    overrides: tuple[str, ...]
    job: str = ""  # Slurm's id of it
    log_start: int = 0  # bytes of its log that earlier attempts wrote
    former_result: int | None = None  # when these wrote its result

    @property
    def log(self) -> Path:
        return self.member.folder / "logs" / LOG

    def command(self) -> list[str]:
        """Arguments of train.py."""
        return [*self.overrides, f"run_dir={hydra_text(str(self.member.folder))}"]

    def prepare(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        (self.member.folder / "slurm").mkdir(exist_ok=True)
        atomic_write(self.member.folder / "slurm" / "overrides.txt", "\n".join(self.command()) + "\n")
        self.log_start = self.log.stat().st_size if self.log.is_file() else 0
        self.former_result = written_at(self.member.folder / RESULT)


def written_at(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.is_file() else None


class Launcher(Protocol):
    def start(self, stage: str, works: Sequence[Work]) -> None: ...

    def poll(self, work: Work) -> str | None: ...

    def leave(self) -> str: ...


def how_it_ended(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class LocalLauncher:
    """Members as processes of this machine, `workers` at a time, each on its share of the cores and GPUs."""

    def __init__(self, options: LaunchOptions) -> None:
        gpus = visible_gpus()
        each = options.gpus or (1 if gpus else 0)
        if each > len(gpus):
            raise UserError(f"gpus is {each} and this machine shows {len(gpus)}; use fewer, or launcher=slurm")
        self.workers = options.workers or (len(gpus) // each if each else 1)
        if self.workers * each > len(gpus):
            raise UserError(
                f"{self.workers} workers x {each} GPUs are more than the {len(gpus)} here; use fewer workers"
            )
        self.gpus = [gpus[i * each : (i + 1) * each] for i in range(self.workers)]
        self.cores = shares(sorted(os.sched_getaffinity(0)), self.workers)
        self.queue: list[Work] = []
        self.running: dict[str, tuple[int, subprocess.Popen[bytes]]] = {}  # member id -> worker, process

    def start(self, stage: str, works: Sequence[Work]) -> None:
        self.queue.extend(works)

    def poll(self, work: Work) -> str | None:
        self._fill()
        if work.member.id not in self.running:
            return None
        code = self.running[work.member.id][1].poll()
        if code is None:
            return None
        del self.running[work.member.id]
        self._fill()
        return how_it_ended(code)

    def leave(self) -> str:
        """Ask each member to save and stop, and wait for it."""
        self.queue.clear()
        for _, process in self.running.values():
            process.send_signal(signal.SIGTERM)
        for _, process in self.running.values():
            process.wait()
        return "its members were saved and stopped; the same command continues them"

    def _fill(self) -> None:
        free = [worker for worker in range(self.workers) if worker not in {w for w, _ in self.running.values()}]
        for worker in free:
            if self.queue:
                work = self.queue.pop(0)
                self.running[work.member.id] = worker, self._spawn(work, worker)

    def _spawn(self, work: Work, worker: int) -> subprocess.Popen[bytes]:
        work.prepare()
        environment = dict(os.environ)
        if self.gpus[worker]:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus[worker])
        if self.workers > 1:  # two compilations at once in one cache disturb each other
            folder = cache_folder() / "inductor" / f"worker-{worker}"
            environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
        command = [*python_words(), "-m", "lvm", "train", *work.command()]
        with open(work.log, "ab") as log:
            return on_cores(self.cores[worker], command, environment, log)


def on_cores(
    cores: Sequence[int], command: list[str], environment: dict[str, str], log: IO[bytes]
) -> subprocess.Popen[bytes]:
    """A child that is bound to these cores from its first instruction on: it inherits them."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    finally:
        os.sched_setaffinity(0, own)


def shares(cores: Sequence[int], workers: int) -> list[list[int]]:
    """The cores of each worker; some are shared where there are more workers than cores."""
    if workers > len(cores):
        return [[cores[worker % len(cores)]] for worker in range(workers)]
    cuts = [len(cores) * worker // workers for worker in range(workers + 1)]
    return [list(cores[a:b]) for a, b in itertools.pairwise(cuts)]


def visible_gpus() -> list[str]:
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


class SubmititLauncher:
    """A stage as one array job, submitted by Hydra's submitit launcher (`hydra/launcher=submitit_slurm`)."""

    def __init__(self, options: LaunchOptions, folder: Path, poll_seconds: float = 2.0) -> None:
        slurm.require_slurm()
        check_submitit()
        self.options, self.folder, self.poll_seconds = options, folder, poll_seconds
        self._asked = time.monotonic()
        self._ended: dict[str, slurm.Job | None] = {}  # None: Slurm has forgotten it
        self._watched: list[Work] = []
        check_job(options)

    def start(self, stage: str, works: Sequence[Work]) -> None:
        for work in works:
            work.prepare()
        folder = self._new_folder(stage)
        members = [{"overrides": work.command(), "log": str(work.log.parent.resolve())} for work in works]
        write_json(folder / "members.json", members)
        for work, job in zip(works, self._submit(stage, folder, len(works)), strict=True):
            work.job = job
            record = {"id": job, "time": _now(), "script": str(folder), "kind": "sweep"}
            with open(work.member.folder / "slurm" / "jobs.jsonl", "a") as file:
                file.write(json.dumps(record) + "\n")
        self._watched.extend(works)

    def adopt(self, work: Work) -> None:
        """Watch a job of an earlier call."""
        self._watched.append(work)

    def poll(self, work: Work) -> str | None:
        if time.monotonic() - self._asked > self.poll_seconds:
            self._ask()
        if work.job not in self._ended:
            return None
        job = self._ended[work.job]
        return f"job {work.job} " + (f"{job.state}, exit code {job.exit_code}" if job else "is unknown to Slurm by now")

    def _ask(self) -> None:
        """What Slurm says of all jobs, one question an array; a controller that is away for a while is waited for."""
        waiting = [work.job for work in self._watched if work.job not in self._ended]
        try:
            arrays = {array: tasks_of_array(array) for array in {array_of(job) for job in waiting}}
        except UserError:
            if time.monotonic() - self._asked > PATIENCE:
                raise
            return
        for job in waiting:
            tasks = arrays[array_of(job)]
            known = tasks.get(job) or tasks.get("")
            if known is None or known.ended:
                self._ended[job] = known
        self._asked = time.monotonic()

    def leave(self) -> str:
        ids = ", ".join(dict.fromkeys(array_of(work.job) for work in self._watched))
        return f"its jobs ({ids}) go on; the same command watches them again"

    def _new_folder(self, stage: str) -> Path:
        parent = self.folder / "slurm"
        number = sum(1 for _ in parent.glob(f"{stage}-*"))
        folder = parent / f"{stage}-{number:03d}"
        folder.mkdir(parents=True)
        return folder.resolve()

    def _submit(self, stage: str, folder: Path, count: int) -> list[str]:
        """Job ids of members 0 .. count-1."""
        command = [sys.executable, "-m", "lvm.commands._sweep_member", *self._arguments(stage, folder, count)]
        with open(folder / "submit.log", "wb") as log:
            hydra = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while len(ids := submitted(folder)) < count:
                if hydra.poll() is not None and len(ids := submitted(folder)) < count:
                    raise UserError(f"Hydra's submitit launcher failed: {last_line(folder / 'submit.log')}")
                time.sleep(0.1)
        finally:
            # It would go on to wait for its jobs, by sacct.
            hydra.terminate()
            hydra.wait()
        return ids

    def _arguments(self, stage: str, folder: Path, count: int) -> list[str]:
        o = self.options
        parameters = {
            "name": f"lvm-{self.folder.name}-{stage}",
            "submitit_folder": f"{folder}/%j",
            "partition": o.partition,
            "account": o.account,
            "qos": o.qos,
            "constraint": o.constraint,
            "timeout_min": minutes(o.time or DEFAULT_MINUTES),
            "nodes": o.nodes,
            "tasks_per_node": o.gpus or 1,
            "gpus_per_node": o.gpus,
            "cpus_per_task": o.cpus,
            "mem_gb": o.memory,
            "array_parallelism": o.workers,
            "setup": [o.setup] if o.setup else None,
            "additional_parameters": {"requeue": True},
        }
        return [
            "--multirun",
            "hydra/launcher=submitit_slurm",
            f"hydra.sweep.dir={hydra_text(str(folder))}",
            "hydra.sweep.subdir=${hydra.job.num}",
            "hydra.output_subdir=null",
            f"members={hydra_text(str(folder / 'members.json'))}",
            f"member={','.join(map(str, range(count)))}",
            *(f"++hydra.launcher.{key}={hydra_text(v)}" for key, v in parameters.items() if v is not None),
        ]


def submitted(folder: Path) -> list[str]:
    """Ids of the jobs that submitit has handed in completely, by the number of the member."""
    pattern = re.compile(r"(\d+(?:_(\d+))?)_submitted\.pkl")
    found = [match for path in folder.glob("*/*_submitted.pkl") if (match := pattern.fullmatch(path.name))]
    return [match[1] for match in sorted(found, key=lambda match: int(match[2] or 0))]


def check_submitit() -> None:
    try:
        import hydra_plugins.hydra_submitit_launcher  # noqa: F401
    except ImportError:
        raise UserError("launcher=slurm needs hydra-submitit-launcher; pip install 'lvm[slurm]'") from None


def check_job(options: LaunchOptions) -> None:
    """Ask Slurm whether such a job could ever run, without submitting it. Raises `UserError`."""
    limit, tasks = minutes(options.time or DEFAULT_MINUTES), options.gpus or 1
    partition = choose_partition(options.partition)
    check_request(partition, options.nodes, options.gpus or 0, tasks * (options.cpus or 1), limit)
    asked = {
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "constraint": options.constraint,
        "time": limit,
        "nodes": options.nodes,
        "gpus-per-node": options.gpus,
        "cpus-per-task": options.cpus,
        "mem": options.memory and f"{options.memory}G",
    }
    given = [f"--{name}={value}" for name, value in asked.items() if value is not None]
    slurm.slurm("sbatch", "--test-only", f"--ntasks-per-node={tasks}", *given, "--wrap=true")


def array_of(job: str) -> str:
    return job.partition("_")[0]


def tasks_of_array(array: str) -> dict[str, slurm.Job]:
    """What Slurm knows of an array, by 12_3; under "" those that wait together, or a job that is no array."""
    try:
        lines = slurm.slurm("scontrol", "--oneliner", "show", "job", array).splitlines()
    except UserError as error:
        if "Invalid job id" not in str(error):
            raise
        return {}
    found = {}
    for line in lines:
        task = fields(line).get("ArrayTaskId", "")
        found[f"{array}_{task}" if task.isdecimal() else ""] = parse_job(line)
    return found


def last_line(log: Path, start: int = 0) -> str:
    """The line of a log that says what went wrong: its last `error:`, or exception, or simply its last line."""
    if not log.is_file():
        return ""
    with open(log, "rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(error: |[\w.]*(Error|Exception|Interrupt)\b)", line)]
    return (errors or lines or [""])[-1]


def make_launcher(options: LaunchOptions, folder: Path) -> LocalLauncher | SubmititLauncher:
    return LocalLauncher(options) if options.launcher == "local" else SubmititLauncher(options, folder)


def _now() -> str:
    return datetime.datetime.now().isoformat(timespec="seconds")
