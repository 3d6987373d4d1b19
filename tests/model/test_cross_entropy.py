"""The loss: equal to the cross-entropy of whole logits, forward and backward, in less memory and with less work."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import lvm.cross_entropy
from lvm.cross_entropy import nll_and_gradients, weighted_nll
from lvm.model import LVM, LVMConfig

TINY = LVMConfig(num_codes=20, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, max_position=64)


def models(config: LVMConfig = TINY) -> tuple[LVM, LVM]:
    """Two alike, with predictions far from uniform."""
    ours, plain = LVM(config, seed=3), LVM(config, seed=3)
    for model in (ours, plain):
        for parameter in model.parameters():
            parameter.data.mul_(8.0 if parameter.ndim > 1 else 1.0)
    return ours, plain


def tokens(*shape: int, below: int = 120) -> torch.Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(0))


def same_gradients(ours: LVM, plain: LVM) -> None:
    for (name, a), (_, b) in zip(ours.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("rows", [7, 10_000])
@pytest.mark.parametrize("tied", [False, True])
def test_nll_and_loss_are_the_cross_entropy_of_the_logits_forward_and_backward(monkeypatch, rows, tied):
    monkeypatch.setitem(lvm.cross_entropy.LOGITS_AT_ONCE, "cpu", rows * TINY.vocab_size)
    window, weights = tokens(2, 33), torch.rand(2, 32)
    by_nll, plain = models(replace(TINY, tie_embeddings=tied))
    by_loss, _ = models(replace(TINY, tie_embeddings=tied))
    expected = F.cross_entropy(plain(window[:, :-1]).transpose(1, 2), window[:, 1:], reduction="none")
    (expected * weights).sum().backward()

    nll = by_nll.nll(window)
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, expected, atol=1e-5, rtol=1e-5)
    (nll * weights).sum().backward()
    same_gradients(by_nll, plain)

    loss, reported = by_loss.loss(window, weights)
    assert not reported.requires_grad
    torch.testing.assert_close(reported, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, (expected * weights).sum(), atol=1e-4, rtol=1e-5)
    loss.backward()
    same_gradients(by_loss, plain)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 20),
    vocabulary=st.sampled_from([3, 127, 128, 150]),
    rows=st.integers(1, 25),
    z_loss=st.sampled_from([0.0, 0.01, 1.0]),
    factor=st.sampled_from([1.0, 1e-4]),
    seed=st.integers(0, 2**31),
)
def test_any_sizes_weights_and_pieces_give_the_loss_and_gradients_of_the_formula(
    n, vocabulary, rows, z_loss, factor, seed
):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator, requires_grad=True)
    head = torch.randn(vocabulary, 6, generator=generator, requires_grad=True)
    targets = torch.randint(vocabulary, (n,), generator=generator)
    weights = torch.rand(n, generator=generator) * (torch.rand(n, generator=generator) < 0.7)

    logits = x @ head.T
    nll = F.cross_entropy(logits, targets, reduction="none")
    expected = (weights * (nll + z_loss * logits.logsumexp(-1).square())).sum()
    gradients = torch.autograd.grad(expected * factor, (x, head))

    loss, reported = weighted_nll(x, head, targets, weights, z_loss, rows)
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(reported, nll, atol=1e-4, rtol=1e-4)
    for ours, theirs in zip(torch.autograd.grad(loss * factor, (x, head)), gradients):
        torch.testing.assert_close(ours, theirs, atol=1e-4 * factor, rtol=1e-4)


def test_the_reported_nll_knows_nothing_of_z_loss():
    plain, _ = models()
    with_z, _ = models(replace(TINY, z_loss=0.1))
    window, weights = tokens(2, 17), torch.ones(2, 16)
    (loss, nll), (loss_with_z, nll_with_z) = plain.loss(window, weights), with_z.loss(window, weights)
    assert torch.equal(nll, nll_with_z) and loss_with_z > loss


def test_without_gradients_the_loss_is_the_same_and_makes_none():
    model, _ = models()
    window, weights = tokens(2, 17), torch.ones(2, 16)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        loss, _ = model.loss(window, weights)
    with FlopCounterMode(display=False) as with_gradients:
        assert torch.equal(model.loss(window, weights)[0].detach(), loss)
    assert counted.get_total_flops() < with_gradients.get_total_flops()


def test_pieces_of_16_bits_are_summed_in_32():
    """The sum of 64 pieces' gradients is as exact as one product of all."""
    generator = torch.Generator().manual_seed(0)
    x, head = (torch.randn(n, 32, generator=generator).bfloat16() for n in (512, 128))
    targets, weights = torch.randint(128, (512,), generator=generator), torch.rand(512, generator=generator)

    def gradient(dtype: torch.dtype, rows: int) -> torch.Tensor:
        weight = head.to(dtype).clone().requires_grad_()
        weighted_nll(x.to(dtype), weight, targets, weights, 0.0, rows)[0].backward()
        return weight.grad.float()

    exact = gradient(torch.float32, 512)
    error = lambda rows: float((gradient(torch.bfloat16, rows) - exact).norm() / exact.norm())
    assert error(8) < 1.2 * error(512) < 0.02


def test_the_loss_is_an_operator_as_torch_wants_them():
    x, head = torch.randn(5, 6, requires_grad=True), torch.randn(7, 6, requires_grad=True)
    targets, weights = torch.randint(7, (5,)), torch.rand(5)
    for with_gradients in (True, False):
        given = (x, head) if with_gradients else (x.detach(), head.detach())
        torch.library.opcheck(nll_and_gradients, (*given, targets, weights, 0.1, 2, with_gradients, False))


class Watch(torch.utils._python_dispatch.TorchDispatchMode):
    """The most rows of anything as wide as the vocabulary."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.ndim == 2 and result.shape[1] in (120, 128):
            self.largest = max(self.largest, result.shape[0])
        return result


@pytest.mark.parametrize("way", ["nll", "loss"])
def test_more_logits_than_stated_never_exist(monkeypatch, way):
    monkeypatch.setitem(lvm.cross_entropy.LOGITS_AT_ONCE, "cpu", 8 * TINY.vocab_size)
    model, _ = models(replace(TINY, hidden_size=24, intermediate_size=40, head_size=0))
    window, between, rows = tokens(4, 65), lvm.cross_entropy._between_products, []
    monkeypatch.setattr(
        lvm.cross_entropy, "_between_products", lambda logits, *more: rows.append(len(logits)) or between(logits, *more)
    )
    with Watch() as watch:
        loss = model.nll(window).sum() if way == "nll" else model.loss(window, torch.ones(4, 64))[0]
        loss.backward()
    assert watch.largest <= 128  # 128: the padded head itself; 256 rows of logits would be the whole
    assert watch.largest > 0 if way == "nll" else set(rows) == {8} and sum(rows) == 256  # of an operator, from within


def test_the_loss_multiplies_by_the_head_three_times_and_nll_in_pieces_four_times(monkeypatch):
    monkeypatch.setitem(lvm.cross_entropy.LOGITS_AT_ONCE, "cpu", 8 * TINY.vocab_size)
    model, _ = models()
    window = tokens(2, 33)

    def flops(step) -> int:
        with FlopCounterMode(display=False) as counter:
            step().backward()
        return counter.get_total_flops()

    product = 2 * 64 * 128 * TINY.hidden_size
    saved = flops(lambda: model.nll(window).sum()) - flops(lambda: model.loss(window, torch.ones(2, 32))[0])
    assert saved == product
