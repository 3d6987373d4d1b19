"""End a run: lvm cancel RUN [--now]

It is asked to save and end, and does not come back: a Slurm job gets USR2 (jobs that wait, later links of a chain
among them, are removed), a run of this machine TERM. --now does not wait for it to save. The command that started the
run continues it.
"""

import argparse
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from lvm.cluster import slurm
from lvm.cluster.runs import CANCELLED, JOBS, WORKING, Facts, open_run, own_jobs, owner_is_alive, state_of
from lvm.runtime import UserError, write_json


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--now", action="store_true", help="kill it: what was not saved is lost")
    arguments = parser.parse_args(argv)
    run, known = open_run(arguments.run)
    active = [job for job in own_jobs(run, known) if not job.ended]
    if active:
        mark_cancelled(run)
        done = cancel_jobs(active, arguments.now)
    elif owner_is_alive(run.lease):
        mark_cancelled(run)
        done = [cancel_process(int(run.lease["pid"]), arguments.now)]
    else:
        if known is None and not run.finished:
            raise UserError(f"{run.path}: whether its job works only Slurm knows, which does not answer here")
        raise UserError(not_at_work(run, *state_of(run, known)))
    print("\n".join(f"{run.path}: {line}" for line in done))
    return 0


def mark_cancelled(run: Facts) -> None:
    """For those who look at it later; a later submission makes it void."""
    if (run.path / JOBS).is_file():
        write_json(run.path / CANCELLED, {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "pid": os.getpid()})


def cancel_jobs(jobs: Sequence[slurm.Job], now: bool) -> list[str]:
    """What was done, a line a job. Waiting jobs first: none may start when the one at work ends."""
    done = []
    for job in sorted(jobs, key=lambda job: job.state.lower() in WORKING):
        slurm.forbid_requeue(job.id)  # a run that has saved asks for one unless its job may not be
        if not now and job.state.lower() in WORKING:
            slurm.cancel("--state=PENDING", job.id)  # tasks of an array that wait while others work
        if now:
            slurm.cancel(job.id)
            done.append(f"job {job.id} ({job.state}) is killed")
        elif job.state == "RUNNING":
            slurm.cancel("--signal=USR2", job.id)
            done.append(f"job {job.id} on {job.nodes} was asked to save and end; --now kills it")
        elif job.state == "COMPLETING":
            done.append(f"job {job.id} is ending")
        else:
            slurm.cancel(job.id)
            done.append(f"job {job.id} ({job.state}) is removed")
    return done


def cancel_process(pid: int, now: bool) -> str:
    try:
        os.kill(pid, signal.SIGKILL if now else signal.SIGTERM)
    except ProcessLookupError:
        return f"process {pid} has just ended"
    except PermissionError:
        raise UserError(f"process {pid} belongs to another user of this machine; ask them") from None
    return f"process {pid} is killed" if now else f"process {pid} was asked to save and end; --now kills it"


def not_at_work(run: Facts, state: str, reason: str) -> str:
    if state == "unknown":
        return f"{run.path} is held by pid {run.lease.get('pid')} {reason}; cancel it there"
    return f"{run.path} is not at work ({state}); there is nothing to cancel"
