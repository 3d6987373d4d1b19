"""What this machine is and can do, for choosing settings and for writing into results."""

import functools
import os
import platform
import resource
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import torch


@functools.cache
def compile_problem() -> str | None:
    """Why torch.compile cannot be used here, in a few words, or None where it can.

    Inductor compiles C++ for the CPU, Triton a small launcher in C for a GPU: both need a compiler and Python.h.
    """
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), None)
    if compiler is None:
        return "no C++ compiler is installed (g++)"
    includes = [f"-I{folder}" for key in ("include", "platinclude") if (folder := sysconfig.get_path(key))]
    program = "#include <Python.h>\n#include <omp.h>\nint main() { return 0; }\n"
    command = [*compiler.split(), *dict.fromkeys(includes), "-fopenmp", "-fsyntax-only", "-x", "c++", "-"]
    try:
        tried = subprocess.run(command, input=program, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the C++ compiler {compiler} cannot be run ({error})"
    if tried.returncode != 0:
        for header, package in (("Python.h", "the Python headers (python3-dev)"), ("omp.h", "OpenMP's omp.h")):
            if header in tried.stderr:
                return f"{package} are missing" if header == "Python.h" else f"{package} is missing"
        return f"the C++ compiler {compiler} fails: {' '.join(tried.stderr.split())[:200]}"
    if torch.cuda.is_available():
        try:
            import triton  # noqa: F401
        except ImportError:
            return "triton is not installed"
    return None


def bf16_is_fast(device: str | torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware (else it emulates, slower than float32)."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return bool({"avx512_bf16", "amx_bf16", "bf16"} & _cpu_flags())
    return False


@functools.cache
def mkl_is_slow() -> bool:
    """Whether oneDNN multiplies float32 matrices faster than MKL, which takes its plainer paths on others' CPUs."""
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return both and _cpuinfo("vendor_id") not in ("", "GenuineIntel")


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")


def _cpu_flags() -> set[str]:
    return set((_cpuinfo("flags") or _cpuinfo("Features")).split())


def num_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(num_threads: int | None) -> int:
    """Set torch's CPU threads and return their number; None shares the cores evenly among this machine's ranks.

    CPU results depend on the number of threads, and launchers differ in what they leave in the environment
    (torchrun sets OMP_NUM_THREADS=1), so a run sets it explicitly and keeps it in its state.
    """
    if num_threads is None:
        num_threads = max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(num_threads)
    return num_threads


def peak_memory(device: torch.device) -> dict[str, int | None]:
    """Most bytes so far: what torch allocated on the device, and what the process held of the host's."""
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {"device": on_device, "host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def machine_description() -> dict[str, Any]:
    """What a result must say about where it was measured; JSON values only."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "gpu": gpus[0] if gpus else None,
        "num_gpus": len(gpus),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def git_commit() -> str:
    """The commit this code is at, `-dirty` after it where tracked files differ; "unknown" outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "unknown"

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
