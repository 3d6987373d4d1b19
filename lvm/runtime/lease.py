"""The lease of a run folder, or of a part of a job: at most one incarnation of it writes there.

A requeued job can start while ranks of its former incarnation still live (a killed node daemon leaves them running).
Whoever holds the lease may rename checkpoints into place; the former holder finds at its next check that it lost it.
"""

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvm.runtime.errors import UserError
from lvm.runtime.files import atomic_write, locked, sweep
from lvm.runtime.slurm import show_job

if TYPE_CHECKING:
    from lvm.runtime.distributed import Distributed


def process_start(pid: int) -> str | None:
    """When a process of this host started, in clock ticks since boot, or None if it is dead. Tells a reused pid."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces and parentheses
    return None if fields[0] in ("Z", "X") else fields[19]


def boot_id() -> str:
    """Of the running kernel; containers of one host may share a host name but not each other's pids."""
    parts = []
    for read in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        lambda: os.readlink("/proc/self/ns/pid"),
    ):
        with contextlib.suppress(OSError):
            parts.append(read())
    return " ".join(parts)


class RunLease:
    """Held from construction to `release`; rank 0 of a run makes one, and each task of a bulk job one of its `name`.

    Takes over at once from a dead process of this host, from the same Slurm job at a lower restart count, and from a
    job that Slurm says has ended (the link of a chain before this one; its ranks may live on behind a node that was
    lost); with `over_hosts` from any process of another host too, which finds out at its next check: for work that
    may be done twice without harm, and is more often continued elsewhere than still running there. Raises `UserError`
    naming host, pid and time where the owner lives (or may live: another host is not asked).
    `attempt` counts the incarnations of the run from 0.
    """

    def __init__(self, run_dir: str | os.PathLike[str], name: str = "lease.json", over_hosts: bool = False) -> None:
        self.path = Path(run_dir) / name
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._token = uuid.uuid4().hex
        with self._locked():
            owner = self._read()
            elsewhere = over_hosts and owner.get("host") != socket.gethostname()
            if owner and not owner.get("released") and not elsewhere and not may_take_over(owner):
                raise UserError(
                    f"{run_dir} is in use by pid {owner.get('pid')} on {owner.get('host')} since {owner.get('since')}; "
                    f"stop it, use another folder, or remove {self.path} if that process is surely gone"
                )
            self.attempt = int(owner.get("attempt", -1)) + 1
            self._record = describe_self() | {"token": self._token, "attempt": self.attempt}
            sweep(self.path.parent, self.path.name)
            atomic_write(self.path, json.dumps(self._record, indent=1) + "\n")

    def check(self) -> None:
        """Raise `UserError` if another incarnation took the lease; ask before each rename."""
        owner = self._read()
        if not owner:
            raise UserError(f"the lease {self.path} was removed while pid {os.getpid()} held it; start the run again")
        if owner.get("token") != self._token or owner.get("released"):
            raise UserError(
                f"the lease {self.path} was taken over by pid {owner.get('pid')} on {owner.get('host')} "
                f"at {owner.get('since')}; this process stops and writes nothing more"
            )

    def release(self) -> None:
        """Give the lease back; does nothing where it was lost."""
        with self._locked():
            if self._read().get("token") == self._token:
                atomic_write(self.path, json.dumps(self._record | {"released": True}, indent=1) + "\n")

    def __enter__(self) -> "RunLease":
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        # Of a full disk what failed first is worth saying; the lease of an ended process is free in any case.
        with contextlib.suppress(*() if error is None else (OSError,)):
            self.release()

    def _read(self) -> dict[str, Any]:
        try:
            value = json.loads(self.path.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        """Read and replace as one, between processes; without locks of files the token still tells who won."""
        return locked(self.path.with_name(".lease.lock"))


def describe_self() -> dict[str, Any]:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return {
        "host": socket.gethostname(),
        "boot": boot_id(),
        "pid": os.getpid(),
        "start": process_start(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "cluster": os.environ.get("SLURM_CLUSTER_NAME"),
        "job": os.environ.get("SLURM_JOB_ID"),
        "array_task": f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else None,
        "restart": int(os.environ.get("SLURM_RESTART_COUNT") or 0),
    }


def may_take_over(owner: Mapping[str, Any]) -> bool:
    """Whether the owner is surely dead, a former incarnation of this Slurm job, or what is left of a job that ended."""
    here = describe_self()
    if here["job"] is not None and owner.get("job") == here["job"] and here["restart"] > int(owner.get("restart") or 0):
        return True
    if job_has_ended(owner):
        return True
    return owner_is_alive(owner) is False


def owner_is_alive(owner: Mapping[str, Any]) -> bool | None:
    """Whether the process that holds a lease lives; None where that cannot be seen from here."""
    if not owner or owner.get("released"):
        return False
    if owner.get("host") != socket.gethostname():
        return None
    there, here = str(owner.get("boot")), boot_id()
    if there != here:
        # The host was booted since, or it is another container there; only the first is surely dead.
        return False if there.split()[:1] != here.split()[:1] else None
    try:
        started = process_start(int(owner["pid"]))
    except (KeyError, TypeError, ValueError):
        return None
    return started is not None and started == owner.get("start")


def job_has_ended(owner: Mapping[str, Any]) -> bool:
    """Whether Slurm, asked from another job of its cluster, knows the owner's job as ended, or no more."""
    here = os.environ.get("SLURM_CLUSTER_NAME")
    if not owner.get("job") or owner["job"] == os.environ.get("SLURM_JOB_ID") or here is None:
        return False
    if owner.get("cluster") != here:
        return False
    try:
        job = show_job(owner["job"])
    except UserError:  # not to be asked here
        return False
    return job is None or job.ended


@contextlib.contextmanager
def held_lease(run_dir: Path, ranks: "Distributed") -> Iterator[RunLease | None]:
    """The run's lease on rank 0; where it is refused, every rank raises."""
    lease: RunLease | None = None
    refused: Exception | None = None
    if ranks.is_main:
        try:
            lease = RunLease(run_dir)
        except Exception as error:
            refused = error
    ranks.together(refused)
    try:
        yield lease
    finally:
        if lease is not None:
            lease.release()
