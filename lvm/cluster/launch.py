"""Launching: a run folder is given its job script and what the job reads, and the job is submitted.

    plan = plan_job(config, "train", run_dir, arguments)     # lvm/cluster/job_script.py; nothing is written
    ids = submit_job(plan, files_of(plan, composed, command))

RUN/slurm/ then holds KIND.sh (the script as submitted, which `sbatch` takes again), overrides.txt or arguments.txt (one
a line, what the script gives to `lvm KIND`), config.json (as it was composed), launch.json (the command and the code's
commit) and jobs.jsonl (a line for each submission). RUN/logs/ is where the tasks write.
"""

import contextlib
import fcntl
import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lvm.cluster.job_script import JobPlan
from lvm.cluster.partitions import Queued, queued
from lvm.cluster.runs import JOBS, read_rows
from lvm.cluster.slurm import cancel, submit
from lvm.runtime import UserError, atomic_write
from lvm.runtime.machine import git_commit


class AtWork(Exception):
    """A job of this run waits or runs already."""

    def __init__(self, jobs: list[Queued]) -> None:
        super().__init__("; ".join(f"job {job.id} is {job.state}{job.nodes and f' on {job.nodes}'}" for job in jobs))


def submitted(run_dir: Path) -> list[str]:
    """The ids of the jobs that this run was given to, oldest first."""
    return [str(row["id"]) for row in read_rows(run_dir / JOBS) if row.get("id")]


def refuse_twice(run_dir: Path) -> None:
    """Raise `AtWork` where a job of this run waits or runs."""
    if jobs := queued(submitted(run_dir)):
        raise AtWork(jobs)


def files_of(
    plan: JobPlan, composed: Mapping[str, Any] | None, command: Sequence[str], members: Sequence[Sequence[str]] = ()
) -> dict[str, str]:
    """The files of RUN/slurm/ by name."""
    note = {
        "command": shlex.join(command),
        "commit": git_commit(),
        "folder": str(Path.cwd()),
        "kind": plan.kind,
        "time": time.strftime("%FT%T"),
        "launcher": asdict(plan.config),
    }
    lines = lambda arguments: "".join(f"{argument}\n" for argument in arguments)
    files = {plan.arguments_file: lines(plan.arguments), "launch.json": json.dumps(note, indent=1) + "\n"}
    if plan.script:
        files[f"{plan.kind}.sh"] = plan.script
    if composed is not None:
        files["config.json"] = json.dumps(composed, indent=1) + "\n"
    return files | {f"members/{number}.txt": lines(own) for number, own in enumerate(members)}


def write_files(run_dir: Path, files: Mapping[str, str]) -> None:
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        atomic_write(run_dir / "slurm" / name, text)


def submit_job(plan: JobPlan, files: Mapping[str, str]) -> list[str]:
    """Write RUN/slurm/ and submit; the ids, several of a chain.

    Raises `UserError` where Slurm refuses, and leaves the folder as it was; `AtWork` where a job is there already.
    """
    script = plan.run_dir / "slurm" / f"{plan.kind}.sh"
    ids: list[str] = []
    with _as_before_on_error(plan.run_dir, files):
        write_files(plan.run_dir, files)
        try:
            for link in range(plan.config.chain):
                after = [f"--dependency=afterany:{ids[-1]}"] if ids else []
                number = [f"--export=ALL,LVM_CHAIN_LINK={link}"] if plan.config.chain > 1 else []
                ids.append(submit(script, *after, *number))
        except BaseException:
            if ids:
                cancel(*ids)
            raise
        with open(plan.run_dir / "slurm" / "jobs.jsonl", "a") as file:
            for job_id in ids:
                line = {"id": job_id, "time": time.strftime("%FT%T"), "script": str(script), "kind": plan.kind}
                file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
    return ids


@contextmanager
def _as_before_on_error(run_dir: Path, files: Mapping[str, str]) -> Iterator[None]:
    """One launch of a run at a time; where it fails its files and folders are as they were."""
    folder = run_dir / "slurm"
    paths = [folder / name for name in files]
    folders = {run_dir / "logs"} | {parent for path in paths for parent in path.parents}
    made = sorted((path for path in folders if not path.exists()), key=lambda path: len(path.parts), reverse=True)
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        refuse_twice(run_dir)
        before = {path: path.read_bytes() if path.is_file() else None for path in paths}
        try:
            yield
        except BaseException:
            for path, content in before.items():
                if content is None:
                    path.unlink(missing_ok=True)
                else:
                    atomic_write(path, content)
            raise
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):  # another launch uses it
                path.rmdir()
        raise
    finally:
        os.close(lock)


def read_members(file: str | None) -> list[list[str]]:
    """The overrides of each member, a line each as a shell would split it; empty lines and # comments are none."""
    if file is None:
        raise UserError("kind=sweep needs members=FILE, with the overrides of one member a line")
    try:
        lines = Path(file).read_text().splitlines()
    except OSError as error:
        raise UserError(f"members={file} cannot be read ({error.strerror}); name a file of one member a line") from None
    try:
        members = [words for line in lines if (words := shlex.split(line, comments=True))]
    except ValueError as error:
        raise UserError(f"members={file} has a line that a shell could not split ({error})") from None
    if not members:
        raise UserError(f"members={file} has no members; give the overrides of one a line")
    return members
