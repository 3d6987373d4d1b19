"""How this process gets its memory; imports nothing slow."""

import ctypes
import os
import platform


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, to be given out again; for the start of a command.

    Else it hands each large tensor back to the system, and the next one is faulted in page by page: 12% of a CPU
    step of the demo's net. glibc alone has the setting; elsewhere, and where MALLOC_* variables say otherwise, nothing
    happens.
    """
    if platform.libc_ver()[0] == "glibc" and not any(name.startswith("MALLOC_") for name in os.environ):
        trim_threshold, mmap_threshold = -1, -3  # of malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)
