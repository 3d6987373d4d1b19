"""Answers scored behind what their prompts share: the same as one pass for each."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_prompter import small_model, small_vqgan

from lvm.inference import generate, scoring
from lvm.inference.engine import answer_requests
from lvm.inference.generate import make_requests
from lvm.inference.sampling import GREEDY, answer_keys
from lvm.inference.scoring import score_answers
from lvm.runtime import UserError


@pytest.fixture(scope="module")
def model():
    return small_model(small_vqgan())


def one_by_one(model, sequences, answers):
    found = []
    for sequence, last in zip(sequences, answers):
        logits = model(torch.from_numpy(sequence[None, :-1]))[0, -last:].log_softmax(-1)
        found.append(-logits[torch.arange(last), torch.from_numpy(sequence[-last:])].detach().numpy())
    return found


def sequences_of(kind, rng):
    codes = lambda n: rng.integers(0, 32, n)
    if kind == "choices":  # a puzzle: one prompt, eight answers of its length
        prompt = codes(64)
        return [np.concatenate([prompt, codes(16)]) for _ in range(8)], [16] * 8
    if kind == "queries":  # behind the same pairs, of different lengths
        pairs = codes(48)
        return [np.concatenate([pairs, codes(3 + 5 * k)]) for k in range(5)], [2 + k for k in range(5)]
    return [codes(n) for n in (20, 33, 20, 60)], [4, 16, 4, 59]


@pytest.mark.parametrize("kind", ["choices", "queries", "nothing in common"])
@pytest.mark.parametrize("cache_bytes", [2**30, 20_000])
def test_scores_are_those_of_one_pass_each(model, monkeypatch, kind, cache_bytes):
    monkeypatch.setattr(scoring, "default_cache_bytes", lambda model: cache_bytes)
    sequences, answers = sequences_of(kind, np.random.default_rng(0))
    behind = []
    monkeypatch.setattr(
        scoring, "score_behind_prefix", lambda *a, real=scoring.score_behind_prefix: behind.append(a[3]) or real(*a)
    )
    found = score_answers(model, sequences, answers, tokens_at_once=50)
    assert [len(row) for row in found] == answers
    for ours, theirs in zip(found, one_by_one(model, sequences, answers)):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert (sum(len(group.members) for group in behind) == len(sequences)) == (kind != "nothing in common")


def test_too_long_a_sequence_is_refused(model):
    with pytest.raises(UserError, match="97 tokens exceeds the model's context of 96"):
        score_answers(model, [np.zeros(98, np.int64)], [16])


@pytest.mark.parametrize("change", [{}, {"num_kv_heads": 1}, {"prompt_bos": False}])
@pytest.mark.parametrize("shared", [0, 48])
def test_given_answers_are_scored_by_the_engine_that_answers(change, shared):
    """The prompt is fed once; likelihoods and greedy answers are those of separate passes."""
    model = small_model(small_vqgan(), **change)
    rng = np.random.default_rng(1)
    begin = rng.integers(0, 32, shared)
    prompts = [np.concatenate([begin, rng.integers(0, 32, n)]) for n in (16, 32, 32, 5)]
    given = [tuple(rng.integers(0, 32, (k, t))) for k, t in ((1, 16), (3, 16), (0, 0), (2, 1))]
    keys = answer_keys(prompts, 1, 0)
    requests = [replace(r, given=g) for r, g in zip(make_requests(model.config, prompts, keys, 16), given)]
    nll: dict[int, np.ndarray] = {}
    found = {number: tokens for number, tokens, _ in answer_requests(model, requests, GREEDY, nll=nll)}
    assert set(nll) == {0, 1, 3}
    for number, request in enumerate(requests):
        alone = generate(model, [torch.from_numpy(prompts[number])], 16, temperature=0.0).tokens[0]
        np.testing.assert_array_equal(found[number], alone.numpy())
        for answer, ours in zip(request.given, nll.get(number, ())):
            (theirs,) = one_by_one(model, [np.concatenate([request.tokens, answer])], [len(answer)])
            np.testing.assert_allclose(ours, theirs, atol=2e-5)
