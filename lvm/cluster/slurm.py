"""The Slurm of this machine: submit, ask, signal, requeue, cancel. Thin over its own commands, whose errors are told.

Asked of `scontrol`, which knows running jobs and those that ended a while ago, and of `sacct` for older ones where the
cluster keeps accounts.
"""

import os
from collections.abc import Mapping, Sequence

from lvm.runtime import UserError
from lvm.runtime.slurm import ENDED, Job, has_slurm, parse_job, require_slurm, show_job, slurm

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
    """What Slurm knows of these jobs; one it has forgotten is not in the answer. Few questions for any number."""
    if len(ids) > _ASKED_ONE_BY_ONE:
        found = _among_all(ids)
    else:
        found = {job_id: job for job_id in ids if (job := show_job(job_id)) is not None}
    missing = [job_id for job_id in ids if job_id not in found]
    return found | (_from_accounts(missing) if missing else {})


def _among_all(ids: Sequence[str]) -> dict[str, Job]:
    lines = slurm("scontrol", "--oneliner", "show", "job").splitlines()
    every = [parse_job(line) for line in lines if line.startswith("JobId=")]
    return {job.id: job for job in every if job.id in set(ids)}


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
