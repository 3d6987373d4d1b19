"""An object in a process of its own, its methods called by name.

The process is a plain subprocess, not made by fork (unsafe once torch has threads) nor by multiprocessing's spawn
(which would import the main module, and torch with it): it imports what the object is made of alone. Arrays go by as
one message beside a small pickle. `python -m lvm.runtime.served FD` is the process, FD its end of a socket pair.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
import traceback
from functools import cached_property
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from lvm.runtime.errors import UserError, is_user_error

ALIGNED = 64  # bytes that arrays begin at multiples of


class Served:
    """The process and our end of it. One call at a time."""

    def __init__(self, packed: bytes, work: str) -> None:
        """`packed` is the object, pickled; `work` what the process is for, as in "reads pictures"."""
        ours, theirs = socket.socketpair()
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        self._packed: bytes | None = packed
        self._work = work
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lvm.runtime.served", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )
        theirs.close()
        self._connection = Connection(ours.detach())

    def __call__(self, method: str, *arguments: Any) -> Any:
        """What the method returns. A `UserError` of it is raised here as one, an error of the machine (`OSError`) as
        one, any other as a `RuntimeError` with its traceback. Raises `UserError` if the process died."""
        asked = pack((method, arguments))
        try:
            if self._packed is not None:
                self._connection.send_bytes(self._packed)
                self._packed = None
            send(self._connection, asked)
            kind, found = receive(self._connection)
        except (EOFError, OSError):
            code = self.process.wait()
            why = ", often for lack of memory; use fewer workers" if code == -signal.SIGKILL else ""
            raise UserError(f"a process that {self._work} ended (code {code}){why}") from None
        if kind == "user error":
            raise UserError(found)
        if kind == "machine":
            raise OSError(*found)
        if kind == "error":
            raise RuntimeError(f"a process that {self._work} failed:\n{found}")
        return found

    def kill(self) -> None:
        """A call that is under way ends with a `UserError`. The process holds nothing that could be half-written."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """After the last call."""
        self.kill()
        self._connection.close()


def pack(message: Any) -> list[bytes]:
    """What `receive` takes: a pickle, and behind it its arrays, each from a multiple of `ALIGNED` on."""
    arrays: list[pickle.PickleBuffer] = []
    head = pickle.dumps(message, protocol=5, buffer_callback=arrays.append)
    pieces = [array.raw() for array in arrays]
    parts = [pickle.dumps(([piece.nbytes for piece in pieces], head))]
    if pieces:
        parts.append(b"".join(part for piece in pieces for part in (piece, bytes(-piece.nbytes % ALIGNED))))
    return parts


def send(connection: Connection, packed: list[bytes]) -> None:
    for part in packed:
        connection.send_bytes(part)


def receive(connection: Connection) -> Any:
    sizes, head = pickle.loads(connection.recv_bytes())
    starts = np.cumsum([0, *(size + -size % ALIGNED for size in sizes)]).tolist()
    body = memoryview(np.empty(starts[-1], np.uint8).data)
    if sizes:
        connection.recv_bytes_into(body)
    return pickle.loads(head, buffers=[body[start : start + size] for start, size in zip(starts, sizes)])


class Unpacked:
    """The object, made of its pickle at the first call: what goes wrong then is told like any error of a call."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed

    @cached_property
    def served(self) -> Any:
        return pickle.loads(self._packed)

    def call(self, method: str, arguments: tuple[Any, ...]) -> tuple[str, Any]:
        try:
            return "found", getattr(self.served, method)(*arguments)
        except Exception as error:
            if is_user_error(error):
                return "user error", str(error)
            if isinstance(error, OSError) and error.errno is not None:
                return "machine", (error.errno, error.strerror, error.filename)
            return "error", traceback.format_exc()


def serve(descriptor: int) -> None:
    # The job scheduler signals every process of a job; the parent decides when to stop, by closing the connection.
    for name in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)
    connection = Connection(descriptor)
    try:
        unpacked = Unpacked(connection.recv_bytes())
        while True:
            answer = unpacked.call(*receive(connection))
            try:
                packed = pack(answer)
            except Exception:
                packed = pack(("error", traceback.format_exc()))
            send(connection, packed)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


if __name__ == "__main__":
    serve(int(sys.argv[1]))
