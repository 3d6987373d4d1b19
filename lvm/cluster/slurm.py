"""The Slurm of this machine: submit, ask, signal, requeue, cancel. Thin over its own commands, whose errors are told.

Asked of `scontrol`, which knows running jobs and those that ended a while ago, and of `sacct` for older ones where the
cluster keeps accounts.
"""

import os
from collections.abc import Sequence

from lvm.runtime import UserError
from lvm.runtime.slurm import ENDED, Job, has_slurm, require_slurm, show_job, slurm

__all__ = ["ENDED", "Job", "cancel", "has_slurm", "jobs", "require_slurm", "requeue", "slurm", "submit"]


def submit(script: str | os.PathLike[str], *options: str) -> str:
    """Submit a job script; its id."""
    answer = slurm("sbatch", "--parsable", *options, str(script)).strip().splitlines()[-1]
    return answer.partition(";")[0]  # "id;cluster"


def jobs(ids: Sequence[str]) -> dict[str, Job]:
    """What Slurm knows of these jobs; one it has forgotten is not in the answer."""
    found = {job_id: job for job_id in ids if (job := show_job(job_id)) is not None}
    missing = [job_id for job_id in ids if job_id not in found]
    return found | (_from_accounts(missing) if missing else {})


def requeue(job_id: str) -> None:
    slurm("scontrol", "requeue", job_id)


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
