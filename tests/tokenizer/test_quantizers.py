"""Quantizers give the losses and gradients of their papers; what tends the codebook is the same on every rank."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tokenizer import TokenizerError
from tokenizer.quantizer import CodebookKeeper, QuantizerConfig, entropy_penalty, kmeans, nearest, quantize

KINDS = ("plain", "ema", "ibq")
FREE = QuantizerConfig(normalize=False)


def case(n=40, k=12, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(n, d, generator=generator).requires_grad_()
    return latents, torch.nn.Parameter(torch.randn(k, d, generator=generator))


def keeper_of(codebook, **options):
    return CodebookKeeper(QuantizerConfig(**options), codebook)


def generator():
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_is_fed_the_nearest_code(kind):
    latents, codebook = case()
    fed, codes, _ = quantize(latents, codebook, 0.25, QuantizerConfig(kind=kind, normalize=False))
    assert codes.dtype == torch.int64
    assert torch.equal(codes, torch.cdist(latents, codebook).argmin(1))
    assert torch.equal(codes, nearest(latents, codebook))
    torch.testing.assert_close(fed, codebook[codes])


@pytest.mark.parametrize("kind", ["plain", "ema"])
def test_the_gradient_of_the_decoder_passes_straight_through_to_the_encoder(kind):
    latents, codebook = case()
    fed, _, _ = quantize(latents, codebook, 0.25, QuantizerConfig(kind=kind, normalize=False))
    towards = torch.randn_like(fed)
    (gradient,) = torch.autograd.grad((fed * towards).sum(), latents)
    assert torch.equal(gradient, towards)


@pytest.mark.parametrize(("beta_on", "of_encoder", "of_codebook"), [("encoder", 0.25, 1.0), ("codebook", 1.0, 0.25)])
def test_beta_weighs_the_term_that_it_is_said_to_be_on(beta_on, of_encoder, of_codebook):
    latents, codebook = case()
    _, codes, loss = quantize(latents, codebook, 0.25, dataclasses.replace(FREE, beta_on=beta_on))
    to_latents, to_codebook = torch.autograd.grad(loss, (latents, codebook))
    error = (latents - codebook[codes]).detach()
    torch.testing.assert_close(loss, 1.25 * error.square().mean())
    torch.testing.assert_close(to_latents, of_encoder * 2 * error / error.numel())
    expected = torch.zeros_like(codebook).index_add_(0, codes, -of_codebook * 2 * error / error.numel())
    torch.testing.assert_close(to_codebook, expected)


def test_codes_of_length_one_are_nearest_where_the_cosine_is_largest():
    latents, codebook = case()
    for kind in KINDS:
        fed, codes, _ = quantize(latents, codebook, 0.25, QuantizerConfig(kind=kind))
        cosine = F.cosine_similarity(latents[:, None], codebook[None], dim=2)
        assert torch.equal(codes, cosine.argmax(1))
        torch.testing.assert_close(fed.norm(dim=1), torch.ones(len(fed)))
        assert torch.equal(codes, nearest(latents, F.normalize(codebook, dim=1)))  # as the files are read


def test_means_are_not_trained_by_gradient_and_only_the_encoder_is_pulled():
    latents, codebook = case()
    _, codes, loss = quantize(latents, codebook, 0.25, QuantizerConfig(kind="ema", normalize=False))
    torch.testing.assert_close(loss, 0.25 * (latents - codebook[codes]).square().mean())
    keeper_of(codebook, kind="ema")
    assert not codebook.requires_grad
    torch.autograd.grad(loss, latents)


def test_running_means_follow_the_papers_formula():
    _, codebook = case()
    keeper = keeper_of(codebook, kind="ema", normalize=False, ema_decay=0.9, restart_every_steps=0)
    counts, sums = np.ones(12), codebook.detach().double().numpy().copy()
    for step in range(1, 4):
        latents, _ = case(seed=step)
        codes = nearest(latents, codebook)
        for half in (slice(0, 15), slice(15, None)):  # two micro-batches of one step
            keeper.observe(codes[half], latents[half])
        keeper.tend(step, generator(), latents)
        for k in range(12):
            chosen = latents[codes == k].detach().double().numpy()
            counts[k] = 0.9 * counts[k] + 0.1 * len(chosen)
            sums[k] = 0.9 * sums[k] + 0.1 * chosen.sum(0)
        np.testing.assert_allclose(codebook.detach().numpy(), sums / counts[:, None], rtol=1e-4, atol=1e-6)


def test_a_code_that_is_not_chosen_for_ages_stays_where_it_is():
    _, codebook = case()
    keeper = keeper_of(codebook, kind="ema", normalize=False, ema_decay=0.1, restart_every_steps=0)
    before = codebook.detach().clone()
    for step in range(1, 200):
        keeper.observe(torch.zeros(1, dtype=torch.int64), before[:1])
        keeper.tend(step, generator(), before)
    torch.testing.assert_close(codebook.detach(), before)


def test_index_backpropagation_feeds_the_hard_code_and_gives_every_code_a_gradient():
    latents, codebook = case()
    fed, codes, loss = quantize(latents, codebook, 0.25, QuantizerConfig(kind="ibq", normalize=False))
    assert torch.equal(fed, codebook[codes])
    unused = torch.bincount(codes, minlength=12) == 0
    assert unused.any()
    towards = torch.randn_like(fed)
    to_latents, to_codebook = torch.autograd.grad((fed * towards).sum(), (latents, codebook), retain_graph=True)
    assert (to_codebook.abs().sum(1) > 0).all() and (to_latents.abs().sum(1) > 0).all()

    # The paper's form: a one-hot whose gradient is that of the softmax, times the codebook.
    scores = latents @ codebook.T - 0.5 * codebook.square().sum(1)
    soft = scores.softmax(1)
    one_hot = F.one_hot(codes, 12) + soft - soft.detach()
    expected = torch.autograd.grad(((one_hot @ codebook) * towards).sum(), (latents, codebook), retain_graph=True)
    torch.testing.assert_close((to_latents, to_codebook), expected)
    chosen = codebook[codes]
    double = (
        (one_hot @ codebook - latents).square().mean()
        + 0.25 * (chosen.detach() - latents).square().mean()
        + (chosen - latents.detach()).square().mean()
    )
    torch.testing.assert_close(loss, double)
    torch.testing.assert_close(
        torch.autograd.grad(loss, (latents, codebook)), torch.autograd.grad(double, (latents, codebook))
    )


def test_the_entropy_penalty_rewards_sure_choices_spread_over_all_codes():
    sure_and_even = 100 * torch.eye(8)
    sure_of_one = torch.zeros(8, 8)
    sure_of_one[:, 3] = 100.0
    torch.testing.assert_close(entropy_penalty(sure_and_even), torch.tensor(-np.log(8.0), dtype=torch.float32))
    torch.testing.assert_close(entropy_penalty(sure_of_one), torch.tensor(0.0))
    torch.testing.assert_close(entropy_penalty(torch.zeros(8, 8)), torch.tensor(0.0))
    latents, codebook = case()
    config = QuantizerConfig(kind="ibq", normalize=False)
    without = quantize(latents, codebook, 0.25, config)[2]
    weighted = dataclasses.replace(config, entropy_weight=0.5, entropy_temperature=2.0)
    scores = latents @ codebook.T - 0.5 * codebook.square().sum(1)
    torch.testing.assert_close(
        quantize(latents, codebook, 0.25, weighted)[2] - without, 0.5 * entropy_penalty(scores / 2.0)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_quantizers_are_one_graph_in_float32_under_autocast(kind):
    latents, codebook = case()
    config = QuantizerConfig(kind=kind, entropy_weight=0.1)
    compiled = torch.compile(quantize, fullgraph=True, backend="eager")
    with torch.autocast("cpu", torch.bfloat16):
        inside = quantize(latents, codebook, 0.25, config)
        traced = compiled(latents, codebook, 0.25, config)
    for a, b, c in zip(quantize(latents, codebook, 0.25, config), inside, traced):
        assert torch.equal(a, b) and a.dtype == b.dtype
        torch.testing.assert_close(a, c)


def test_kmeans_finds_separate_clusters():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = centres.repeat(40, 1) + 0.1 * torch.randn(120, 2, generator=generator())
    found = kmeans(points, 3, False, generator())
    assert torch.cdist(centres, found).min(1).values.max() < 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_revival_moves_the_dead_codes_and_no_other(kind):
    latents, codebook = case()
    keeper = keeper_of(codebook, kind=kind, normalize=False, restart_every_steps=4, ema_decay=0.0)
    codes = torch.tensor([0, 1, 1, 5])
    assert keeper.observe(codes, latents[:4].detach()).tolist() == [1, 2, 0, 0, 0, 1] + 6 * [0]
    assert not len(keeper.tend(3, generator(), latents.detach()))
    keeper.observe(codes, latents[:4].detach())
    before = codebook.detach().clone()
    moved = keeper.tend(4, generator(), latents.detach(), progress=0.79)
    assert moved.tolist() == [2, 3, 4, 6, 7, 8, 9, 10, 11]
    if kind != "ema":
        assert torch.equal(codebook[[0, 1, 5]], before[[0, 1, 5]])
    assert (codebook[moved][:, None] == latents).all(2).any(1).all()
    assert len(torch.unique(codebook[moved], dim=0)) == len(moved)
    assert not keeper.counts.any()


def test_codes_are_left_alone_towards_the_end_of_the_schedule():
    latents, codebook = case()
    keeper = keeper_of(codebook, normalize=False, restart_every_steps=1, restart_until=0.8)
    before = codebook.detach().clone()
    assert not len(keeper.tend(1, generator(), latents.detach(), progress=0.8))
    assert torch.equal(codebook, before)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_stay_on_the_sphere(kind):
    latents, codebook = case()
    keeper = keeper_of(codebook, kind=kind, restart_every_steps=1)
    keeper.start(latents.detach(), generator())
    keeper.observe(nearest(latents, codebook), latents.detach())
    with torch.no_grad():
        codebook.mul_(3.0)
    keeper.tend(1, generator(), latents.detach())
    torch.testing.assert_close(codebook.detach().norm(dim=1), torch.ones(12))


@pytest.mark.parametrize("kind", KINDS)
def test_a_keeper_with_the_state_of_another_goes_on_as_it_would(kind):
    def run(keeper, steps):
        for step in steps:
            latents, _ = case(seed=step)
            keeper.observe(nearest(latents, keeper.codebook), latents.detach())
            keeper.tend(step, generator(), latents.detach())

    options = {"kind": kind, "restart_every_steps": 4}
    whole = keeper_of(case()[1], **options)
    run(whole, range(1, 7))
    first = keeper_of(case()[1], **options)
    run(first, range(1, 4))
    second = keeper_of(torch.nn.Parameter(first.codebook.detach().clone()), **options)
    second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    run(second, range(4, 7))
    assert torch.equal(whole.codebook, second.codebook)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])


TWO_RANKS = """
import sys, torch, torch.distributed as dist
from lvm.runtime.errors import end_rank
from tokenizer.quantizer import CodebookKeeper, QuantizerConfig, nearest
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
results = {}
for kind in ("plain", "ema", "ibq"):
    codebook = torch.nn.Parameter(torch.randn(12, 5, generator=torch.Generator().manual_seed(0)))
    keeper = CodebookKeeper(QuantizerConfig(kind=kind, restart_every_steps=2), codebook)
    own = torch.Generator().manual_seed(10 + rank)
    keeper.start(torch.randn(40, 5, generator=own), torch.Generator().manual_seed(3))
    local, used, moved = torch.zeros(12, dtype=torch.int64), torch.zeros(12, dtype=torch.int64), []
    for step in range(1, 5):
        latents = torch.randn(7 + 2 * rank, 5, generator=own) + rank
        codes = nearest(torch.nn.functional.normalize(latents, dim=1), codebook)
        local += torch.bincount(codes, minlength=12)
        used += keeper.observe(codes, latents)
        moved += keeper.tend(step, torch.Generator().manual_seed(step), latents).tolist()
    results[kind] = {"codebook": codebook.detach(), "local": local, "used": used, "moved": moved, **keeper.state_dict()}
torch.save(results, f"{folder}/{rank}.pt")
dist.destroy_process_group()
end_rank()
"""


def test_two_ranks_sum_their_counts_and_keep_codebooks_equal_to_the_bit(tmp_path):
    ranks = [
        subprocess.Popen([sys.executable, "-c", TWO_RANKS, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=240)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    zero, one = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for kind in KINDS:
        a, b = zero[kind], one[kind]
        assert torch.equal(a["used"], a["local"] + b["local"]) and not torch.equal(a["local"], b["local"])
        assert a["moved"] and a["moved"] == b["moved"]
        for name in a.keys() - {"local", "moved"}:
            assert torch.equal(a[name], b[name]), (kind, name)


def test_settings_that_cannot_work_are_one_clear_line():
    with pytest.raises(TokenizerError, match=r"ema_decay is 1\.0; it must be in \[0, 1\)"):
        QuantizerConfig(ema_decay=1.0)
    with pytest.raises(TokenizerError, match="temperature is 0; it must be above 0"):
        QuantizerConfig(temperature=0)
