"""A trace of some steps and of the device's memory, for a look into what a step does: RUN/profile.

Open traces in https://ui.perfetto.dev, snapshots in https://pytorch.org/memory_viz.
"""

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

MOST_EVENTS = 200_000  # of memory that a snapshot tells of, the last ones


class Profiling:
    """`before(step)` is called before each step; `close` writes what is not written yet. Each rank writes its own."""

    def __init__(self, folder: Path, steps: tuple[int, int] | None, memory: bool, device: torch.device, rank: int):
        """`steps`: the first and the last one to trace, counted from 1 as in the metrics; None: none."""
        self._folder, self._steps, self._rank, self._device = folder, steps, rank, device
        self._profile: Any = None
        self._memory = memory and device.type == "cuda"
        if memory and not self._memory and rank == 0:
            print("trainer.memory_snapshot is of CUDA's memory; there is none on this device")
        if self._memory:
            torch.cuda.memory._record_memory_history(max_entries=MOST_EVENTS)

    def before(self, step: int) -> None:
        if self._steps is None:
            return
        first, last = self._steps
        if self._profile is not None and step > last:
            self._write_trace()
        if self._profile is None and first <= step <= last:
            kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._device.type == "cuda" else [])]
            self._profile = profile(activities=kinds, profile_memory=True)
            self._profile.start()

    def close(self) -> None:
        if self._profile is not None:
            self._write_trace()
        if self._memory:
            self._memory = False
            self._folder.mkdir(parents=True, exist_ok=True)
            torch.cuda.memory._dump_snapshot(str(self._folder / f"memory-rank-{self._rank}.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)

    def _write_trace(self) -> None:
        traced, self._profile = self._profile, None
        traced.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        first, last = self._steps or (0, 0)
        traced.export_chrome_trace(str(self._folder / f"steps-{first}-{last}-rank-{self._rank}.json"))
