"""The Slurm of this machine: submit, ask, signal, requeue, cancel. Thin over its own commands, whose errors are told.

Asked of `scontrol`, which knows running jobs and those that ended a while ago, and of `sacct` for older ones where the
cluster keeps accounts.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lvm.runtime import UserError
from lvm.runtime.slurm import ENDED, Job, fields, has_slurm, parse_job, require_slurm, slurm

__all__ = [
    "ENDED",
    "Job",
    "cancel",
    "forbid_requeue",
    "has_slurm",
    "jobs",
    "requeue",
    "require_slurm",
    "slurm",
    "submit",
]

_ASKED_ONE_BY_ONE = 3


def submit(
    script: str | os.PathLike[str],
    *options: str,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> str:
    """Submit a job script, which is given `arguments` and inherits `environment` (default: that of here); its id."""
    answer = slurm("sbatch", "--parsable", *options, str(script), *arguments, environment=environment)
    return answer.strip().splitlines()[-1].partition(";")[0]  # "id;cluster"


def jobs(ids: Sequence[str]) -> dict[str, Job]:
    """What Slurm knows of these jobs; one it has forgotten is not in the answer. Few questions for any number.

    An id may be that of an array, "12", or of one of its tasks, "12_3".
    """
    lines = [line for job_id in ids for line in _shown(job_id)] if len(ids) <= _ASKED_ONE_BY_ONE else _shown()
    by_name: dict[str, list[Job]] = {}
    for line in lines:
        for name in _names(fields(line)):
            by_name.setdefault(name, []).append(parse_job(line))
    found = {job_id: _as_one(job_id, by_name[job_id]) for job_id in ids if job_id in by_name}
    missing = [job_id for job_id in ids if job_id not in found]
    return found | (_from_accounts(missing) if missing else {})


def _shown(*job_id: str) -> list[str]:
    """A line a job, and one for the tasks of an array that wait."""
    try:
        lines = slurm("scontrol", "--oneliner", "show", "job", *job_id).splitlines()
    except UserError as error:
        if "Invalid job id" not in str(error):
            raise
        return []
    return [line for line in lines if line.startswith("JobId=")]


def _names(values: Mapping[str, str]) -> set[str]:
    """The last task of an array that is started has the array's own id."""
    array = values.get("ArrayJobId")
    return {array, f"{array}_{values.get('ArrayTaskId')}"} if array else {values["JobId"]}


def _as_one(job_id: str, tasks: Sequence[Job]) -> Job:
    """Of an array: a task at work, else one that waits, else one that failed, else any."""
    ranks = {"RUNNING": 0, "COMPLETED": 4}
    first = min(tasks, key=lambda job: ranks.get(job.state, 3 if job.ended else 1))
    return replace(first, id=job_id)


def requeue(job_id: str) -> None:
    slurm("scontrol", "requeue", job_id)


def forbid_requeue(job_id: str) -> None:
    """By the job itself, and after the loss of a node."""
    slurm("scontrol", "update", f"JobId={job_id}", "Requeue=0")


def cancel(*job_ids: str) -> None:
    slurm("scancel", *job_ids)


def _from_accounts(ids: Sequence[str]) -> dict[str, Job]:
    try:
        fields = "JobIDRaw,State,NodeList,Start,ExitCode"
        lines = slurm("sacct", "-nXP", f"--format={fields}", f"--jobs={','.join(ids)}").splitlines()
    except UserError:  # accounting storage is disabled
        return {}
    rows = [line.split("|") for line in lines]
    return {row[0]: Job(row[0], row[1].partition(" ")[0], "", 0, row[2], row[3], "", row[4]) for row in rows if row[0]}
