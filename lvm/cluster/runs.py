"""What the run folders below a folder are doing: read from their own files and from Slurm, in a glance for hundreds.

A run folder is one with a lease, submitted jobs or a history; sweeps are folders of them. Of metrics only the end is
read. Whatever is missing, half written or damaged leaves its field empty.

States: `running`, `pending`, `requeued` (pending again) and Slurm's other words for a job that has not ended;
`finished`; `stopped` (saved, to be continued) and `cancelled`; `failed`, with a reason; `interrupted` (the process is
gone and nobody saved); `unknown` (its lease is held on another host, which nobody asked); `new` (never started).
"""

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lvm.cluster import slurm
from lvm.runtime import UserError
from lvm.runtime.lease import owner_is_alive
from lvm.runtime.metrics import read_tail

JOBS, LAUNCH, CANCELLED = Path("slurm", "jobs.jsonl"), Path("slurm", "launch.json"), Path("slurm", "cancelled")
WORKING = ("running", "completing", "suspended")
_STEP = re.compile(r"step-(\d{8,})")
_ERROR = re.compile(r"^(error: .+|[\w.]*(?:Error|Exception|Interrupt|Signal|NotFinite|LostPeer)\b.*)$")
_LOG_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True)
class Run:
    name: str  # its path below the folder that was asked for
    state: str
    reason: str = ""  # of a failure, or why it waits
    step: int | None = None
    max_steps: int | None = None
    tokens: int | None = None
    loss: float | str | None = None  # the last one; a text where it is not finite
    validation_loss: float | str | None = None
    tokens_per_second: float | None = None
    checkpoint_step: int | None = None  # of the last complete one
    checkpoint_age: float | None = None  # seconds
    restarts: int = 0  # incarnations after the first
    seconds_left: float | None = None  # to max_steps, at the speed of the last records
    limit_left: float | None = None  # seconds to the job's time limit
    job: str | None = None  # Slurm's id
    nodes: str = ""  # as Slurm writes them, or the host of the lease

    @property
    def works(self) -> bool:
        return self.state in WORKING


@dataclass(frozen=True)
class Facts:
    """What the files of one run folder say."""

    path: Path
    config: dict[str, Any]
    lease: dict[str, Any]
    result: dict[str, Any]
    job_ids: tuple[str, ...]  # as submitted, the lease's last where nobody wrote it down
    cancelled: bool

    @property
    def finished(self) -> bool:
        return self.result.get("finished") is True


def list_runs(folder: Path) -> list[Run]:
    """Every run at or below `folder`, by name. Raises `UserError` where there is no such folder."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give one that holds runs")
    facts = [read_facts(path) for path in find_runs(folder)]
    known = ask_slurm(job_id for run in facts if not run.finished for job_id in run.job_ids)
    return [describe(run, folder, known) for run in facts]


def open_run(path: Path) -> tuple[Facts, dict[str, slurm.Job] | None]:
    """One run's files, and what Slurm says of its jobs. Raises `UserError` for a folder that is no run."""
    if not is_run(path):
        near = [found.relative_to(path).as_posix() for found in find_runs(path)][:3] if path.is_dir() else []
        remedy = f"name one of the runs in it ({', '.join(near)} ...)" if near else "`lvm runs` lists those there are"
        raise UserError(f"{path} is no run folder; {remedy}")
    facts = read_facts(path)
    return facts, ask_slurm(facts.job_ids)


def as_json(runs: Sequence[Run]) -> str:
    return json.dumps([asdict(run) for run in runs], indent=1)


# Folders and files.


def is_run(path: Path) -> bool:
    return (
        (path / JOBS).is_file()
        or (path / LAUNCH).is_file()
        or (path / "lease.json").is_file()
        or ((path / "config.json").is_file() and ((path / "metrics").is_dir() or (path / "checkpoints").is_dir()))
    )


def find_runs(folder: Path) -> Iterator[Path]:
    """In order of their names; nothing inside a run is looked at, but the members of an array."""
    for place, below, _ in os.walk(folder, followlinks=True):
        if is_run(Path(place)):
            members = (Path(place) / "slurm" / "members").is_dir()
            below[:] = [name for name in below if members and name not in ("slurm", "logs")]
            yield Path(place)
        below[:] = sorted(name for name in below if not name.startswith("."))


def read_facts(path: Path) -> Facts:
    lease = read_mapping(path / "lease.json")
    job_ids = list(dict.fromkeys(str(row["id"]) for row in read_rows(path / JOBS) if row.get("id")))
    if (job := slurm.job_of_lease(lease)) and job not in job_ids:
        job_ids.append(job)
    config, result = read_mapping(path / "config.json"), read_mapping(path / "result.json")
    return Facts(path, config, lease, result, tuple(job_ids), is_cancelled(path))


def is_cancelled(path: Path) -> bool:
    """Whether nothing was submitted since."""
    with contextlib.suppress(OSError):
        return (path / CANCELLED).stat().st_mtime_ns >= (path / JOBS).stat().st_mtime_ns
    return False


def read_mapping(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Objects of a file of JSON lines; others are left out."""
    rows = []
    with contextlib.suppress(OSError):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def last_checkpoint(run: Path) -> tuple[int, float] | tuple[None, None]:
    """Step and age in seconds."""
    with contextlib.suppress(OSError):
        steps = sorted(int(m[1]) for entry in os.scandir(run / "checkpoints") if (m := _STEP.fullmatch(entry.name)))
        for step in reversed(steps):
            with contextlib.suppress(OSError):
                manifest = run / "checkpoints" / f"step-{step:08d}" / "manifest.json"
                return step, max(0.0, time.time() - manifest.stat().st_mtime)
    return None, None


def log_files(run: Path) -> list[Path]:
    """What the run's processes said: the job's own output, then one file a rank in the order of ranks."""
    ranks = {path: int(path.stem[5:]) for path in (run / "logs").glob("rank-*.log") if path.stem[5:].isdecimal()}
    job = run / "logs" / "job.log"
    return ([job] if job.is_file() else []) + sorted(ranks, key=lambda path: ranks[path])


def last_error(run: Path) -> str:
    """The last line of the logs that tells an error; ranks are asked before the job."""
    files = log_files(run)
    for path in [*files[1:], *files[:1]] if files and files[0].stem == "job" else files:
        with contextlib.suppress(OSError), open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
            errors = [line for line in file.read().decode(errors="replace").splitlines() if _ERROR.match(line)]
            if errors:
                return errors[-1]
    return ""


# States.


def ask_slurm(job_ids: Iterable[str]) -> dict[str, slurm.Job] | None:
    """None where there is no Slurm, or it does not answer; a line says so then."""
    wanted = list(dict.fromkeys(job_ids))
    if not wanted or not slurm.has_slurm():
        return {} if not wanted else None
    try:
        return slurm.jobs(wanted)
    except UserError as error:
        print(f"Slurm was not asked: {error}", file=sys.stderr)
        return None


def own_jobs(run: Facts, known: Mapping[str, slurm.Job] | None) -> list[slurm.Job]:
    return [known[job_id] for job_id in run.job_ids if job_id in known] if known else []


def current_job(jobs: Sequence[slurm.Job]) -> slurm.Job | None:
    """The one at work, else the next to start, else the last."""
    active = [job for job in jobs if not job.ended]
    working = [job for job in active if job.state.lower() in WORKING]
    return next(iter([*working, *active, *reversed(jobs)]), None)


def state_of(run: Facts, known: Mapping[str, slurm.Job] | None) -> tuple[str, str]:
    """State and reason."""
    if run.finished:
        return "finished", ""
    job = current_job(own_jobs(run, known))
    if job is not None and not job.ended:
        if job.state == "PENDING":
            return ("requeued" if job.restarts else "pending"), job.reason
        return job.state.lower(), ""
    alive = owner_is_alive(run.lease)
    if alive:
        return "running", ""
    if run.cancelled:
        return "cancelled", ""
    if run.result:
        return "stopped", signal_name(run.result.get("signal"))
    if job is not None and job.state == "CANCELLED":
        return "cancelled", ""
    if job is not None and job.state != "COMPLETED":
        return "failed", ": ".join(part for part in (job.state, last_error(run.path)) if part)
    if not run.lease and job is not None and read_mapping(run.path / LAUNCH).get("kind", "train") != "train":
        return "finished", ""  # no training: Slurm's word is all there is
    if not run.lease:
        return ("failed", last_error(run.path)) if job is not None else ("new", "")
    if run.lease.get("released"):
        return ("finished", "") if all_steps_saved(run) else ("failed", last_error(run.path))
    if alive is None and not (run.lease.get("job") and known is not None):  # Slurm would know its own
        return "unknown", f"on {run.lease.get('host')} since {run.lease.get('since')}"
    return "interrupted", last_error(run.path)


def all_steps_saved(run: Facts) -> bool:
    """So runs ended before they wrote what they came to."""
    step, max_steps = last_checkpoint(run.path)[0], configured_steps(run)
    return step is not None and max_steps is not None and step >= max_steps


def configured_steps(run: Facts) -> int | None:
    trainer = run.config.get("trainer")
    return whole(trainer.get("max_steps")) if isinstance(trainer, dict) else None


def signal_name(number: Any) -> str:
    try:
        return f"by {signal.Signals(number).name}"
    except ValueError:
        return ""


def describe(run: Facts, folder: Path, known: Mapping[str, slurm.Job] | None) -> Run:
    state, reason = state_of(run, known)
    job = current_job(own_jobs(run, known))
    records = read_tail(run.path / "metrics")
    latest = {key: value for record in records for key, value in record.items()} | run.result
    checkpoint_step, checkpoint_age = last_checkpoint(run.path)
    steps = [step for step in (whole(latest.get("step")), checkpoint_step) if step is not None]
    step = max(steps) if not records and steps else whole(latest.get("step"))
    max_steps = whole(latest.get("max_steps")) or configured_steps(run)
    per_step = seconds_per_step(records)
    left = None if None in (step, max_steps, per_step) else max(0, max_steps - step) * per_step  # type: ignore[operator]
    at_work = state in WORKING
    return Run(
        run.path.relative_to(folder).as_posix() if run.path != folder else run.path.name,
        state,
        reason,
        step,
        max_steps,
        whole(latest.get("tokens")),
        latest.get("loss"),
        latest.get("validation_loss"),
        number(latest.get("tokens_per_second")),
        checkpoint_step,
        checkpoint_age,
        whole(run.lease.get("attempt")) or 0,
        left,
        seconds_until(job.ends) if job is not None and at_work else None,
        job.id if job is not None else None,
        (job.nodes if job is not None else "") or str(run.lease.get("host", "")),
    )


def seconds_per_step(records: Sequence[Mapping[str, Any]]) -> float | None:
    """Of the last records of training, what stood between them (validation, saving) included."""
    found = [(whole(r.get("step")), number(r.get("seconds"))) for r in records if "loss" in r]
    pairs = [(step, seconds) for step, seconds in found if step is not None and seconds is not None]
    last = len(pairs) - 1
    first = last
    while first > 0 and pairs[first - 1][1] < pairs[first][1] and pairs[first - 1][0] < pairs[first][0]:
        first -= 1  # until another attempt, whose clock began anew
    if first < 0 or pairs[last][0] <= pairs[first][0]:
        return None
    return (pairs[last][1] - pairs[first][1]) / (pairs[last][0] - pairs[first][0])


def whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def seconds_until(moment: str) -> float | None:
    try:
        return max(0.0, datetime.fromisoformat(moment).timestamp() - time.time())
    except ValueError:
        return None


# The list.

HEAD = ("run", "state", "step", "tokens", "loss", "valid.", "tokens/s", "checkpoint", "restarts", "left", "limit", "on")


def table(runs: Sequence[Run]) -> str:
    """One line a run; reasons at its end."""
    rows = [HEAD, *(cells(run) for run in runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows]
    return "\n".join(f"{line}  {reason}".rstrip() for line, reason in zip(lines, ["", *(run.reason for run in runs)]))


def cells(run: Run) -> tuple[str, ...]:
    of = f"/{run.max_steps}" if run.max_steps is not None else ""
    age = f"{run.checkpoint_step} ({duration(run.checkpoint_age)})" if run.checkpoint_step is not None else "-"
    return (
        run.name,
        run.state,
        f"{'-' if run.step is None else run.step}{of}",
        large(run.tokens),
        loss_text(run.loss),
        loss_text(run.validation_loss),
        large(run.tokens_per_second),
        age,
        str(run.restarts),
        duration(run.seconds_left) if run.works else "-",
        duration(run.limit_left),
        run.nodes or "-",
    )


def loss_text(value: Any) -> str:
    plain = number(value)
    return f"{plain:.3f}" if plain is not None else str(value or "-")


def large(value: float | None) -> str:
    """12, 3.4k, 5.6M, 7.8B, 9.1T"""
    if value is None:
        return "-"
    for unit in ("", "k", "M", "B"):
        if abs(value) < 999.5:
            return f"{value:.0f}" if not unit else f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}T"


def duration(seconds: float | None) -> str:
    """45s, 12m, 3h05m, 2d07h"""
    if seconds is None:
        return "-"
    minutes = int(seconds) // 60
    if minutes < 1:
        return f"{int(seconds)}s"
    if minutes < 60:
        return f"{minutes}m"
    return f"{minutes // 60}h{minutes % 60:02}m" if minutes < 24 * 60 else f"{minutes // 1440}d{minutes // 60 % 24:02}h"
