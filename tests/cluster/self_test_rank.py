"""A process of the self-test's tests: several self-tests in a row on two ranks, rank 1 at fault in most of them.

RANK=0 python self_test_rank.py INIT_FILE RUN_DIR '["clock", "config"]'
"""

import json
import os
import resource
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from lvm.cluster import self_test as module
from lvm.runtime import UserError
from lvm.runtime.distributed import Distributed
from lvm.runtime.errors import end_rank

CONFIG = {"optim": {"lr": 0.1}, "seed": 0}
ALL_REDUCE = dist.all_reduce


def corrupted(numbers, async_op):
    """A bit goes wrong on the way into this rank's memory."""
    work = ALL_REDUCE(numbers, async_op=True)
    work.wait()
    numbers[-1] += 1
    return work


def one(fault: str | None, ranks: Distributed, run_dir: Path) -> dict:
    """The report, or the error's text; the fault is this process's own."""
    config, size, clock = CONFIG, 1000, time.time
    code, limit = module.digest_of_code, resource.getrlimit(resource.RLIMIT_FSIZE)
    if fault == "config":
        config = {"optim": {"lr": 0.2}, "seed": 0}
    elif fault == "clock":
        clock = lambda: time.time() + 31
    elif fault == "room":
        size = 10**18
    elif fault == "write":  # as a quota: the system refuses the write
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    elif fault == "code":
        module.digest_of_code = lambda: "f" * 64
    elif fault == "sum":
        dist.all_reduce = corrupted
    try:
        return module.self_test(ranks, torch.device("cpu"), run_dir, config, size, clock)
    except UserError as error:
        return {"error": str(error)}
    finally:
        module.digest_of_code = code
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        dist.all_reduce = ALL_REDUCE


def main() -> None:
    init_file, run_dir, faults = sys.argv[1:]
    rank = int(os.environ["RANK"])
    os.environ["SLURMD_NODENAME"] = f"n{rank + 1}"
    dist.init_process_group("gloo", f"file://{init_file}", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    try:
        ranks = Distributed()
        reports = [one(fault if rank == 1 else None, ranks, Path(run_dir)) for fault in json.loads(faults)]
    finally:
        dist.destroy_process_group()
    Path(f"{init_file}-{rank}.json").write_text(json.dumps(reports))


if __name__ == "__main__":
    main()
    end_rank()
