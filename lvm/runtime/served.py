"""An object in a process of its own, its methods called by name: work in numpy and PIL beside torch's.

The process is a plain subprocess, not made by fork (unsafe once torch has threads) nor by multiprocessing's spawn
(which would import the main module, and torch with it): it imports what the object is made of alone. Arrays pass as
they lie in memory, one message beside a small pickle. `python -m lvm.runtime.served FD` is the process, FD its end of a
socket pair.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from lvm.runtime.errors import UserError, is_user_error


class Served:
    """The process and our end of it. One call at a time; raises what is told of `__call__`."""

    def __init__(self, served: Any, work: str) -> None:
        """`served` must survive pickling; `work` is what the process is for, as in "reads pictures"."""
        packed = pickle.dumps(served)
        ours, theirs = socket.socketpair()
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        self._work = work
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lvm.runtime.served", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )
        theirs.close()
        self._connection = Connection(ours.detach())
        self._ended_by(lambda: self._connection.send_bytes(packed))

    def __call__(self, method: str, *arguments: Any) -> Any:
        """What the method returns. A `UserError` of it is raised here as one, any other error as a `RuntimeError` with
        its traceback. Raises `UserError` if the process died."""
        kind, found = self._ended_by(lambda: self._ask(method, arguments))
        if kind == "user error":
            raise UserError(found)
        if kind == "error":
            raise RuntimeError(f"a process that {self._work} failed:\n{found}")
        return found

    def _ask(self, method: str, arguments: tuple[Any, ...]) -> Any:
        send(self._connection, (method, arguments))
        return receive(self._connection)

    def _ended_by(self, talk: Callable[[], Any]) -> Any:
        try:
            return talk()
        except (EOFError, OSError):
            code = self.process.wait()
            raise UserError(
                f"a process that {self._work} ended (code {code}), often for lack of memory; use fewer workers"
            ) from None

    def stop(self) -> None:
        self.process.kill()  # it holds nothing that could be half-written
        self.process.wait()
        self._connection.close()


def send(connection: Connection, message: Any) -> None:
    arrays: list[pickle.PickleBuffer] = []
    head = pickle.dumps(message, protocol=5, buffer_callback=arrays.append)
    pieces = [array.raw() for array in arrays]
    connection.send_bytes(pickle.dumps(([piece.nbytes for piece in pieces], head)))
    if pieces:
        connection.send_bytes(b"".join(pieces))


def receive(connection: Connection) -> Any:
    sizes, head = pickle.loads(connection.recv_bytes())
    body = memoryview(np.empty(sum(sizes), np.uint8).data)
    if sizes:
        connection.recv_bytes_into(body)
    starts = np.cumsum([0, *sizes]).tolist()
    return pickle.loads(head, buffers=[body[start : start + size] for start, size in zip(starts, sizes)])


def serve(descriptor: int) -> None:
    # The job scheduler signals every process of a job; the parent decides when to stop, by closing the connection.
    for name in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)
    connection = Connection(descriptor)
    try:
        served = pickle.loads(connection.recv_bytes())
        while True:
            method, arguments = receive(connection)
            kind, found = "found", None
            try:
                found = getattr(served, method)(*arguments)
            except Exception as error:
                kind, found = ("user error", str(error)) if is_user_error(error) else ("error", traceback.format_exc())
            send(connection, (kind, found))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


if __name__ == "__main__":
    serve(int(sys.argv[1]))
