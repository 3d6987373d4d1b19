"""Cached generation: equal to the whole forward pass, and an answer is its own prompt's and candidate's alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lvm.inference import cache, engine, generate
from lvm.inference.sampling import Sampling, gumbel, signed, truncate
from lvm.model import LVM, LVMConfig
from lvm.runtime import UserError
from lvm.runtime.hashing import hash64, uniform

PARITY = Path(__file__).parents[2].parent / "shared" / "parity" / "llama_hf"
TINY = LVMConfig(num_codes=50, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, max_position=64)


def random_model(config: LVMConfig = TINY, scale: float = 8.0) -> LVM:
    model = LVM(config, seed=3)
    for parameter in model.parameters():  # far from uniform predictions, so that a mistake shows
        parameter.data.mul_(scale if parameter.ndim > 1 else 1.0)
    return model


def prompts(*shape: int, seed: int = 0, num_codes: int = 50) -> torch.Tensor:
    return torch.randint(num_codes, shape, generator=torch.Generator().manual_seed(seed))


def with_bos(model: LVM, prompt: torch.Tensor) -> torch.Tensor:
    return torch.cat([prompt.new_full((len(prompt), 1), model.config.bos), prompt], dim=1)


@torch.no_grad()
def greedy_without_cache(model: LVM, prompt: torch.Tensor, num_tokens: int) -> torch.Tensor:
    fed = with_bos(model, prompt) if model.config.prompt_bos else prompt
    for _ in range(num_tokens):
        codes = model(fed)[:, -1:, : model.config.num_codes].argmax(-1)
        fed = torch.cat([fed, codes], dim=1)
    return fed[:, -num_tokens:]


@pytest.mark.parametrize(
    "change", [{}, {"num_kv_heads": 2}, {"num_kv_heads": 1, "tie_embeddings": True}, {"prompt_bos": False}]
)
def test_cached_greedy_tokens_equal_the_whole_forward(change):
    model, prompt = random_model(replace(TINY, **change)), prompts(40, 17)
    answer = generate(model, prompt, 9, temperature=0.0)
    assert torch.equal(answer.tokens[:, 0], greedy_without_cache(model, prompt, 9))
    assert answer.tokens.unique().numel() > 20


def test_log_probs_are_those_of_the_models_full_softmax_whatever_the_truncation():
    model, prompt = random_model(), prompts(3, 11)
    answer = generate(model, prompt, 6, num_candidates=4, temperature=0.7, top_k=5, top_p=0.8, seed=2)
    for candidate in range(4):
        tokens = answer.tokens[:, candidate]
        with torch.no_grad():
            logits = model(with_bos(model, torch.cat([prompt, tokens], dim=1)))[:, 11:-1]
        expected = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        torch.testing.assert_close(answer.log_probs[:, candidate], expected, atol=1e-4, rtol=1e-4)
    assert answer.tokens.dtype == torch.int64 and answer.log_probs.dtype == torch.float32
    assert answer.tokens.shape == answer.log_probs.shape == (3, 4, 6)


def test_an_answer_does_not_depend_on_the_batch_its_order_or_the_lengths_in_it():
    model = random_model()
    rows = [prompts(t, seed=t) for t in (5, 23, 1, 14, 9)] + [torch.empty(0, dtype=torch.int64)]
    together = generate(model, rows, 7, num_candidates=3, seed=1)
    turned = generate(model, rows[::-1], 7, num_candidates=3, seed=1)
    assert torch.equal(together.tokens, turned.tokens.flip(0))
    for number, row in enumerate(rows):
        alone = generate(model, row[None], 7, num_candidates=3, seed=1)
        assert torch.equal(alone.tokens[0], together.tokens[number])
        torch.testing.assert_close(alone.log_probs[0], together.log_probs[number], atol=1e-4, rtol=1e-4)


def test_small_batches_and_pieces_of_the_prefill_give_the_same_answers(monkeypatch):
    model, prompt = random_model(), prompts(12, 20)
    whole = generate(model, prompt, 5, num_candidates=2)
    monkeypatch.setattr(engine, "CPU_CACHE_BYTES", 100_000)
    monkeypatch.setattr(cache, "PREFILL_TOKENS", 50)
    assert torch.equal(generate(model, prompt, 5, num_candidates=2).tokens, whole.tokens)


def test_a_candidate_does_not_depend_on_the_number_of_candidates():
    model, prompt = random_model(), prompts(4, 8)
    eight = generate(model, prompt, 6, num_candidates=8, seed=5).tokens
    assert torch.equal(generate(model, prompt, 6, num_candidates=3, seed=5).tokens, eight[:, :3])
    assert len({tuple(row.tolist()) for row in eight[0]}) > 4


def test_a_longer_answer_begins_with_the_shorter_one_and_another_seed_gives_another():
    model, prompt = random_model(scale=2.0), prompts(4, 8)
    long = generate(model, prompt, 12, seed=5).tokens
    assert torch.equal(generate(model, prompt, 4, seed=5).tokens, long[..., :4])
    assert not torch.equal(generate(model, prompt, 12, seed=6).tokens, long)


def test_codes_are_drawn_in_proportion_to_their_probability_and_specials_never():
    model, prompt = random_model(scale=4.0), prompts(1, 6)
    drawn = generate(model, prompt, 1, num_candidates=8000, seed=3).tokens.flatten()
    with torch.no_grad():
        expected = model(with_bos(model, prompt))[0, -1, :50].softmax(-1)
    observed = torch.bincount(drawn, minlength=50) / 8000
    assert int(drawn.max()) < 50
    assert float((observed - expected).abs().sum()) < 0.08  # total variation of 8000 draws among 50 is about 0.05


def test_top_k_and_top_p_keep_the_most_likely_codes_alone():
    model, prompt = random_model(scale=3.0), prompts(1, 6)
    with torch.no_grad():
        shares = model(with_bos(model, prompt))[0, -1, :50].softmax(-1)
    order = shares.argsort(descending=True)
    three = generate(model, prompt, 1, num_candidates=500, top_k=3).tokens.unique()
    assert set(three.tolist()) == set(order[:3].tolist())
    fewest = int((shares[order].cumsum(0) < 0.5).sum()) + 1
    half = generate(model, prompt, 1, num_candidates=2000, top_p=0.5).tokens.unique()
    assert set(half.tolist()) <= set(order[:fewest].tolist()) and len(half) > 1
    assert generate(model, prompt, 1, num_candidates=50, top_p=1e-6).tokens.unique().tolist() == [int(order[0])]


def test_truncation_by_hand():
    scores = torch.tensor([0.5, 0.3, 0.1, 0.1]).log()
    kept = lambda **options: truncate(scores, Sampling(**options)).isfinite().tolist()
    assert kept(top_p=0.5) == [True, False, False, False]
    assert kept(top_p=0.55) == [True, True, False, False]
    assert kept(top_k=2) == [True, True, False, False]
    assert kept(top_k=3, top_p=1.0) == [True, True, True, True]  # a tie at the third place
    assert kept(top_k=99) == [True] * 4


def test_the_noise_is_standard_gumbel():
    noise = gumbel(torch.arange(400)[:, None], torch.full((400,), 3), 100)
    assert noise.shape == (400, 1, 100) and noise.isfinite().all()
    assert abs(float(noise.mean()) - 0.5772) < 0.02 and abs(float(noise.var()) - np.pi**2 / 6) < 0.05


def test_the_noise_is_a_function_of_counters_that_any_process_can_compute():
    keys = hash64(np.uint64(2**64 - 5), np.arange(6).reshape(2, 3))
    index = torch.tensor([0, 255])
    expected = -np.log(
        -np.log(np.maximum(uniform(keys[..., None], index.numpy()[:, None, None], np.arange(70)), 2.0**-54))
    )
    np.testing.assert_allclose(gumbel(signed(keys), index, 70).numpy(), expected, rtol=1e-6)


def test_bos_stands_before_the_prompt_only_where_the_config_says_so():
    model, prompt = random_model(), prompts(6, 9)
    plain = random_model(replace(TINY, prompt_bos=False))
    with torch.no_grad():
        expected = {True: model(with_bos(model, prompt)), False: model(prompt)}
    for asked in (model, plain):
        first = expected[asked.config.prompt_bos][:, -1].log_softmax(-1)
        answer = generate(asked, prompt, 1, temperature=0.0)
        torch.testing.assert_close(answer.log_probs[:, 0, 0], first[:, :50].max(-1).values, atol=1e-5, rtol=1e-5)


def test_the_last_code_is_never_fed_so_the_context_holds_one_more():
    model = random_model()
    assert generate(model, prompts(1, 60), 4).tokens.shape == (1, 1, 4)  # 1 + 60 + 3 = 64 fed positions
    with pytest.raises(UserError, match=r"61 tokens and 5 .* 65 positions.*context of 64"):
        generate(model, prompts(1, 60), 5)
    with pytest.raises(UserError, match="context of 64"):
        generate(model, [prompts(3), prompts(64)], 1)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (torch.tensor([[1, 50]]), {}, r"holds 50, which is no code; codes are 0\.\.49"),
        (torch.tensor([[1, -1]]), {}, "holds -1"),
        (torch.tensor([[1.0, 2.0]]), {}, "integer codes"),
        (torch.tensor([[1, 2]]), {"temperature": -1.0}, "temperature -1.0"),
        (torch.tensor([[1, 2]]), {"temperature": float("nan")}, "temperature nan"),
        (torch.tensor([[1, 2]]), {"temperature": 1e-42}, "temperature 1e-42 must be 0"),
        (torch.tensor([[1, 2]]), {"top_k": 0}, "top_k 0"),
        (torch.tensor([[1, 2]]), {"top_p": 1.5}, "top_p 1.5"),
        (torch.tensor([[1, 2]]), {"num_candidates": 0}, "num_candidates 0"),
        (torch.tensor([[1, 2]]), {"seed": -1}, "seed -1"),
    ],
)
def test_what_cannot_be_generated_is_refused_with_the_value(prompt, options, message):
    with pytest.raises(UserError, match=message):
        generate(random_model(), prompt, 2, **options)


def test_an_empty_prompt_needs_bos():
    empty = torch.empty(1, 0, dtype=torch.int64)
    assert generate(random_model(), empty, 2).tokens.shape == (1, 1, 2)
    with pytest.raises(UserError, match="without BOS"):
        generate(random_model(replace(TINY, prompt_bos=False)), empty, 2)


def test_a_bfloat16_model_answers_with_nearly_its_own_log_probs():
    model, prompt = random_model(scale=3.0).bfloat16(), prompts(2, 10)
    answer = generate(model, prompt, 4, num_candidates=2)
    with torch.no_grad():
        fed = with_bos(model, torch.cat([prompt, answer.tokens[:, 1]], dim=1))
        expected = model(fed)[:, 10:-1].float().log_softmax(-1).gather(-1, answer.tokens[:, 1, :, None])[..., 0]
    torch.testing.assert_close(answer.log_probs[:, 1], expected, atol=0.1, rtol=0.1)


def test_answers_can_be_trained_on():
    model, prompt = random_model(), prompts(2, 5)
    answer = generate(model, prompt, 3).tokens[:, 0]
    model.nll(torch.cat([prompt, answer], dim=1)).mean().backward()
    assert model.head.weight.grad is not None


@pytest.mark.skipif(not PARITY.is_dir(), reason="the parity folder is not on this machine")
def test_greedy_tokens_equal_the_reference_folder():
    model, expected = LVM.from_pretrained(PARITY), load_file(PARITY / "expected.safetensors")
    tokens = expected["greedy_tokens"]
    answer = generate(model, expected["greedy_prompt"].long(), tokens.shape[1], temperature=0.0)
    assert torch.equal(answer.tokens[:, 0].int(), tokens)
