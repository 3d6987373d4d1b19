"""The loop: resumed equals uninterrupted, all rank counts read the same windows, other runs are not continued."""

import os
import signal
import threading
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from fake_plan import MODEL, OPTIM, FakePlan, run, start_ranks

import lvm.training.loop as loop
from lvm.model import LVM
from lvm.runtime import UserError
from lvm.runtime.checkpoint import list_checkpoints, read_state
from lvm.runtime.metrics import read_metrics
from lvm.training import NotFinite, resume
from lvm.training.loop import compute_dtype, micro_batches, num_targets
from lvm.training.optim import make_optimizer
from lvm.training.parallel import make_loss, make_sharded_loss


def equal(a: LVM, b: LVM) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize(("precision", "matrices"), [("fp32", "adamw"), ("bf16", "adamw"), ("bf16", "muon")])
def test_resumed_equals_uninterrupted_to_the_bit(tmp_path, precision, matrices):
    whole, _ = run(tmp_path / "whole", precision=precision, matrices=matrices)
    run(tmp_path / "parts", precision=precision, matrices=matrices, max_steps=3)
    resumed, result = run(tmp_path / "parts", precision=precision, matrices=matrices)
    assert result.finished and result.state.step == 8 and result.state.next_window == 32
    assert equal(whole, resumed)
    history, expected = (
        [(r["step"], r["loss"], r["loss_by_source"], r["tokens"]) for r in read_metrics(tmp_path / name / "metrics")]
        for name in ("parts", "whole")
    )
    assert [row for row in history if row[0] % 2 == 0] == expected


def test_a_finished_run_does_nothing_more(tmp_path):
    run(tmp_path, max_steps=2)
    before = sorted(path.name for path in (tmp_path / "metrics").iterdir())
    model, result = run(tmp_path, FakePlan(), max_steps=2)
    assert result.finished and result.state.step == 2
    assert sorted(path.name for path in (tmp_path / "metrics").iterdir()) == before
    assert not equal(model, LVM(MODEL, 1))  # the weights are those of the checkpoint


@pytest.mark.parametrize("matrices", ["adamw", "muon"])
def test_one_rank_and_two_read_the_same_windows_and_learn_the_same(tmp_path, matrices):
    alone, _ = run(tmp_path / "one", max_steps=4, precision="fp32", matrices=matrices)
    reports = start_ranks(tmp_path / "two", 2, max_steps=4, precision="fp32", micro_batch_size=1, matrices=matrices)
    assert [report["step"] for report in reports] == [4, 4]
    read = [set(report["read"]) for report in reports]
    assert not read[0] & read[1] and set(range(16)) <= read[0] | read[1]
    moved, result = run(tmp_path / "two", max_steps=4, precision="fp32", matrices=matrices)
    assert result.state.step == 4
    for p, q, start in zip(alone.parameters(), moved.parameters(), LVM(MODEL, 1).parameters(), strict=True):
        if matrices == "adamw":
            assert torch.allclose(p, q, atol=1e-5)
        else:  # which multiplies in bfloat16 and magnifies what is small: of the way gone, 8% apart as measured
            assert (p - q).norm() < 0.15 * (p - start).norm()
    one, two = (read_metrics(tmp_path / name / "metrics") for name in ("one", "two"))
    assert [r["tokens"] for r in one] == [r["tokens"] for r in two]
    assert [r["loss"] for r in two] == pytest.approx([r["loss"] for r in one], rel=1e-5)
    assert two[-1]["grad_norm"] == pytest.approx(one[-1]["grad_norm"], rel=1e-4 if matrices == "adamw" else 1e-3)


def test_a_run_moves_from_two_ranks_to_one_and_back(tmp_path):
    whole, _ = run(tmp_path / "whole", max_steps=6, precision="fp32")
    start_ranks(tmp_path / "moved", 2, max_steps=2, precision="fp32")
    run(tmp_path / "moved", max_steps=4, precision="fp32")
    reports = start_ranks(tmp_path / "moved", 2, max_steps=6, precision="fp32")
    assert reports[0]["next_window"] == 24 and min(reports[0]["read"]) == 16
    moved, _ = run(tmp_path / "moved", max_steps=6, precision="fp32")
    for p, q in zip(whole.parameters(), moved.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-5)


def test_micro_batches_give_the_step_of_one_batch(tmp_path):
    whole, _ = run(tmp_path / "whole", max_steps=3, precision="fp32")
    pieces, _ = run(tmp_path / "pieces", max_steps=3, precision="fp32", micro_batch_size=1)
    for p, q in zip(whole.parameters(), pieces.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-5)


def test_the_loss_is_the_mean_over_all_targets_but_pad(tmp_path):
    plan, model = FakePlan(), LVM(MODEL, 1)
    run(tmp_path, plan, max_steps=1, precision="fp32", log_every_steps=1)
    window = plan.windows(0, 4)
    nll = model.nll(torch.from_numpy(window.tokens)).detach()
    counted = torch.from_numpy(window.role[:, 1:] != 3)
    (record,) = read_metrics(tmp_path / "metrics")
    assert record["loss"] == pytest.approx(float(nll[counted].mean()), rel=1e-5)
    assert record["tokens"] == int(counted.sum()) < 64
    odd = counted & torch.from_numpy(window.source[:, 1:] == 1)
    assert record["loss_by_source"]["odd"] == pytest.approx(float(nll[odd].mean()), rel=1e-5)


def test_a_loss_on_answers_alone_counts_no_other_token(tmp_path):
    plan = FakePlan()
    window = plan.windows(0, 4)
    _, result = run(tmp_path, plan, max_steps=1, precision="fp32", log_every_steps=1, loss_on="answers")
    model = LVM(MODEL, 1)
    nll = model.nll(torch.from_numpy(window.tokens)).detach()
    answers = torch.from_numpy(window.role[:, 1:] == 1)
    (record,) = read_metrics(tmp_path / "metrics")
    assert record["loss"] == pytest.approx(float(nll[answers].mean()), rel=1e-5)
    odd = answers & torch.from_numpy(window.source[:, 1:] == 1)
    assert record["loss_by_source"]["odd"] == pytest.approx(float(nll[odd].mean()), rel=1e-5)
    assert result.state.tokens == int(answers.sum())
    with pytest.raises(UserError, match=r"trained with other settings: .*loss_on"):
        run(tmp_path, plan, max_steps=2)


def test_a_run_from_before_there_was_a_choice_of_loss_goes_on(tmp_path, monkeypatch):
    run(tmp_path, max_steps=1, precision="fp32")
    read = resume.read_state

    def read_older(path):
        state = read(path)
        del state["identity"]["trainer"]["loss_on"], state["identity"]["trainer"]["spike_factor"]
        del state["identity"]["codebook_start"]
        return state

    monkeypatch.setattr(resume, "read_state", read_older)
    assert run(tmp_path, max_steps=2, precision="fp32")[1].state.step == 2
    with pytest.raises(UserError, match="loss_on is answers and was all"):
        run(tmp_path, max_steps=3, precision="fp32", loss_on="answers")


@pytest.mark.parametrize("change", [{"spike_factor": 3.0}, {"codebook_start": True}])
def test_what_decides_the_weights_may_not_change(tmp_path, change):
    run(tmp_path, max_steps=1, precision="fp32")
    ((name, value),) = change.items()
    with pytest.raises(UserError, match=rf"trained with other settings: .*{name} is {value}"):
        run(tmp_path, max_steps=2, precision="fp32", **change)


def test_mfu_counts_no_pad(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "peak_flops", lambda device: 1e12)
    run(tmp_path, max_steps=2, precision="fp32", log_every_steps=2)
    (record,) = read_metrics(tmp_path / "metrics")
    fed, counted = 8 * 16, num_targets(FakePlan(), 0, 8)
    assert counted < fed
    expected = record["tokens_per_second"] * counted / fed * LVM(MODEL).flops_per_token(16) / 1e12
    assert record["mfu"] == pytest.approx(expected)


def test_the_document_mask_restarts_attention_at_each_bos():
    tokens = torch.randint(20, (1, 17))
    tokens[0, [0, 8]] = MODEL.bos
    role, targets = torch.zeros(1, 17, dtype=torch.int8), torch.tensor(16.0)
    model = LVM(MODEL, 1)
    for p in model.parameters():
        p.data.mul_(8 if p.ndim > 1 else 1)
    _, nll = make_loss(model, torch.float32, document_mask=True, compile=False)(tokens, role, targets)
    _, second = make_loss(model, torch.float32, True, False)(tokens[:, 8:], role[:, 8:], targets)
    _, open_nll = make_loss(model, torch.float32, False, False)(tokens, role, targets)
    assert torch.allclose(nll[:, 8:], second, atol=1e-5)
    assert not torch.allclose(open_nll[:, 8:], second, atol=1e-2)


def test_one_sharded_rank_gives_the_bits_of_our_own_cast(tmp_path):
    tokens, role = torch.randint(20, (4, 17)), torch.zeros(4, 17, dtype=torch.int8)
    plain, sharded = LVM(MODEL, 1), LVM(MODEL, 1)
    dist.init_process_group("gloo", f"file://{tmp_path}/init", rank=0, world_size=1)
    try:
        for model, make in ((plain, make_loss), (sharded, make_sharded_loss)):
            loss, _ = make(model, torch.bfloat16, False, False)(tokens, role, torch.tensor(64.0))
            loss.backward()
        for (name, p), q in zip(plain.named_parameters(), sharded.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad.to_local()), name
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(loop.compile_problem() is not None, reason="torch.compile cannot be used here")
def test_the_compiled_loss_is_the_eager_one():
    tokens, role = torch.randint(20, (2, 17)), torch.zeros(2, 17, dtype=torch.int8)
    eager, compiled = LVM(replace(MODEL, num_layers=1), 1), LVM(replace(MODEL, num_layers=1), 1)
    values = []
    for model, compile in ((eager, False), (compiled, True)):
        loss, nll = make_loss(model, torch.float32, False, compile)(tokens, role, torch.tensor(32.0))
        loss.backward()
        values.append(nll)
    assert torch.allclose(*values, atol=1e-5)
    for p, q in zip(eager.parameters(), compiled.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-5)


def test_a_checkpoint_of_other_settings_is_refused_with_the_difference(tmp_path):
    run(tmp_path, max_steps=2)
    with pytest.raises(UserError, match=r"optim\.lr is 0\.02 and was 0\.01; set"):
        run(tmp_path, max_steps=4, lr=0.02)
    with pytest.raises(UserError, match=r"model\.hidden_size is 64 and was 32"):
        run(tmp_path, max_steps=4, hidden_size=64)
    with pytest.raises(UserError, match=r"trainer\.batch_size is 8 and was 4"):
        run(tmp_path, max_steps=4, batch_size=8)
    run(tmp_path, max_steps=4, micro_batch_size=2, log_every_steps=1, save_every_steps=2, keep_checkpoints=5)
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["step-00000002", "step-00000004"]


def test_another_plan_is_refused_unless_it_is_asked_for_and_then_starts_at_window_0(tmp_path):
    _, before = run(tmp_path, max_steps=2)
    with pytest.raises(UserError, match=r"another plan: seed is 7 and was 0; .*data\.new_plan=true"):
        run(tmp_path, FakePlan(7), max_steps=4)
    plan = FakePlan(7)
    _, result = run(tmp_path, plan, max_steps=4, new_plan=True)
    assert min(plan.read) == 0 and result.state.next_window == 8
    assert result.state.step == 4 and result.state.tokens > before.state.tokens
    _, result = run(tmp_path, FakePlan(7), max_steps=5, new_plan=True)  # asked for again, it is no other plan
    assert result.state.next_window == 12


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_saves_and_the_same_command_continues(tmp_path, number):
    def interrupt(model, step):
        if step == 2:
            os.kill(os.getpid(), number)
        return {"asked": 1}

    _, result = run(tmp_path / "parts", answer=interrupt, answer_every_steps=1)
    assert not result.finished and result.signal == number and 2 <= result.state.step <= 4
    assert read_state(list_checkpoints(tmp_path / "parts" / "checkpoints")[-1])["train"]["step"] == result.state.step
    whole, _ = run(tmp_path / "whole")
    resumed, _ = run(tmp_path / "parts")
    assert equal(whole, resumed)
    assert "windows" not in [thread.name for thread in threading.enumerate()]


def test_a_loss_that_is_not_finite_ends_the_run_and_is_never_saved(tmp_path):
    with pytest.raises(NotFinite, match=r"is (inf|nan|not finite)"):
        run(tmp_path, lr=1e30, clip=1e30, warmup_steps=0, log_every_steps=4, save_every_steps=3)
    assert list_checkpoints(tmp_path / "checkpoints") == []


def test_a_run_in_use_is_refused(tmp_path):
    def second(model, step):
        with pytest.raises(UserError, match="in use by pid"):
            run(tmp_path)
        return {}

    run(tmp_path, max_steps=1, answer=second, answer_every_steps=1)


def test_without_a_compiler_a_share_of_the_steps_is_trained_and_one_line_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "compile_problem", lambda: "no C++ compiler is installed (g++)")
    with pytest.warns(UserWarning, match=r"no C\+\+ compiler"):
        _, result = run(tmp_path, compile="auto", share_without_compile=0.34, max_steps=9)
    assert result.finished and result.state.step == 4
    state = read_state(list_checkpoints(tmp_path / "checkpoints")[-1])
    assert state["identity"]["optim"]["schedule_steps"] == 7
    with pytest.raises(UserError, match=r"trainer\.compile=true is not possible"):
        run(tmp_path / "other", compile=True)


def test_only_matrices_decay_unless_all_is_asked_for():
    groups = make_optimizer(LVM(MODEL), OPTIM).param_groups
    assert [(g["weight_decay"], {p.ndim for p in g["params"]}) for g in groups] == [(0.1, {2}), (0.0, {1})]
    groups = make_optimizer(LVM(MODEL), replace(OPTIM, decay="all")).param_groups
    assert [(g["weight_decay"], {p.ndim for p in g["params"]}) for g in groups] == [(0.1, {1, 2})]


def test_muon_takes_the_matrices_of_the_blocks_and_orthogonalises_their_updates():
    model = LVM(MODEL, 1)
    optimizer = make_optimizer(model, replace(OPTIM, matrices="muon", weight_decay=0.0))
    blocks = {id(p) for name, p in model.named_parameters() if name.startswith("layers.") and p.ndim == 2}
    assert {id(p) for p in optimizer.parts[1].param_groups[0]["params"]} == blocks
    before = model.layers[0].mlp.gate.weight.detach().clone()
    model.nll(torch.randint(20, (2, 17))).mean().backward()
    gradient = model.layers[0].mlp.gate.weight.grad
    optimizer.step()
    spread = lambda matrix: float((lambda values: values[0] / values.median())(torch.linalg.svdvals(matrix.float())))
    assert spread(model.layers[0].mlp.gate.weight.detach() - before) < 2 < spread(gradient)


def test_a_batch_that_grows_reads_every_window_once_and_resumes_to_the_bit(tmp_path):
    options = {"batch_warmup": ((2, 4), (4, 8)), "batch_size": 16, "micro_batch_size": 2, "precision": "fp32"}
    plan = FakePlan()
    whole, result = run(tmp_path / "whole", plan, max_steps=6, **options)
    assert result.state.next_window == 2 * 4 + 2 * 8 + 2 * 16 and set(range(56)) <= set(plan.read)
    run(tmp_path / "parts", max_steps=3, **options)
    resumed, _ = run(tmp_path / "parts", max_steps=6, **options)
    assert equal(whole, resumed)
    with pytest.raises(
        UserError, match=r"a batch of optim\.batch_warmup, 3 is no multiple of 1 ranks x 2 windows; use 4"
    ):
        run(tmp_path / "other", **(options | {"batch_warmup": ((2, 3),)}))


def test_the_checkpoint_of_the_lowest_validation_loss_is_kept(tmp_path):
    options = {"validate_every_steps": 1, "save_every_steps": 1, "keep_checkpoints": 1, "keep_best": 1, "lr": 0.3}
    run(tmp_path, max_steps=6, **options)
    losses = {r["step"]: r["validation_loss"] for r in read_metrics(tmp_path / "metrics")}
    best = min(losses, key=losses.get)
    kept = [int(path.name.removeprefix("step-")) for path in list_checkpoints(tmp_path / "checkpoints")]
    assert kept == sorted({best, 6})
    with pytest.raises(UserError, match="keep_best is 1 and checkpoints are not of steps that are validated"):
        run(tmp_path / "other", **(options | {"validate_every_steps": 0}))


def test_batches_that_do_not_divide_and_models_of_other_codes_are_refused_with_a_remedy(tmp_path):
    assert micro_batches(32, None, 4) == (8, 1) and micro_batches(32, 2, 4) == (2, 4)
    with pytest.raises(UserError, match="batch_size 30 is no multiple of 4 ranks x 4 windows; use 32"):
        micro_batches(30, 4, 4)
    with pytest.raises(UserError, match=r"use model\.num_codes=20"):
        run(tmp_path, num_codes=30, vocab_size=0)
    with pytest.raises(UserError, match=r"use model\.tokens_per_picture=4"):
        run(tmp_path, tokens_per_picture=9)
    with pytest.raises(UserError, match=r"use model\.max_position=16"):
        run(tmp_path, max_position=15)
    assert not tmp_path.joinpath("lease.json").exists()


def test_precision_is_bf16_only_where_asked_for_or_fast(monkeypatch):
    monkeypatch.setattr(loop, "bf16_is_fast", lambda device: False)
    assert compute_dtype("auto", torch.device("cpu")) == torch.float32
    assert compute_dtype("bf16", torch.device("cpu")) == torch.bfloat16
    monkeypatch.setattr(loop, "bf16_is_fast", lambda device: True)
    assert compute_dtype("auto", torch.device("cpu")) == torch.bfloat16
