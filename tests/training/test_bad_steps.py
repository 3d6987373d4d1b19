"""Steps that would spoil the weights: left out on the device, written down, made again by `lvm replay`."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_plan import MODEL, OPTIM, TRAINER, FakePlan, run

import lvm.training.loop as loop
from lvm.commands.replay import report
from lvm.model import LVM
from lvm.runtime import UserError
from lvm.runtime.checkpoint import list_checkpoints
from lvm.runtime.distributed import Distributed
from lvm.runtime.metrics import read_metrics
from lvm.training import NotFinite, TrainState
from lvm.training.bad_steps import LEAST_NORMS, BadStepPolicy, BadSteps, update_unless
from lvm.training.optim import make_optimizer
from lvm.training.parallel import make_loss
from lvm.training.replay import replay

FAULTY = Path(__file__).with_name("faulty.py")


def poison(monkeypatch, *windows):
    """Windows of the fake plan whose loss is not a number."""
    tokens = [torch.from_numpy(FakePlan().windows(window, 1).tokens[0]) for window in windows]

    def poisoned(make):
        def made(*arguments, **options):
            loss_of = make(*arguments, **options)

            def loss(rows, role, targets):
                value, nll = loss_of(rows, role, targets)
                hit = torch.stack([(rows == bad).all(1) for bad in tokens]).any(0)
                return value * torch.where(hit.any(), math.nan, 1.0), torch.where(hit[:, None], math.nan, nll)

            return loss

        return made

    monkeypatch.setattr(loop, "loss_on_mesh", poisoned(loop.loss_on_mesh))
    monkeypatch.setattr("lvm.training.replay.make_loss", poisoned(make_loss))


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("matrices", ["adamw", "muon"])
def test_a_bad_update_changes_neither_weights_nor_moments(matrices):
    model = LVM(MODEL, 1)
    optimizer = make_optimizer(model, type(OPTIM)(**(vars(OPTIM) | {"matrices": matrices})))

    def step(bad, scale=1.0):
        (model.nll(torch.arange(17)[None] % 20).mean() * scale).backward()
        update_unless(optimizer, torch.tensor(bad))
        optimizer.zero_grad()

    def state():
        return [v.clone() for kept in optimizer.state.values() for v in kept.values()] + weights(model)

    step(False)
    before = state()
    step(True, math.nan)
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
    step(False)
    assert not any(torch.equal(a, b) for a, b in zip(before, state(), strict=True))


def test_a_step_that_is_not_finite_stops_the_run_and_says_what_it_read(tmp_path, monkeypatch):
    poison(monkeypatch, 22)
    with pytest.raises(NotFinite, match=r"the loss is nan at step 6; `lvm replay .*trainer\.on_bad_step=skip"):
        run(tmp_path, max_steps=12, log_every_steps=4, save_every_steps=2, micro_batch_size=2)
    (file,) = (tmp_path / "bad-steps").iterdir()
    found = json.loads(file.read_text())
    assert (file.name, found["step"]) == ("step-00000006.json", 6)
    assert (found["first_window"], found["last_window"], found["plan"]) == (20, 23, FakePlan().fingerprint)
    assert found["loss"] == "nan" and found["start_from"] == "checkpoints/step-00000004"
    ((first, second),) = found["loss_by_rank_and_micro_batch"]
    assert second == "nan" and 0 < first < 4
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")][-1] == "step-00000004"


def test_a_skipped_step_is_as_if_it_had_not_been_made_and_a_resumed_run_is_the_uninterrupted_one(tmp_path, monkeypatch):
    poison(monkeypatch, 5)
    options = {"on_bad_step": "skip", "precision": "fp32", "log_every_steps": 1}
    whole, result = run(tmp_path / "whole", max_steps=6, **options)
    assert result.state.skipped_steps == 1
    run(tmp_path / "parts", max_steps=4, **options)
    resumed, _ = run(tmp_path / "parts", max_steps=6, **options)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True))
    one, _ = run(tmp_path / "one", max_steps=1, **options)
    two, _ = run(tmp_path / "two", max_steps=2, **options)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    records = read_metrics(tmp_path / "whole" / "metrics")
    assert [record["skipped_steps"] for record in records] == [0, 1, 1, 1, 1, 1]
    assert records[1]["loss"] == "nan" and all(isinstance(record["loss"], float) for record in records[2:])


def test_too_many_bad_steps_in_a_row_stop_even_a_run_that_skips(tmp_path, monkeypatch):
    poison(monkeypatch, 4, 9, 13)
    with pytest.raises(NotFinite, match="step 4, for the 3th time in a row"):
        run(tmp_path, on_bad_step="skip", max_bad_steps=3, save_every_steps=1)
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")][-1] == "step-00000003"


def test_a_spike_is_a_norm_far_above_the_median_and_survives_a_restart():
    policy, ranks = BadStepPolicy("skip", 3.0, 10), Distributed()

    def judge(norms, state):
        bad_steps = BadSteps(Path("nowhere"), policy, 100, 1, torch.device("cpu"), ranks, state, {})
        bad_steps._write = lambda *_: None  # type: ignore[method-assign]
        verdicts = []
        for norm in norms:
            bad_steps.note(0, torch.tensor(1.0))
            verdicts.append(bool(bad_steps.judge(torch.tensor(norm), state, 4)))
        return verdicts, bad_steps.read(state)

    few, _ = judge([1.0] * (LEAST_NORMS - 1) + [50.0], TrainState())
    assert not any(few)  # too little is known
    norms = [1.0 + 0.01 * i for i in range(90)] + [50.0, 1.0, 4.0]
    whole, state = judge(norms, TrainState())
    assert [i for i, bad in enumerate(whole) if bad] == [90] and state.skipped_steps == 1  # the median is near 1.6
    first, middle = judge(norms[:70], TrainState())
    second, end = judge(norms[70:], middle)
    assert first + second == whole and end.gradient_norms == state.gradient_norms and len(end.gradient_norms) == 64


def test_a_replay_finds_the_window_from_a_checkpoint_and_from_the_start(tmp_path, monkeypatch):
    poison(monkeypatch, 22)
    monkeypatch.setattr(FakePlan, "explain", lambda self, i: [sentence(0, 9, f"a{i}"), sentence(9, 17, f"b{i}")], False)
    with pytest.raises(NotFinite):
        run(tmp_path, max_steps=12, precision="fp32", log_every_steps=1, save_every_steps=3)
    record = json.loads((tmp_path / "bad-steps" / "step-00000006.json").read_text())
    for folder, start in ((tmp_path, "step-00000003"), (tmp_path / "bad-steps", "the initial weights")):
        config = loop.TrainerConfig(max_steps=12, batch_size=4, precision="fp32", compile=False, num_threads=1)
        found = replay(config, OPTIM, FakePlan(), LVM(MODEL, 1), folder, 6, record, seed=1)
        assert found.start_from.endswith(start) and found.reproduced
        ((window,), others) = found.blamed, [w for w in found.windows if w.window != 22]
        assert (window["window"], window["items"], window["sources"]) == (22, ["a22"], ["source"])
        assert all(w.finite for w in others) and [w.window for w in found.windows] == [20, 21, 22, 23]
    with pytest.raises(UserError, match="the plan is another"):
        replay(config, OPTIM, FakePlan(3), LVM(MODEL, 1), tmp_path, 6, record)


@pytest.mark.parametrize("loss_on", ["all", "answers"])
def test_a_replay_weighs_the_windows_of_a_finite_step_as_the_run_did(tmp_path, loss_on):
    run(tmp_path, max_steps=6, precision="fp32", log_every_steps=1, loss_on=loss_on)
    (recorded,) = [record for record in read_metrics(tmp_path / "metrics") if record.get("step") == 6]
    config = loop.TrainerConfig(
        max_steps=6, batch_size=4, precision="fp32", compile=False, num_threads=1, loss_on=loss_on
    )
    plan = FakePlan()
    plan.explain = lambda i: [sentence(0, 17, f"a{i}")]
    found = replay(config, OPTIM, plan, LVM(MODEL, 1), tmp_path / "nowhere", 6, {}, seed=1)
    assert not found.reproduced and found.spike is None
    assert found.loss == pytest.approx(recorded["loss"], rel=1e-6)
    assert found.gradient_norm == pytest.approx(recorded["grad_norm"], rel=1e-4)


def test_a_replay_says_whether_a_spike_is_seen_again(tmp_path):
    options = {"precision": "fp32", "log_every_steps": 1, "save_every_steps": 4, "spike_factor": 1.02}
    with pytest.raises(NotFinite, match="the norm of the gradient is"):
        run(tmp_path, max_steps=60, **options)
    (file,) = (tmp_path / "bad-steps").iterdir()
    record = json.loads(file.read_text())
    plan, step = FakePlan(), record["step"]
    plan.explain = lambda i: [sentence(0, 17, f"a{i}")]
    config = loop.TrainerConfig(**(vars(TRAINER) | {"max_steps": 60} | options))
    found = replay(config, OPTIM, plan, LVM(MODEL, 1), tmp_path, step, record, seed=1)
    assert found.finite and found.reproduced and found.spike == record["gradient_norm"]
    assert found.gradient_norm == pytest.approx(found.spike, rel=1e-4)
    assert found.blamed[0]["gradient_norm"] == max(window.gradient_norm for window in found.windows)
    assert f"(recorded: {found.spike:.4g})" in report(found) and "all of them finite here" in report(found)
    other = replay(config, OPTIM, plan, LVM(MODEL, 1), tmp_path, step, {**record, "gradient_norm": 9.0}, seed=1)
    assert not other.reproduced


def sentence(start, end, name):
    return {"start": start, "end": end, "source": "source", "entry": "entry", "pictures": [{"id": name}]}


def test_a_nan_at_step_37_on_two_ranks_stops_both_and_is_found_by_a_fresh_process_on_one(small, tmp_path):
    overrides, _ = small
    folder, window = tmp_path / "run", 36 * 4 + 2
    changes = [f"run_dir={folder}", "trainer.max_steps=60", "trainer.save_every_steps=16", "trainer.precision=fp32"]
    environment = {"OMP_NUM_THREADS": "1"}

    def command(*arguments):
        done = subprocess.run(
            [sys.executable, str(FAULTY), str(window), *arguments],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        return done.returncode, done.stdout, done.stderr

    code, _, errors = command("train", *overrides, *changes, "trainer.accelerator=cpu", "trainer.devices=2")
    assert code == 2 and "the loss is nan at step 37; `lvm replay" in errors, errors
    record = json.loads((folder / "bad-steps" / "step-00000037.json").read_text())
    assert record["ranks"] == 2 and record["start_from"] == "checkpoints/step-00000032"
    assert ["nan"] in record["loss_by_rank_and_micro_batch"] and len(record["loss_by_rank_and_micro_batch"]) == 2

    code, output, errors = command("replay", str(folder), "--json", str(tmp_path / "found.json"))
    assert code == 0, errors
    found = json.loads((tmp_path / "found.json").read_text())
    (blamed,) = found["blamed"]
    assert blamed["window"] == window and blamed["sources"] == ["world"] and found["loss"] == "nan"
    assert blamed["items"][0].startswith("world-") and blamed["items"][0] in output
