"""What the loop does beside the device: no step but those that log waits for it; times, memory, traces are written."""

import json
import sys
import threading

import pytest
import torch
from fake_plan import MODEL, OPTIM, TRAINER, FakePlan, run

from lvm.model import LVM
from lvm.runtime import UserError
from lvm.runtime.metrics import read_metrics
from lvm.training import RunOptions, TrainerConfig, train
from lvm.training.journal import StepClock

WAITING = ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__float__", "__int__", "__index__")


class CountingPlan(FakePlan):
    """Tells `at_step` which step the loop has begun."""

    def __init__(self, at_step):
        super().__init__()
        self.at_step = at_step

    def target_roles(self, i, n):
        self.at_step(1 + i // n)
        return super().target_roles(i, n)


@pytest.mark.parametrize("matrices", ["adamw", "muon"])
def test_no_step_but_those_that_log_asks_for_a_value(tmp_path, monkeypatch, matrices):
    """On the CPU: calls that would wait for a device are counted."""
    step, calls = [0], []

    def watched(name):
        wait = getattr(torch.Tensor, name)

        def method(self, *arguments, **options):
            caller = sys._getframe(1)
            # The flag of stopping is the host's own, see StopAgreement.
            if threading.current_thread() is threading.main_thread() and "distributed" not in caller.f_code.co_filename:
                calls.append((step[0], name, caller.f_code.co_filename, caller.f_lineno))
            return wait(self, *arguments, **options)

        return method

    for name in WAITING:
        monkeypatch.setattr(torch.Tensor, name, watched(name))
    plan = CountingPlan(lambda number: step.__setitem__(0, number))
    run(tmp_path, plan, log_every_steps=4, spike_factor=3.0, matrices=matrices, micro_batch_size=2, precision="fp32")
    assert [call for call in calls if call[0] not in (0, 4, 8)] == []
    assert any(call[0] == 4 for call in calls)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_step_but_those_that_log_waits_for_the_gpu(tmp_path):
    def watch(step):
        torch.cuda.set_sync_debug_mode("default" if step < 3 or step % 4 == 0 else "error")

    trainer = TrainerConfig(**(vars(TRAINER) | {"log_every_steps": 4, "save_every_steps": 0, "spike_factor": 3.0}))
    try:
        train(trainer, OPTIM, CountingPlan(watch), LVM(MODEL, 1), RunOptions(tmp_path), "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_every_figure_that_the_journal_names_is_written(tmp_path):
    run(tmp_path, max_steps=4)
    record = read_metrics(tmp_path / "metrics")[-1]
    names = ["loss", "loss_by_source", "lr", "grad_norm", "tokens", "skipped_steps", "tokens_per_second", "mfu"]
    names += ["mfu_causal", "data_wait", "step_seconds", "memory", "seconds"]
    assert set(names) <= set(record)
    assert record["mfu"] is None and record["memory"]["device"] is None and record["memory"]["host"] > 1e7
    assert 0 <= record["data_wait"] <= 1
    assert 0 < record["step_seconds"]["p50"] <= record["step_seconds"]["p90"] <= record["step_seconds"]["p99"] < 10


def test_percentiles_are_of_the_steps_since_they_were_read(monkeypatch):
    now = iter([0.0, *(float(sum(range(1, k + 1))) for k in range(1, 101)), 6000.0, 6001.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    clock = StepClock(torch.device("cpu"))
    for _ in range(100):
        clock.lap()  # the k-th step takes k seconds
    assert clock.read() == {"p50": 51.0, "p90": 91.0, "p99": 100.0}
    clock.start()
    clock.lap()
    assert clock.read() == {"p50": 1.0, "p90": 1.0, "p99": 1.0}


def test_steps_are_traced_and_a_snapshot_without_a_gpu_is_one_line(tmp_path, capsys):
    run(tmp_path, max_steps=4, profile_steps=(2, 3), memory_snapshot=True)
    (trace,) = (tmp_path / "profile").iterdir()
    assert trace.name == "steps-2-3-rank-0.json" and json.loads(trace.read_text())["traceEvents"]
    assert "trainer.memory_snapshot is of CUDA's memory" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"trainer.profile_steps is \[3, 2\]; give first and last"):
        TrainerConfig(max_steps=1, batch_size=1, profile_steps=(3, 2))


def test_a_run_without_saving_leaves_no_checkpoint(tmp_path):
    run(tmp_path, max_steps=2, save_every_steps=0)
    assert not list((tmp_path / "checkpoints").iterdir())
