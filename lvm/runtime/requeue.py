"""Whether a run that was stopped is started again, by whom, and when that must end.

    A job in Slurm with Requeue=1 (sbatch --requeue, --signal=USR2@120, --open-mode=append), the usual way:
        USR2, TERM while Slurm calls the job RUNNING, or TERM of the time limit: saved, then rank 0 asks once for the
        job's requeue.
        TERM because somebody ends the job (preemption, scontrol requeue, scancel): saved, and nothing is asked for;
        who ended it has decided whether it comes back.
        Ctrl-C, an error, a full disk: not again.
    A chain, where the cluster does not requeue (sbatch --no-requeue): the launcher submits links 0, 1, 2 ... as jobs of
    the same script, each --dependency=afterany:THE_LINK_BEFORE and with LVM_CHAIN_LINK=its number exported. A link
    never asks for a requeue; one that finds the run finished exits with 0 before it loads anything.
    Anywhere else: the same command continues the run.

RUN/restarts.json counts the restarts (of either kind) that found no newer checkpoint than the one before them. After
`MOST` in a row the next one refuses with one line and exit code 2, whatever ended the ones before: a node that always
fails, a save that never succeeds; it takes the job's Requeue from it, so that nobody's script can go on. A job
submitted anew counts from 0.
"""

import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from lvm.runtime.checkpoint import list_checkpoints
from lvm.runtime.distributed import Distributed
from lvm.runtime.errors import UserError
from lvm.runtime.files import write_json
from lvm.runtime.signals import signals_ignored
from lvm.runtime.slurm import Job, show_job, slurm

FILE = "restarts.json"
MOST = 3  # attempts in a row without a new checkpoint


@dataclass(frozen=True)
class Restarts:
    """Of a run: what its present attempt found."""

    attempt: str  # job and restart
    newest_step: int  # of the checkpoints, -1 if there was none
    without_progress: int  # attempts before this one, in a row


def number_of_restart(environment: Mapping[str, str] = os.environ) -> int:
    """Of this job or chain, by Slurm or by us; 0 for a fresh submission and outside Slurm."""
    return int(environment.get("LVM_CHAIN_LINK") or 0) + int(environment.get("SLURM_RESTART_COUNT") or 0)


def newest_step(run_dir: Path) -> int:
    """Of the complete checkpoints, none of them read; -1 without one."""
    found = list_checkpoints(run_dir / "checkpoints")
    return int(found[-1].name.removeprefix("step-")) if found else -1


def read_restarts(run_dir: Path) -> Restarts | None:
    try:
        return Restarts(**json.loads((run_dir / FILE).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def next_restarts(former: Restarts | None, attempt: str, is_restart: bool, newest_step: int) -> Restarts:
    """What is known at the start of `attempt`; the same, whether its rank 0 has written it down yet or not."""
    if former is not None and former.attempt == attempt:
        return former
    if former is None or not is_restart:
        return Restarts(attempt, newest_step, 0)
    return Restarts(attempt, newest_step, former.without_progress + 1 if newest_step <= former.newest_step else 0)


def count_restart(run_dir: Path, newest_step: int, is_main: bool) -> None:
    """At the start of an attempt, before ranks wait for each other; each of them comes to the same verdict.

    Raises `UserError` if the run gets nowhere.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    attempt = f"{job}.{os.environ.get('SLURM_RESTART_COUNT') or 0}"
    now = next_restarts(read_restarts(run_dir), attempt, number_of_restart() > 0, newest_step)
    if is_main:
        write_json(run_dir / FILE, asdict(now))
    if now.without_progress >= MOST:
        if is_main:
            forbid_requeue()
        raise UserError(
            f"{run_dir}: {now.without_progress} attempts in a row ended without a new checkpoint "
            f"({saved_so_far(newest_step)}), so job {job} is not started again; its log says what ended them. Submit "
            "anew when it is mended, with a lower trainer.save_every_steps if they ended too soon"
        )


def forbid_requeue() -> None:
    try:
        slurm("scontrol", "update", f"JobId={own_job()}", "Requeue=0")
    except UserError as error:  # what stops this attempt is said in any case
        print(f"the job may still be requeued by others: {error}", file=sys.stderr)


def saved_so_far(newest_step: int) -> str:
    return f"the newest is of step {newest_step}" if newest_step >= 0 else "there is none"


def come_back(run_dir: Path, received: int | None, step: int, ranks: Distributed) -> None:
    """At the end of a stopped run, saved and its lease released: rank 0 sees that it starts again and says so.

    The others wait for that, since srun may end the step when its first task exits. `received`: this rank's signal.
    """
    first = next((number for number in ranks.gather(received) if number is not None), None)
    with signals_ignored():  # Slurm sends TERM as soon as it is asked
        if ranks.is_main:
            print(requeue_own_job(first, step, newest_step(run_dir)), flush=True)
        ranks.barrier()


def requeue_own_job(received: int | None, step: int, newest_step: int) -> str:
    """Ask Slurm for another start of this job if it is ours to ask; a line that says what comes next."""
    again = "the same command continues it"
    job_id = own_job()
    if job_id is None or received not in (signal.SIGUSR2, signal.SIGTERM):
        return again
    if os.environ.get("LVM_CHAIN_LINK"):
        return "the next job of the chain continues it"
    try:
        job = show_job(job_id)
        reason = reason_against(job, step, newest_step)
        if reason is None:
            slurm("scontrol", "requeue", job_id)
            return f"job {job_id} is requeued"
    except UserError as error:
        reason = str(error)
    return f"job {job_id} is not requeued by the run: {reason}"


def own_job() -> str | None:
    """The id under which Slurm knows this job alone: that of an array stands for all its tasks."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def reason_against(job: Job | None, step: int, newest_step: int) -> str | None:
    """Why not to ask for a requeue; None: ask."""
    if job is None or (job.state != "RUNNING" and job.reason != "TimeLimit"):
        return "it is being ended, and whoever did that decides whether it comes back"
    if job.restarts > int(os.environ.get("SLURM_RESTART_COUNT") or 0):
        return "it is requeued already"
    if not job.may_requeue:
        return "it was submitted with --no-requeue or cancelled; the same command continues the run"
    if newest_step < step:
        return f"step {step} was not saved ({saved_so_far(newest_step)})"
    return None
