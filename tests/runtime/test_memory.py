"""Freed memory is kept: large arrays made again and again are not faulted in again and again."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from lvm.runtime.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()

def work():
    first, second = np.ones(2**21), np.ones(2**22)  # 16 and 32 MB: above every threshold glibc finds by itself
    del second, first

work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
def test_large_arrays_are_faulted_in_once_unless_the_environment_decides():
    def faults(argument: str, **variables: str) -> int:
        plain = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
        command = [sys.executable, "-c", PROGRAM, argument]
        return int(subprocess.run(command, env=plain | variables, capture_output=True, text=True, check=True).stdout)

    left_alone = faults("leave")
    assert faults("keep") < left_alone / 10
    assert faults("keep", MALLOC_TOP_PAD_="131072") > left_alone / 2
