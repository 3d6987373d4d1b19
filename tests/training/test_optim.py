"""Learning rates, windows of a step and Muon: each against its definition written out here."""

import math
import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from fake_plan import MODEL, run
from hypothesis import given
from hypothesis import strategies as st

import lvm.training.muon
from lvm.model import LVM
from lvm.runtime import UserError, build
from lvm.training.muon import Muon
from lvm.training.optim import (
    OptimConfig,
    batch_size_at,
    learning_rate,
    make_optimizer,
    only_the_fall_differs,
    progress,
    windows_before,
    with_length,
)

COSINE = OptimConfig(lr=1.0, warmup_steps=4, schedule_steps=20, final_share=0.1)
WSD = replace(COSINE, schedule="wsd", stable_share=0.5, final_share=0.02)
TRUNK = replace(WSD, schedule_steps=None, stable_share=1.0)
TOKENS = replace(COSINE, schedule_unit="tokens", schedule_steps=None, warmup_tokens=400.0, schedule_tokens=2000.0)


def rates(config: OptimConfig, steps: int = 30) -> list[float]:
    return [learning_rate(config, step) for step in range(steps)]


def test_a_cosine_warms_up_falls_to_its_final_share_and_stays_there():
    found = rates(COSINE)
    assert found[:4] == [0.25, 0.5, 0.75, 1.0] and found[20:] == [0.1] * 10
    for step in range(4, 21):
        assert found[step] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * (step - 4) / 16)) / 2)


def test_wsd_is_constant_then_a_straight_line():
    found = rates(WSD)
    assert found[3:11] == [1.0] * 8 and found[20:] == [pytest.approx(0.02)] * 10
    assert [a - b for a, b in pairwise(found[10:21])] == [pytest.approx(0.098)] * 10


def test_the_fall_of_wsd_is_given_by_share_by_length_or_by_start():
    assert rates(replace(WSD, decay_steps=10)) == rates(WSD)
    assert rates(replace(WSD, decay_steps=10, decay_from_step=10, schedule_steps=None)) == rates(WSD)


def test_a_schedule_without_a_length_of_its_own_takes_that_of_the_run():
    config = with_length(replace(WSD, schedule_steps=None), 20)
    assert config == WSD and with_length(config, 99) == WSD
    assert with_length(WSD, 20, share=0.34).schedule_steps == 7
    assert with_length(TOKENS, 20, share=0.5).schedule_tokens == 1000.0
    assert with_length(TRUNK, 20) == with_length(TRUNK, 30) == TRUNK


def test_a_schedule_in_tokens_is_that_in_steps_where_all_steps_have_as_many():
    in_tokens = [learning_rate(TOKENS, *progress(TOKENS, step, 100 * step, 100)) for step in range(30)]
    assert in_tokens == pytest.approx(rates(COSINE))
    assert progress(COSINE, 7, 700, 100) == (7, 1)
    assert learning_rate(TOKENS, 390, 100) == 1.0  # the warm-up ends inside of this update


@given(at=st.integers(4, 60), later=st.integers(0, 20), length=st.integers(1, 30), share=st.floats(0, 1))
def test_a_constant_run_may_be_branched_at_any_step_and_has_then_always_been_so(at, later, length, share):
    branch = replace(TRUNK, decay_from_step=at + later, decay_steps=length, final_share=share)
    assert only_the_fall_differs(TRUNK, branch, at)
    assert rates(TRUNK, at) == rates(branch, at)
    assert not only_the_fall_differs(TRUNK, branch, at + later + 1)
    end = at + later + length
    assert rates(branch, end + 3)[end:] == [pytest.approx(share)] * 3
    assert rates(branch, end + 1)[at + later :] == sorted(rates(branch, end + 1)[at + later :], reverse=True)


def test_what_has_shaped_the_weights_may_not_change():
    for change in ({"lr": 2.0}, {"warmup_steps": 5}, {"weight_decay": 0.0}, {"matrices": "muon"}):
        assert not only_the_fall_differs(TRUNK, replace(TRUNK, **change), 10), change
    assert not only_the_fall_differs(COSINE, replace(COSINE, schedule_steps=30), 10)
    assert only_the_fall_differs(COSINE, replace(COSINE, schedule_steps=30), 4)
    assert only_the_fall_differs(WSD, replace(WSD, schedule_steps=30), 10)


def test_a_branch_of_a_constant_run_is_the_run_that_fell_from_there(tmp_path):
    trunk = {"schedule": "wsd", "stable_share": 1.0, "schedule_steps": None, "save_every_steps": 2}
    fall = {"decay_from_step": 4, "decay_steps": 3, "max_steps": 7}
    run(tmp_path / "trunk", max_steps=4, **trunk)
    run(tmp_path / "trunk", max_steps=5, **trunk)  # no length of the schedule stands in the way
    shutil.copytree(
        tmp_path / "trunk" / "checkpoints" / "step-00000004", tmp_path / "b" / "checkpoints" / "step-00000004"
    )
    branch, _ = run(tmp_path / "b", **trunk | fall)
    whole, _ = run(tmp_path / "whole", **trunk | fall)
    assert all(torch.equal(a, b) for a, b in zip(branch.parameters(), whole.parameters(), strict=True))
    with pytest.raises(UserError, match=r"optim\.decay_from_step is 4 and was None"):
        run(tmp_path / "trunk", **trunk | fall)  # its newest checkpoint is that of step 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule_tokens": 1e9}, "schedule_tokens is set and optim.schedule_unit is steps"),
        ({"schedule_unit": "tokens"}, "schedule_tokens is not set"),
        ({"schedule_unit": "tokens", "schedule_tokens": 1e9, "decay_steps": 5}, "decay_steps is set"),
        ({"decay_from_step": 5, "decay_steps": 5}, "use optim.schedule=wsd"),
        ({"schedule": "wsd", "decay_from_step": 5}, "falls from 5 steps on and optim.decay_steps does not say"),
        ({"schedule": "wsd", "decay_steps": -5}, "decay_steps is -5; use 0 or more"),
        ({"batch_warmup": [[10, 4], [5, 8]]}, "pairs .* of growing steps"),
        ({"batch_warmup": [[10, 0]]}, "pairs .* of growing steps"),
    ],
)
def test_schedules_that_contradict_themselves_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        build(OptimConfig, changes, "optim")


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), max_size=4, unique_by=lambda pair: pair[0]),
    st.integers(1, 9),
)
def test_the_windows_before_a_step_are_those_of_all_steps_before_it(pairs, batch_size):
    warmup = build(OptimConfig, {"batch_warmup": [list(pair) for pair in sorted(pairs)]}, "optim").batch_warmup
    sizes = [batch_size_at(warmup, batch_size, step) for step in range(50)]
    assert [windows_before(warmup, batch_size, step) for step in range(51)] == [sum(sizes[:n]) for n in range(51)]
    assert sizes[40:] == [batch_size] * 10 and all(sizes[until - 1] == windows for until, windows in warmup)


def matrices() -> list[torch.nn.Parameter]:
    shapes = [(12, 12), (30, 12), (12, 12), (12, 30), (30, 12), (12, 12), (7, 5)]
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


@pytest.mark.parametrize("at_once", [2**24, 2 * 12 * 30, 1])
def test_muon_in_batches_is_torchs_to_the_bit(monkeypatch, at_once):
    monkeypatch.setattr(lvm.training.muon, "ELEMENTS_AT_ONCE", at_once)
    ours, theirs = matrices(), matrices()
    torchs = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.2, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    optimizer = Muon(ours, lr=0.1, weight_decay=0.2, momentum=0.9)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for a, b in zip(ours, theirs):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        ours[1].grad = theirs[1].grad = None
        optimizer.step()
        torchs.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
    assert torch.equal(optimizer.state[ours[0]]["momentum_buffer"], torchs.state[theirs[0]]["momentum_buffer"])


def test_muon_changes_nothing_in_a_bad_step():
    ours = matrices()
    optimizer = Muon(ours, lr=0.1, weight_decay=0.2, momentum=0.9)
    before = [p.detach().clone() for p in ours]
    for p in ours:
        p.grad = torch.full_like(p, math.nan)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(p, former) for p, former in zip(ours, before))
    assert not any(state["momentum_buffer"].any() for state in optimizer.state.values())


@pytest.mark.parametrize("matrices", ["adamw", "muon"])
def test_norms_and_biases_do_not_decay_unless_all_do_as_in_the_reference(matrices):
    model = LVM(replace(MODEL, qk_norm=True, attention_bias=True), 1)
    names = {p: name for name, p in model.named_parameters()}

    def decayed(decay):
        optimizer = make_optimizer(model, OptimConfig(matrices=matrices, decay=decay, weight_decay=0.3))
        assert sorted(names[p] for group in optimizer.param_groups for p in group["params"]) == sorted(names.values())
        return {names[p] for group in optimizer.param_groups for p in group["params"] if group["weight_decay"]}

    vectors = {name for name in names.values() if "norm" in name or "bias" in name}
    assert len(vectors) == 8 * MODEL.num_layers + 1
    assert decayed("matrices") == set(names.values()) - vectors and decayed("all") == set(names.values())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    make_optimizer(model, OptimConfig(matrices=matrices)).step()
