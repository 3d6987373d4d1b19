"""The Slurm of this machine: submit, ask, signal, requeue, cancel. Thin over its own commands, whose errors are told.

Asked of `scontrol`, which knows running jobs and those that ended a while ago, and of `sacct` for older ones where the
cluster keeps accounts.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lvm.runtime import UserError
from lvm.runtime.slurm import ENDED, Job, fields, has_slurm, parse_job, require_slurm, slurm

__all__ = [
    "ENDED",
    "Job",
    "cancel",
    "forbid_requeue",
    "has_slurm",
    "job_of_lease",
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
    tasks: dict[str, list[str]] = {}
    for job_id in ids:
        tasks.setdefault(job_id.partition("_")[0], []).append(job_id)
    for line in lines:
        for name in _names(fields(line), tasks):
            by_name.setdefault(name, []).append(parse_job(line))
    found = {job_id: _as_one(job_id, by_name[job_id]) for job_id in ids if job_id in by_name}
    missing = [job_id for job_id in ids if job_id not in found]
    return found | (_from_accounts(missing) if missing else {})


def _shown(*job_id: str) -> list[str]:
    """A line a job, and one for the tasks of an array that wait."""
    try:
        whole = os.environ | {"SLURM_BITSTR_LEN": "0"}  # else a long list of waiting tasks ends in "..."
        lines = slurm("scontrol", "--oneliner", "show", "job", *job_id, environment=whole).splitlines()
    except UserError as error:
        if "Invalid job id" not in str(error):
            raise
        return []
    return [line for line in lines if line.startswith("JobId=")]


def _names(values: Mapping[str, str], asked: Mapping[str, Sequence[str]]) -> set[str]:
    """Of a line; of an array its own id and those of its tasks that were `asked` for, by array.

    The last task of an array that is started has the array's own id.
    """
    if not (array := values.get("ArrayJobId")):
        return {values["JobId"]}
    listed = values.get("ArrayTaskId", "")
    return {array} | {name for name in asked.get(array, ()) if _lists(listed, name.partition("_")[2])}


def _lists(listed: str, task: str) -> bool:
    """Whether a task is among those of a line: 3, or of those that wait 1,4-9,20-80:2%5."""
    for part in listed.partition("%")[0].split(","):
        bounds = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if bounds and task.isdecimal():
            first, last, step = int(bounds[1]), int(bounds[2] or bounds[1]), int(bounds[3] or 1)
            if int(task) in range(first, last + 1, step):
                return True
    return False


def job_of_lease(lease: Mapping[str, Any]) -> str:
    """The id of the job that holds a lease, of a task of an array 12_3; "" for none.

    SLURM_JOB_ID does not tell the last task of an array from the array.
    """
    return str(lease.get("array_task") or lease.get("job") or "")


def _as_one(job_id: str, tasks: Sequence[Job]) -> Job:
    """Of an array: a task at work, else one that waits, else one that failed, else any."""
    ranks = {"RUNNING": 0, "COMPLETED": 4}
    first = min(tasks, key=lambda job: ranks.get(job.state, 3 if job.ended else 1))
    return replace(first, id=job_id)


def requeue(job_id: str) -> None:
    slurm("scontrol", "requeue", job_id)


def forbid_requeue(job_id: str) -> None:
    """By the job itself, and after the loss of a node. Of an array, those of its tasks that have not ended."""
    try:
        slurm("scontrol", "update", f"JobId={job_id}", "Requeue=0")
    except UserError as error:
        if not re.search(rf"{job_id}_\S+: Job has already finished", str(error)):
            raise


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
