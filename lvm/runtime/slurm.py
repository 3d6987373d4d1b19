"""Slurm's own commands, and what they say of a job. Where Slurm is not, nothing here is asked.

A job's state is Slurm's own word in capitals: PENDING, RUNNING, COMPLETING, COMPLETED, FAILED, TIMEOUT, CANCELLED,
PREEMPTED, NODE_FAIL, OUT_OF_MEMORY ... A job that is being ended is COMPLETING, whoever ends it and why.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from lvm.runtime.errors import UserError

ENDED = (
    *("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL"),
    *("PREEMPTED", "REVOKED"),  # by a cluster that cancels what it preempts; one that requeues says PENDING
)


@dataclass(frozen=True)
class Job:
    id: str
    state: str
    reason: str = ""
    restarts: int = 0
    nodes: str = ""  # as Slurm writes them: n[1-2]
    started: str = ""  # local time, ISO; "" before it starts
    ends: str = ""  # when its time limit is reached
    exit_code: str = ""  # "status:signal"
    may_requeue: bool = False

    @property
    def ended(self) -> bool:
        return self.state in ENDED


def has_slurm() -> bool:
    return shutil.which("sbatch") is not None


def require_slurm() -> None:
    if not has_slurm():
        raise UserError("there is no Slurm on this machine (no sbatch); log in to your cluster or use launcher=local")


def slurm(command: str, *arguments: str, timeout: float = 60, environment: Mapping[str, str] | None = None) -> str:
    """Output of one of Slurm's commands. Raises `UserError` with its first line of complaint."""
    require_slurm()
    try:
        done = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=timeout, env=environment)
    except subprocess.TimeoutExpired:
        raise UserError(f"{command} gave no answer for {timeout:.0f} s; is slurmctld up? (scontrol ping)") from None
    except FileNotFoundError:
        raise UserError(f"there is no {command} on this machine; log in to your cluster") from None
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise UserError(f"{command} failed: {lines[0].strip() if lines else f'exit code {done.returncode}'}")
    return done.stdout


def fields(line: str) -> dict[str, str]:
    """KEY=VALUE pairs of a line of `scontrol --oneliner`; values may hold spaces."""
    return dict(re.findall(r"(\S+?)=(.*?)(?=\s\S+?=|$)", line))


def show_job(job_id: str, timeout: float = 60) -> Job | None:
    """What the controller knows of a job, or None if it knows it no more."""
    try:
        lines = slurm("scontrol", "--oneliner", "show", "job", job_id, timeout=timeout).splitlines()
    except UserError as error:
        if "Invalid job id" not in str(error):
            raise
        return None
    return parse_job(lines[0])


def parse_job(line: str) -> Job:
    """Of a line of `scontrol --oneliner show job`."""
    values = fields(line)
    known = lambda key: "" if values.get(key) in (None, "(null)", "Unknown", "N/A") else values[key]
    return Job(
        values["JobId"],
        known("JobState").partition(" ")[0],
        "" if known("Reason") == "None" else known("Reason"),
        int(values.get("Restarts") or 0),
        known("NodeList"),
        known("StartTime"),
        known("EndTime"),
        known("ExitCode"),
        values.get("Requeue") == "1",
    )
