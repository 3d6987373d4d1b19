"""GroupNorm by sums over channels is torch's GroupNorm, forward and backward."""

import pytest
import torch
from torch import nn

from lvm.runtime.machine import compile_problem
from tokenizer.norm import GroupNorm, group_affine


def make(width, groups, seed=0):
    norm = GroupNorm(groups, width, eps=1e-6)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(width, generator=generator))
        norm.bias.copy_(torch.randn(width, generator=generator))
    return norm


@pytest.mark.parametrize("width, groups, size", [(8, 2, (5, 7)), (6, 6, (3, 3)), (12, 1, (4, 4)), (32, 4, (16, 16))])
def test_it_is_torchs_group_norm(width, groups, size):
    norm = make(width, groups)
    x = torch.randn(3, width, *size, generator=torch.Generator().manual_seed(1)) * 2 + 0.7
    above = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    found = []
    for function in (norm.by_sums, lambda x: nn.GroupNorm.forward(norm, x)):
        given = x.clone().requires_grad_()
        norm.zero_grad()
        out = function(given)
        out.backward(above)
        found.append((out.detach(), given.grad, norm.weight.grad, norm.bias.grad))
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_flat_picture_is_no_division_by_zero():
    norm = make(4, 2)
    x = torch.full((1, 4, 8, 8), 3.0, requires_grad=True)
    out = norm.by_sums(x)
    out.square().sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(x.grad).all()
    torch.testing.assert_close(out[0, :, 0, 0], norm.bias.detach(), rtol=0.02, atol=0.02)


def test_the_operator_keeps_torchs_rules():
    sums, squares = torch.randn(2, 6), torch.rand(2, 6) * 50 + 20
    arguments = (sums.requires_grad_(), squares.requires_grad_(), torch.randn(6, requires_grad=True), torch.zeros(6))
    torch.library.opcheck(group_affine, (*arguments, 3, 10, 1e-6))


@pytest.mark.skipif(compile_problem() is not None, reason=f"no compiling here: {compile_problem()}")
def test_compiled_in_bfloat16_it_takes_the_sums():
    norm = make(16, 4)
    x = torch.randn(2, 16, 12, 12, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)
    x = x.to(memory_format=torch.channels_last)
    torch._dynamo.reset()
    seen: list[str] = []

    def backend(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    with torch.no_grad():
        out = torch.compile(norm, backend=backend)(x)
        expected = nn.GroupNorm.forward(norm, x.float())
    assert any("group_affine" in name for name in seen)
    torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.02)
    torch._dynamo.reset()
