"""A plan at full size: python -m benchmarks.plan [config=data/uvd_v1 windows=10000 json=FILE]

The paper's mixture over simulated stores, 1.5e9 sentences from 72 sources: what it costs to make once and to open,
each in a process of its own, and whether random windows are the same bytes in one process, in four and after a
restart. The limit is what opening would cost if a plan had no tables: an interpreter that imports the same modules.
"""

import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from lvm.commands._options import options_from
from lvm.data import TokenPlan
from lvm.runtime import write_json
from lvm.runtime.config_files import load_config
from lvm.runtime.machine import git_commit, machine_description


@dataclass(frozen=True)
class Options:
    config: str = "data/uvd_v1"
    windows: int = 10_000
    furthest: int = 10**8  # windows are drawn below this number: the paper's run has as many
    workers: int = 4
    json: str = ""


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def opened(config: str) -> dict[str, Any]:
    """What opening (or making) the plan costs this process."""
    before = resident_bytes()
    start = time.perf_counter()
    plan = TokenPlan.from_config(load_config(config))
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "resident_bytes": resident_bytes(),
        "imports_bytes": before,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "sentences": sum(entry.num_sentences for entry in plan.entries),
        "sources": len(plan.stores),
        "fingerprint": plan.fingerprint,
    }


def numbers(options: Options) -> list[int]:
    return np.random.default_rng(0).integers(0, options.furthest, options.windows).tolist()


def digests(config: str, windows: list[int]) -> list[bytes]:
    plan = TokenPlan.from_config(load_config(config))
    found = []
    for i in windows:
        window = plan.window(i)
        content = b"".join(field.tobytes() for field in (window.tokens, window.source, window.role))
        found.append(hashlib.sha256(content).digest())
    return found


def in_new_process(call: str, config: str, cache: str) -> Any:
    code = f"import json; from benchmarks import plan; print(json.dumps({call}))"
    environment = os.environ | {"LVM_CACHE": cache}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(options: Options) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as cache:
        os.environ["LVM_CACHE"] = cache
        made = in_new_process(f"plan.opened({options.config!r})", options.config, cache)
        again = in_new_process(f"plan.opened({options.config!r})", options.config, cache)
        kept = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file())
        windows = numbers(options)
        start = time.perf_counter()
        alone = digests(options.config, windows)
        seconds = time.perf_counter() - start
        with get_context("spawn").Pool(options.workers) as pool:
            parts = [windows[worker :: options.workers] for worker in range(options.workers)]
            by_worker = pool.starmap(digests, [(options.config, part) for part in parts])
        together = [by_worker[place % options.workers][place // options.workers] for place in range(len(windows))]
        drawn = f"plan.numbers(plan.Options(windows={options.windows}, furthest={options.furthest}))"
        call = f"[digest.hex() for digest in plan.digests({options.config!r}, {drawn})]"
        restarted = [bytes.fromhex(one) for one in in_new_process(call, options.config, cache)]
    return {
        "benchmark": "plan",
        "made": made,
        "opened": again,
        "kept_bytes": kept,
        "windows": len(windows),
        "equal": alone == together == restarted and made["fingerprint"] == again["fingerprint"],
        "milliseconds_a_window": 1000 * seconds / len(windows),
        "machine": machine_description(),
        "commit": git_commit(),
    }


def main() -> None:
    options = options_from(Options, sys.argv[1:])
    found = run(options)
    made, again = found["made"], found["opened"]
    print(f"{made['sentences']:,} sentences of {made['sources']} sources")
    print(f"  made once in {made['seconds']:.1f} s, peak {made['peak_bytes'] / 1e6:,.0f} MB")
    print(f"  kept on disk: {found['kept_bytes'] / 1e6:,.0f} MB")
    print(
        f"  opened in {again['seconds']:.2f} s, {again['resident_bytes'] / 1e6:,.0f} MB resident, "
        f"of which {again['imports_bytes'] / 1e6:,.0f} MB are imports"
    )
    equal = "equal" if found["equal"] else "NOT EQUAL"
    print(
        f"  {found['windows']:,} random windows in one process, {options.workers} workers and after a restart: {equal} "
        f"({found['milliseconds_a_window']:.2f} ms a window)"
    )
    if options.json:
        write_json(Path(options.json), found)


if __name__ == "__main__":
    main()
