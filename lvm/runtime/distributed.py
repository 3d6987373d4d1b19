"""What a rank needs to know of the others, and how all ranks agree to stop at the same step.

Everything here works without a process group too, as one rank of one.
"""

import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from lvm.runtime.errors import UserError, is_one_of_many_ranks, is_user_error
from lvm.runtime.lease import process_start

# What gloo and the store say of a peer whose process or host is gone.
_LOST = re.compile(r"connection (was )?(closed|reset|refused)|timed out|timeout|broken pipe|terminated", re.IGNORECASE)


class Distributed:
    """Rank, world size and a control group on gloo, apart from the group of training and that of checkpoints.

    Every rank makes one at the same place, after the launcher initialised the process group.
    """

    def __init__(self, timeout: timedelta = timedelta(minutes=30)) -> None:
        initialized = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if initialized else 0
        self.world_size = dist.get_world_size() if initialized else 1
        if self.world_size > 1:
            is_one_of_many_ranks()
        self.control = dist.new_group(backend="gloo", timeout=timeout) if self.world_size > 1 else None
        self.processes = self.gather((socket.gethostname(), os.getpid(), process_start(os.getpid())))
        # Containers may share a host name but not each other's pids: only what was seen alive can be seen to be gone.
        host = socket.gethostname()
        self._in_sight = [
            rank for rank, (at, pid, start) in enumerate(self.processes) if at == host and process_start(pid) == start
        ]

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.control is not None:
            dist.barrier(group=self.control)

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value (small; plain Python values) on every rank."""
        if self.control is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value (small; plain Python values), in the order of ranks, on every rank."""
        if self.control is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def together(self, error: BaseException | None) -> None:
        """Raise on every rank if any rank has an error, so that none waits for a rank that gave up.

        A rank with its own error raises that; the others raise the first one's text.
        """
        texts = self.gather(None if error is None else (type(error).__name__, str(error), is_user_error(error)))
        if error is not None:
            raise error
        for rank, text in enumerate(texts):
            if text is not None:
                raise RankError(f"rank {rank} failed with {text[0]}: {text[1]}", user_error=text[2])

    def ended(self) -> list[int]:
        """The other ranks of this host whose process is gone; of other hosts nothing is known."""
        return [rank for rank in self._in_sight if process_start(self.processes[rank][1]) != self.processes[rank][2]]

    def sees(self, rank: int) -> bool:
        """Whether the process of `rank` is one of this host, which can be looked at and killed."""
        return rank in self._in_sight

    def named(self, rank: int) -> str:
        host, pid, _ = self.processes[rank]
        return f"rank {rank} (pid {pid} on {host})"


class LostPeer(UserError):
    """A rank ended, or its host did, while this one worked with it: nothing that the user must mend first."""

    exit_code = 1


def tells_of_lost_peer(error: BaseException) -> bool:
    """Whether a collective or the store raised it because a rank is gone, or answers no more."""
    if isinstance(error, RankError):
        return False  # it may quote any words
    return isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None


@contextmanager
def lost_peers_named(ranks: Distributed, seconds: float = 1.0) -> Iterator[None]:
    """Inside, a collective that fails because a rank is gone raises `LostPeer`; `PeerWatch` says which one began.

    Where nobody watches, only what this host shows is known: who ended, which may be because of another too. A process
    that is killed closes its connections up to `seconds` before it is gone.
    """
    try:
        yield
    except RuntimeError as error:
        if ranks.world_size == 1 or not tells_of_lost_peer(error):
            raise
        until = time.monotonic() + seconds
        while not (ended := ranks.ended()) and time.monotonic() < until:
            time.sleep(0.05)
        names = " and ".join(map(ranks.named, ended))
        known = f"ended on this host, first or because of another: {names}" if names else "none of this host ended"
        raise LostPeer(ends_too(f"the connection to a rank is lost ({known})", ranks.rank)) from error


@contextmanager
def meeting(seconds: float) -> Iterator[None]:
    """Around the calls in which ranks find each other: this process ends when they take longer (0: they may).

    torch waits half an hour for a rank that ended before it came, and the call cannot be interrupted.
    """

    def end() -> None:
        print(f"error: {missing}", file=sys.stderr, flush=True)
        os._exit(LostPeer.exit_code)

    missing = (
        f"not all ranks were there after {seconds:.0f} s, so this one ends; the output of those that are missing says "
        "why, or raise trainer.start_timeout_seconds"
    )
    timer = threading.Timer(seconds, end)
    timer.daemon = True
    if seconds:
        timer.start()
    try:
        yield
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        raise LostPeer("a rank ended before all had met, so this one ends; the same command continues") from error
    finally:
        timer.cancel()


def ends_too(problem: str, rank: int) -> str:
    return f"{problem}, so rank {rank} ends too; the output of the ranks says more, the same command continues the run"


class RankError(RuntimeError):
    """Another rank failed; `user_error` is as it was there."""

    def __init__(self, message: str, user_error: bool) -> None:
        super().__init__(message)
        self.user_error = user_error


class StopAgreement:
    """All ranks stop at the same step though a signal reaches them at different ones, without waiting for each other.

    Each step: `submit(flag)`, compute, and at the next step `agreed()` before the next `submit`. Submitting starts a
    MAX all-reduce on the control group; by the time it is read, one step later, it has long finished.
    """

    def __init__(self, distributed: Distributed) -> None:
        self._group = distributed.control
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._work: Any = None
        self._agreed = False

    def submit(self, flag: bool) -> None:
        """Say whether this rank wants to stop; every rank submits once a step."""
        self.agreed()
        self._flag = torch.tensor([int(flag)], dtype=torch.int32)
        if self._group is None:
            self._work = _Done()
        else:
            self._work = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)

    def agreed(self) -> bool:
        """Whether any rank wanted to stop at the last submission; stays true once it was."""
        if self._work is not None:
            self._work.wait()
            self._work = None
            self._agreed = self._agreed or bool(self._flag.item())
        return self._agreed


class _Done:
    def wait(self) -> None:
        pass
