"""The engine: shared beginnings kept once, cells kept full, and never a byte of keys read or stored twice."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from lvm.inference import cache, generate, parts
from lvm.inference.cache import Cache, bytes_per_token
from lvm.inference.engine import Batch, Request, Statistics, answer_requests
from lvm.inference.parts import attend_part, attend_whole, join
from lvm.inference.sampling import Sampling
from lvm.inference.sharing import common_length, group_by_prefix
from lvm.model import LVM, LVMConfig, rope_angles

TINY = LVMConfig(num_codes=50, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, max_position=400)
SAMPLED = Sampling(temperature=0.9, top_k=20)


def random_model(config: LVMConfig = TINY, scale: float = 8.0) -> LVM:
    model = LVM(config, seed=3)
    for parameter in model.parameters():
        parameter.data.mul_(scale if parameter.ndim > 1 else 1.0)
    return model


def codes(t: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 50, t)


def request(*parts: np.ndarray, num_tokens: int = 6, candidates: int = 2, seed: int = 0) -> Request:
    keys = np.arange(candidates, dtype=np.uint64) + np.uint64(1000 * seed)
    return Request(np.concatenate([[50], *parts]), keys, num_tokens)


def answers(model: LVM, requests: list[Request], sampling: Sampling = SAMPLED, **options) -> list[np.ndarray]:
    found = {
        number: (tokens, log_probs)
        for number, tokens, log_probs in answer_requests(model, requests, sampling, **options)
    }
    assert sorted(found) == list(range(len(requests)))
    return [found[number] for number in range(len(requests))]


def assert_as_one_by_one(model: LVM, requests: list[Request], **options) -> None:
    for asked, (tokens, log_probs) in zip(requests, answers(model, requests, **options)):
        [(alone, scores)] = answers(model, [asked])
        assert tokens.shape == (len(asked.keys), asked.num_tokens)
        assert np.array_equal(tokens, alone)
        np.testing.assert_allclose(log_probs, scores, atol=2e-4)


# Parts.


@pytest.mark.parametrize("kernel", [attend_part, attend_whole])
@pytest.mark.parametrize("masked", [False, True])
def test_parts_joined_are_attention_over_all_keys(kernel, masked):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 4, t, 8, generator=generator) for t in (5, 30, 30))
    seen = (torch.arange(30) % 12 < torch.tensor([12, 7, 1])[:, None])[:, None, None] | torch.tensor(not masked)
    parts = [kernel(q, k[:, :, a:b], v[:, :, a:b], seen[..., a:b] if masked else None) for a, b in ((0, 12), (12, 30))]
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    torch.testing.assert_close(join(parts), expected, atol=1e-5, rtol=1e-5)


def test_a_causal_part_and_scores_in_pieces(monkeypatch):
    q, k, v = torch.randn(3, 2, 4, 9, 8).unbind()
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    monkeypatch.setattr("lvm.inference.parts.SCORES_AT_ONCE", 2 * 4 * 9 * 2)
    for kernel in (attend_part, attend_whole):
        torch.testing.assert_close(kernel(q, k, v, causal=True).y, expected, atol=1e-5, rtol=1e-5)


# Sharing.


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), max_size=12), st.integers(1, 4))
def test_groups_hold_every_prompt_once_and_what_they_share(prompts, least):
    arrays = [np.array(prompt, np.int64) for prompt in prompts]
    groups = group_by_prefix(arrays, least)
    assert sorted(member for group in groups for member in group.members) == list(range(len(prompts)))
    for group in groups:
        first = arrays[group.members[0]]
        assert all(common_length(first, arrays[member]) >= group.shared for member in group.members)
        assert all(group.shared < len(arrays[member]) for member in group.members)
        assert group.shared >= least if len(group.members) > 1 else group.shared == 0


def test_queries_behind_the_same_pairs_are_one_group_and_equal_prompts_keep_a_token():
    pairs, others = codes(100, 1), codes(100, 2)
    prompts = [np.concatenate([p, codes(10, s)]) for s, p in enumerate([pairs, others, pairs, others, pairs])]
    groups = group_by_prefix([*prompts, codes(60, 9), prompts[0]])
    assert sorted((group.shared >= 100, sorted(group.members)) for group in groups) == [
        (False, [5]),
        (True, [0, 2, 4, 6]),
        (True, [1, 3]),
    ]
    assert group_by_prefix([pairs, pairs.copy()])[0].shared == 99


# The engine.


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("candidates", [1, 3])
def test_queries_that_share_their_pairs_are_answered_as_one_by_one(kv_heads, candidates):
    model, pairs = random_model(replace(TINY, num_kv_heads=kv_heads)), [codes(70, 90), codes(90, 91)]
    requests = [
        request(pairs[seed % 2], codes(7 + seed % 3, seed), candidates=candidates, seed=seed) for seed in range(11)
    ]
    statistics = Statistics()
    assert_as_one_by_one(model, requests, statistics=statistics)
    fed = sum(len(asked.tokens) for asked in requests)
    assert statistics.tokens_fed == fed - 71 * 5 - 91 * 4  # each pair's tokens and BOS once, not 6 and 5 times


def test_a_group_larger_than_the_cache_keeps_its_prefix_while_queries_pass_through():
    model, pairs = random_model(), codes(100, 5)
    requests = [request(pairs, codes(20, seed), num_tokens=5, seed=seed) for seed in range(9)]
    each = bytes_per_token(TINY, 4)
    statistics = Statistics()
    room = each * (101 + 2 * (20 + 2 * 4))  # the pairs and two queries with two candidates
    assert_as_one_by_one(model, requests, cache_bytes=room, statistics=statistics)
    assert statistics.cache_bytes == room and statistics.tokens_fed == 101 + 9 * 20


def test_cells_are_kept_full_over_a_list_of_different_lengths():
    model, generator = random_model(), np.random.default_rng(4)
    requests = [
        request(codes(int(generator.integers(20, 38)), seed), num_tokens=int(generator.integers(5, 25)), seed=seed)
        for seed in range(60)
    ]
    statistics = Statistics()
    assert_as_one_by_one(model, requests, cache_bytes=bytes_per_token(TINY, 4) * 8 * 86, statistics=statistics)
    assert statistics.cells_at_work / statistics.cells_stepped > 0.9
    assert statistics.steps < sum(asked.num_tokens - 1 for asked in requests) / 6  # eight cells or so


def test_many_groups_side_by_side():
    model = random_model()
    requests = [
        request(
            codes(40 + group, 100 + group), codes(5, group * 10 + row), num_tokens=4 + group % 2, seed=group * 10 + row
        )
        for group in range(6)
        for row in range(3)
    ]
    assert_as_one_by_one(model, requests)
    assert_as_one_by_one(model, requests, cache_bytes=1)  # a cell at a time


def test_one_cache_lives_at_a_time(monkeypatch):
    """Prompts of three lengths, each with a cache of its own."""
    alive: weakref.WeakSet[Cache] = weakref.WeakSet()
    most = []
    made = Cache.__init__

    def counted(self, *arguments, **options):
        made(self, *arguments, **options)
        alive.add(self)
        most.append(sum(kept.nbytes for kept in alive))

    monkeypatch.setattr(Cache, "__init__", counted)
    requests = [request(codes(t, t + n), seed=n) for t in (20, 80, 300) for n in range(9)]
    room = bytes_per_token(TINY, 4) * 700
    assert_as_one_by_one(random_model(), requests, cache_bytes=room)
    assert len(most) >= 3 and max(most) <= room


def test_a_long_prompt_does_not_pad_the_short_ones_it_shares_a_little_with():
    model, begin = random_model(), codes(40, 3)
    requests = [request(begin, codes(340, 1))] + [request(begin, codes(10, n), seed=n) for n in range(2, 20)]
    statistics = Statistics()
    assert_as_one_by_one(model, requests, statistics=statistics)
    assert statistics.padding_fed == 0 and statistics.cache_bytes < 2 * bytes_per_token(TINY, 4) * 400
    mixed = [request(codes(100, 5), codes(5 + 9 * (n % 9), n), seed=n) for n in range(18)]
    assert_as_one_by_one(model, mixed, statistics=(statistics := Statistics()))
    assert statistics.padding_fed < statistics.tokens_fed / 2


def test_an_answer_of_one_code_needs_no_step():
    statistics = Statistics()
    answers(random_model(), [request(codes(10), num_tokens=1)], statistics=statistics)
    assert statistics.steps == 0


@pytest.mark.parametrize("shared", [0, 60])
def test_the_step_that_a_gpu_captures_gives_the_same_answers(monkeypatch, shared):
    """Masks over the whole cache instead of what is there; on the CPU without the capture itself."""
    model = random_model()
    requests = [
        request(codes(shared, 77), codes(5 + seed, seed), num_tokens=3 + seed % 5, candidates=3, seed=seed)
        for seed in range(8)
    ]
    expected = answers(model, requests)
    made = Cache.__init__

    def fixed(self, *arguments, **options):
        made(self, *arguments, **options)
        self.fixed = True

    monkeypatch.setattr(Cache, "__init__", fixed)
    monkeypatch.setattr(Batch, "_step", Batch._draw_next)
    monkeypatch.setattr(cache, "attend_part", attend_whole)
    monkeypatch.setattr(parts, "attend_part", attend_whole)
    for cache_bytes in (None, bytes_per_token(TINY, 4) * 200):
        for (tokens, scores), (before, scores_before) in zip(
            answers(model, requests, cache_bytes=cache_bytes), expected
        ):
            assert np.array_equal(tokens, before)
            np.testing.assert_allclose(scores, scores_before, atol=2e-4)


def test_compiled_layers_give_the_same_answers():
    model = random_model()
    requests = [request(codes(40, 7), codes(5 + seed, seed), seed=seed) for seed in range(3)]
    for (tokens, _), (expected, _) in zip(answers(model, requests, compile=True), answers(model, requests)):
        assert np.array_equal(tokens, expected)


def test_products_cast_once_answer_as_those_that_autocast_casts():
    model, x = random_model(), torch.randn(2, 3, TINY.hidden_size)
    cos, sin = rope_angles(torch.arange(3)[None], TINY.head_size, TINY.rope_theta)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for block in model.layers:
            cast = cache.with_cast_products(block, torch.bfloat16)
            for a, b in zip(cache.before_attention(block, x, cos, sin), cache.before_attention(cast, x, cos, sin)):
                assert torch.equal(a, b)
            y = torch.randn(2, 3, TINY.num_heads * TINY.head_size)
            assert torch.equal(cache.after_attention(block, x, y), cache.after_attention(cast, x, y))
            assert cast.mlp.up.weight.dtype == torch.bfloat16 and cast.mlp_norm.weight.dtype == torch.float32
    assert model.layers[0].mlp.up.weight.dtype == torch.float32


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_products_of_onednn_answer_as_the_whole_forward_pass(monkeypatch):
    """Where MKL is slow large weights are multiplied by oneDNN, on the weights that are there."""
    wide = replace(
        TINY, hidden_size=512, intermediate_size=640, num_heads=8, num_kv_heads=8, head_size=64, attention_bias=True
    )
    model, prompt = random_model(wide, scale=2.0), torch.from_numpy(codes(40))
    for bias in (block.attention.q.bias for block in model.layers):
        torch.nn.init.normal_(bias)
    taken: list[tuple[int, ...]] = []
    by_onednn = torch.ops.mkldnn._linear_pointwise

    def counted(x, weight, *rest):
        taken.append(tuple(weight.shape))
        return by_onednn(x, weight, *rest)

    monkeypatch.setattr(cache, "mkl_is_slow", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counted)
    found = generate(model, prompt[None], 8, num_candidates=4, seed=1)
    assert set(taken) == {(512, 512), (640, 512), (512, 640)}  # never the head of 54 codes
    monkeypatch.setattr(cache, "mkl_is_slow", lambda: False)
    plain = generate(model, prompt[None], 8, num_candidates=4, seed=1)
    assert torch.equal(found.tokens, plain.tokens)
    torch.testing.assert_close(found.log_probs, plain.log_probs, rtol=1e-4, atol=1e-4)
    block = cache.with_fast_products(model.layers[0])
    assert block.mlp.up.weight is model.layers[0].mlp.up.weight


class BytesRead(TorchDispatchMode):
    """Bytes of a cache's tensors that operations take as inputs; what they write in place is apart."""

    def __init__(self, *tensors: torch.Tensor):
        super().__init__()
        self.places = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        self.bytes, self.operations = 0, set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        out = function(*arguments, **(keywords or {}))
        if not any(
            map(self._kept, out if isinstance(out, (tuple, list)) else [out])
        ):  # else views, or written in place
            for tensor in filter(self._kept, arguments):
                self.bytes += tensor.nbytes
                self.operations.add(str(function))
        return out

    def _kept(self, value) -> bool:
        return isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() in self.places


@pytest.mark.parametrize("prompt", [30, 100, 300])
@pytest.mark.parametrize("candidates", [1, 4, 16])
@pytest.mark.parametrize("rows", [1, 5])
def test_the_prompt_is_stored_and_read_once_for_all_candidates_and_queries(prompt, candidates, rows):
    model, each = random_model(), bytes_per_token(TINY, 4)
    prefix = prompt - 10 if rows > 1 else 0
    suffix, answer = prompt - prefix, 8
    kept = Cache(model, 1, rows, candidates, prefix, suffix, answer)
    assert kept.nbytes == each * (prefix + rows * (suffix + candidates * answer))
    with torch.inference_mode():
        kept.feed_prefix(0, torch.from_numpy(codes(prefix)))
        kept.feed_rows(
            0, list(range(rows)), torch.from_numpy(codes(rows * suffix).reshape(rows, suffix)), [suffix] * rows
        )
        for fed in range(1, answer + 1):
            with BytesRead(kept.prefix, kept.suffix, kept.answer) as read:
                kept.step(torch.zeros(rows, candidates, dtype=torch.int64))
            assert read.bytes == each * (prefix + rows * (suffix + candidates * fed))
            assert len(read.operations) == 1  # the attention: no copy on the way to it


def test_a_thousand_prompts_have_the_answers_of_the_whole_forward_pass():
    model = random_model(scale=6.0)
    generator = np.random.default_rng(8)
    rows = [torch.from_numpy(codes(int(t), seed)) for seed, t in enumerate(generator.integers(1, 60, 1000))]
    found = generate(model, rows, 8, temperature=0.0)
    ties = 0
    for length in {len(row) for row in rows}:
        numbers = [number for number, row in enumerate(rows) if len(row) == length]
        answer = found.tokens[numbers, 0]
        fed = torch.cat([torch.stack([rows[number] for number in numbers]), answer], dim=1)
        fed = torch.cat([fed.new_full((len(fed), 1), 50), fed], dim=1)
        with torch.no_grad():
            logits = model(fed)[:, length:-1, :50]
        best = logits.max(-1)
        gap = best.values - logits.gather(-1, answer[..., None])[..., 0]
        assert float(gap.max()) < 1e-4  # where codes differ the logits tie
        ties += int((best.indices != answer).sum())
    assert ties <= 2
