"""A process that reads units for `read_units`: `python -m lvm.sources.reader_process FD`, FD a connected socket."""

import pickle
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

from lvm.sources.reading import pack, read_one


def serve(descriptor: int) -> None:
    # The job scheduler signals every process of a job; the parent decides when to stop, by closing the connection.
    for name in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)
    connection = Connection(descriptor)
    try:
        source, size = pickle.loads(connection.recv_bytes())
        while True:
            units = connection.recv()
            kind, pictures = "items", None
            header: Any
            try:
                header, pictures = pack([(unit, read_one(source, unit, size)) for unit in units])
            except Exception as error:
                if getattr(error, "user_error", False):
                    kind, header = "user error", str(error)
                else:
                    kind, header = "error", traceback.format_exc()
            connection.send((kind, header, None if pictures is None else pictures.shape))
            if pictures is not None:
                connection.send_bytes(pictures.data.cast("B"))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


if __name__ == "__main__":
    serve(int(sys.argv[1]))
