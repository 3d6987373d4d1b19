"""The Slurm of this machine: submit, ask, signal, requeue, cancel. Thin over its own commands, whose errors are told.

A job's state is Slurm's own word in capitals (PENDING, RUNNING, COMPLETED, FAILED, TIMEOUT, CANCELLED, PREEMPTED,
NODE_FAIL, OUT_OF_MEMORY ...). Asked of `scontrol`, which knows running jobs and those that ended a while ago, and of
`sacct` for older ones where the cluster keeps accounts.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from lvm.runtime import UserError

ENDED = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL")


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

    @property
    def ended(self) -> bool:
        return self.state in ENDED


def has_slurm() -> bool:
    return shutil.which("sbatch") is not None


def require_slurm() -> None:
    if not has_slurm():
        raise UserError("there is no Slurm on this machine (no sbatch); log in to your cluster or use launcher=local")


def slurm(command: str, *arguments: str, timeout: float = 60) -> str:
    """Output of one of Slurm's commands. Raises `UserError` with its first line of complaint."""
    require_slurm()
    try:
        done = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise UserError(f"{command} gave no answer for {timeout:.0f} s; is slurmctld up? (scontrol ping)") from None
    except FileNotFoundError:
        raise UserError(f"there is no {command} on this machine; log in to your cluster") from None
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise UserError(f"{command} failed: {lines[0].strip() if lines else f'exit code {done.returncode}'}")
    return done.stdout


def submit(script: str | os.PathLike[str], *options: str) -> str:
    """Submit a job script; its id."""
    answer = slurm("sbatch", "--parsable", *options, str(script)).strip().splitlines()[-1]
    return answer.partition(";")[0]  # "id;cluster"


def jobs(ids: Sequence[str]) -> dict[str, Job]:
    """What Slurm knows of these jobs; one it has forgotten is not in the answer."""
    found = {}
    for job_id in ids:
        try:
            found[job_id] = _parse(slurm("scontrol", "--oneliner", "show", "job", job_id).splitlines()[0])
        except UserError as error:
            if "Invalid job id" not in str(error):
                raise
    missing = [job_id for job_id in ids if job_id not in found]
    return found | (_from_accounts(missing) if missing else {})


def requeue(job_id: str) -> None:
    slurm("scontrol", "requeue", job_id)


def cancel(*job_ids: str) -> None:
    slurm("scancel", *job_ids)


def _parse(line: str) -> Job:
    values = dict(re.findall(r"(\S+?)=(.*?)(?=\s\S+?=|$)", line))
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
    )


def _from_accounts(ids: Sequence[str]) -> dict[str, Job]:
    try:
        fields = "JobIDRaw,State,NodeList,Start,ExitCode"
        lines = slurm("sacct", "-nXP", f"--format={fields}", f"--jobs={','.join(ids)}").splitlines()
    except UserError:  # accounting storage is disabled
        return {}
    rows = [line.split("|") for line in lines]
    return {row[0]: Job(row[0], row[1].partition(" ")[0], "", 0, row[2], row[3], "", row[4]) for row in rows if row[0]}
