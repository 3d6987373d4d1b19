"""Every implementation of attention computes the softmax written out here; one that cannot run says so in a line."""

import sys
from dataclasses import replace
from itertools import pairwise
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lvm.attention
import lvm.model
from lvm.attention import AttentionError, attend, attention_mask, choose_attention, document_bounds
from lvm.model import LVM, LVMConfig, document_positions

CPU, GPU = torch.device("cpu"), torch.device("cuda")
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
NEEDS_FLASH = pytest.mark.skipif(not lvm.attention.FLASH_INSTALLED, reason="flash-attn is not installed")
DOCUMENTS = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3], [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2]])


def plain_attention(q, k, v, documents=None):
    """softmax over what each token may see, a token and a head at a time; q [b h t k], k and v [b g t k]."""
    rows = []
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            group = h * k.shape[1] // q.shape[1]
            for i in range(q.shape[2]):
                seen = [j for j in range(i + 1) if documents is None or documents[b, i] == documents[b, j]]
                scores = (k[b, group, seen] @ q[b, h, i]) / q.shape[3] ** 0.5
                rows.append(scores.softmax(0) @ v[b, group, seen])
    return torch.stack(rows).view(q.shape)


def fake_flash() -> ModuleType:
    """The two documented functions of flash-attn, computed plainly; they take and give [.. t, h, k]."""
    module = ModuleType("flash_attn")

    def flash_attn_func(q, k, v, causal=False):
        assert causal and q.shape[:2] == k.shape[:2]
        return plain_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal=False):
        assert causal and cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32 and q.shape[0] == k.shape[0]
        assert cu_seqlens_q[0] == 0 and cu_seqlens_q[-1] == len(q) and torch.equal(cu_seqlens_q, cu_seqlens_k)
        assert max_seqlen_q >= cu_seqlens_q.diff().max() and max_seqlen_k >= cu_seqlens_k.diff().max()
        bounds = cu_seqlens_q.tolist()
        pieces = [flash_attn_func(*(x[None, a:b] for x in (q, k, v)), causal=True) for a, b in pairwise(bounds)]
        return torch.cat(pieces, dim=1)[0]

    module.flash_attn_func, module.flash_attn_varlen_func = flash_attn_func, flash_attn_varlen_func
    return module


def heads(groups: int, head_size: int = 8, t: int = 12, device: torch.device = CPU, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(0)
    draw = lambda h: torch.randn(2, h, t, head_size, generator=generator).to(device, dtype).requires_grad_()
    return draw(4), draw(groups), draw(groups)


def check(name, groups, documents, backward=True, tolerance=1e-5, **where):
    ours, plain = heads(groups, **where), heads(groups, where.get("head_size", 8))
    if not backward:
        ours = tuple(x.detach() for x in ours)
    on = None if documents is None else documents.to(ours[0].device)
    y = attend(*ours, attention_mask(name, (2, 12), ours[0].device, on))
    expected = plain_attention(*plain, documents)
    torch.testing.assert_close(y.cpu().float(), expected, atol=tolerance, rtol=tolerance)
    if backward:
        weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
        gradients = torch.autograd.grad((y.cpu().float() * weight).sum(), ours)
        for a, b in zip(gradients, torch.autograd.grad((expected * weight).sum(), plain)):
            torch.testing.assert_close(a.cpu().float(), b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["whole", "documents"])
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("name", ["sdpa", "blocks", "flash", "flex"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_each_implementation_is_the_plain_softmax(monkeypatch, name, groups, documents):
    monkeypatch.setattr(lvm.attention, "ROWS", 5)  # two blocks of twelve rows
    monkeypatch.setitem(sys.modules, "flash_attn", fake_flash())
    check(name, groups, documents, backward=name != "flex")


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["whole", "documents"])
@pytest.mark.parametrize("rows", [1, 4, 7, 256])
def test_blocks_of_any_length_are_the_plain_softmax(monkeypatch, rows, documents):
    monkeypatch.setattr(lvm.attention, "ROWS", rows)
    covered = [i for start, end in lvm.attention._blocks_of(12) for i in range(start, end)]
    assert covered == list(range(12))
    check("blocks", 2, documents)
    check("blocks", 2, documents, tolerance=0.05, dtype=torch.bfloat16)


@pytest.mark.parametrize("documents", [False, True])
def test_blocks_are_an_operator_as_torch_wants_them(documents):
    q, k, v = (torch.randn(2, 2, 6, 4).requires_grad_() for _ in range(3))
    seen = lvm.attention.document_mask(torch.tensor([[0] * 3 + [1] * 3] * 2)) if documents else None
    torch.library.opcheck(lvm.attention.blockwise, (q, k, v, seen))
    transposed = lambda: torch.randn(1, 6, 2, 4).transpose(1, 2).requires_grad_()  # heads as a layer makes them
    seen = seen[:1] if documents else None
    torch.library.opcheck(lvm.attention.blockwise, (transposed(), transposed(), transposed(), seen))


@NEEDS_GPU
@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["whole", "documents"])
@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("name", ["sdpa", "flex", pytest.param("flash", marks=NEEDS_FLASH)])
def test_each_implementation_on_a_gpu_is_the_plain_softmax(name, groups, documents):
    check(name, groups, documents, tolerance=0.05, head_size=16, device=GPU, dtype=torch.bfloat16)


@pytest.mark.parametrize("name", ["blocks", "flash", "flex"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_model_gives_the_same_logits_by_each(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "flash_attn", fake_flash())
    monkeypatch.setattr(lvm.model, "choose_attention", lambda name, *_: name)
    config = LVMConfig(num_codes=20, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, max_position=64)
    model = LVM(replace(config, num_kv_heads=2))
    fed = torch.randint(20, (2, 16), generator=torch.Generator().manual_seed(0))
    fed[0, 5] = fed[1, 9] = fed[1, 0] = config.bos
    with torch.no_grad():
        for more in ((), document_positions(fed, config.bos)):
            model.attention_implementation = "sdpa"
            expected = model(fed, *more)
            model.attention_implementation = name
            torch.testing.assert_close(model(fed, *more), expected)


@given(st.lists(st.lists(st.integers(1, 4), min_size=6, max_size=6), min_size=1, max_size=3))
def test_bounds_of_documents_are_where_a_row_or_a_document_starts(lengths):
    documents = torch.tensor([[n for n, length in enumerate(row) for _ in range(length)][:6] for row in lengths])
    flat = [(b, int(d)) for b, row in enumerate(documents) for d in row]
    starts = [i for i in range(len(flat)) if i == 0 or flat[i] != flat[i - 1]]
    assert document_bounds(documents).tolist() == [*starts, len(flat)]


@pytest.mark.parametrize(
    ("installed", "device", "dtype", "documents", "expected"),
    [
        (True, CPU, torch.bfloat16, False, "blocks"),
        (True, CPU, torch.bfloat16, True, "blocks"),
        (True, CPU, torch.float32, True, "sdpa"),
        (True, GPU, torch.bfloat16, False, "flash"),
        (True, GPU, torch.float32, False, "sdpa"),
        (False, GPU, torch.bfloat16, False, "sdpa"),
        (True, GPU, torch.bfloat16, True, "flex"),
        (False, GPU, torch.float32, True, "flex"),
    ],
)
def test_auto_takes_the_best_that_can_run(monkeypatch, installed, device, dtype, documents, expected):
    monkeypatch.setattr(lvm.attention, "FLASH_INSTALLED", installed)
    assert choose_attention("auto", device, dtype, documents) == expected


@pytest.mark.parametrize(
    ("name", "installed", "device", "dtype", "message"),
    [
        ("flash", False, GPU, torch.bfloat16, "needs the package flash-attn; install it or use attention=auto"),
        ("flash", True, CPU, torch.bfloat16, "this is bfloat16 on cpu; use attention=auto"),
        ("flash", True, GPU, torch.float32, "this is float32 on cuda; use attention=auto"),
        ("flex", True, CPU, torch.float32, "no backward pass on a CPU; use attention=auto"),
        ("blocks", True, GPU, torch.bfloat16, "is for a CPU, this is cuda; use attention=auto"),
    ],
)
def test_one_that_cannot_run_is_refused_with_the_remedy(monkeypatch, name, installed, device, dtype, message):
    monkeypatch.setattr(lvm.attention, "FLASH_INSTALLED", installed)
    with pytest.raises(AttentionError, match=message):
        choose_attention(name, device, dtype, has_documents=False)
