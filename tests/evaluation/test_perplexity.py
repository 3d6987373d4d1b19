"""Perplexities against a direct computation from logits, and what the controls are made of."""

import numpy as np
import pytest
import torch
from evaluation_data import TOKENS, tiny_clips, tiny_model, tiny_prompts

from lvm.evaluation import perplexity as pp
from lvm.evaluation.tasks import TASKS, tasks_of
from lvm.runtime import UserError

DEPTH = next(task for task in TASKS if task.name == "depth")
COLOUR = next(task for task in TASKS if task.name == "colorization")


def test_nll_of_answers_equals_log_softmax_of_the_logits() -> None:
    model, prompts = tiny_model(), tiny_prompts()
    tokens = pp.task_tokens(prompts, DEPTH, 3)
    found = pp.answer_nll(model, tokens, TOKENS, "exact", tokens_at_once=70)  # two prompts a batch
    with torch.no_grad():
        for row, codes in enumerate(tokens):
            fed = torch.tensor([[model.config.bos, *codes]])
            logits = model(fed[:, :-1])[0]
            direct = torch.nn.functional.cross_entropy(logits, fed[0, 1:], reduction="none")[-TOKENS:]
            np.testing.assert_allclose(found[row], direct.numpy(), atol=1e-5)
    assert pp.perplexity(found) == pytest.approx(np.exp(found.mean()))
    assert pp.per_answer_perplexity(found) == pytest.approx(np.mean([np.exp(row.mean()) for row in found]))


def test_a_model_that_is_prompted_without_bos_is_fed_none() -> None:
    model, prompts = tiny_model(prompt_bos=False), tiny_prompts(2)
    tokens = pp.task_tokens(prompts, DEPTH, 1)
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens[:, :-1]))
    direct = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), torch.from_numpy(tokens[:, 1:]), reduction="none"
    )
    np.testing.assert_allclose(pp.answer_nll(model, tokens, TOKENS, "exact"), direct[:, -TOKENS:].numpy(), atol=1e-5)


def test_bfloat16_blocks_change_perplexity_by_less_than_a_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny_model(), pp.task_tokens(tiny_prompts(), DEPTH, 3)
    exact = pp.answer_nll(model, tokens, TOKENS, "exact")
    monkeypatch.setattr(pp, "bf16_is_fast", lambda device: True)
    fast = pp.answer_nll(model, tokens, TOKENS, "auto")
    assert (fast != exact).any()
    assert pp.perplexity(fast) == pytest.approx(pp.perplexity(exact), rel=0.01)


def test_every_number_of_pairs_ends_in_the_same_query_and_answer() -> None:
    prompts = tiny_prompts()
    full = pp.task_tokens(prompts, COLOUR, 5)
    for k in (0, 1, 3):
        np.testing.assert_array_equal(pp.task_tokens(prompts, COLOUR, k), full[:, -(2 * k + 2) * TOKENS :])
    np.testing.assert_array_equal(full[:, -2 * TOKENS : -TOKENS], prompts.codes["gray"][:, -1])
    np.testing.assert_array_equal(full[:, -TOKENS:], prompts.codes["image"][:, -1])


def test_wrong_pairs_are_of_another_task_before_the_same_query() -> None:
    prompts = tiny_prompts(40)
    wrong = pp.wrong_tasks(DEPTH, tasks_of(prompts.codes), len(prompts), seed=0)
    assert DEPTH not in wrong and len(set(wrong)) == len(tasks_of(prompts.codes)) - 1
    tokens = pp.task_tokens(prompts, DEPTH, 5, wrong)
    right = pp.task_tokens(prompts, DEPTH, 5)
    np.testing.assert_array_equal(tokens[:, -2 * TOKENS :], right[:, -2 * TOKENS :])
    for row, other in enumerate(wrong):
        np.testing.assert_array_equal(tokens[row, : -2 * TOKENS], pp.task_tokens(prompts, other, 5)[row, : -2 * TOKENS])


def test_the_wrong_task_of_a_target_depends_on_seed_and_target_alone() -> None:
    tasks = list(TASKS)
    few, many = (pp.wrong_tasks(DEPTH, tasks, n, seed=3) for n in (5, 50))
    assert few == many[:5] == pp.wrong_tasks(DEPTH, tasks[::-1], 5, seed=3)
    assert many != pp.wrong_tasks(DEPTH, tasks, 50, seed=4)


def test_a_model_that_copies_the_answer_before_gains_from_pairs_and_loses_by_wrong_ones() -> None:
    """The whole path on a model with a known skill: it predicts the token two pictures back."""

    class Copier(torch.nn.Module):
        config = tiny_model().config

        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(self.config.vocab_size, self.config.vocab_size, bias=False)
            self.head.weight.data.copy_(8 * torch.eye(self.config.vocab_size))

        def hidden(self, fed: torch.Tensor) -> torch.Tensor:
            back = 2 * TOKENS - 1
            known = torch.nn.functional.one_hot(fed[:, :-back], self.config.vocab_size).float()
            return torch.cat([torch.zeros(len(fed), back, self.config.vocab_size), known], dim=1)

    prompts = tiny_prompts()
    prompts.codes["depth"][:] = prompts.codes["depth"][:, :1]  # one answer a sentence
    nll = pp.task_nll(Copier(), prompts, DEPTH)  # type: ignore[arg-type]
    vocabulary = Copier.config.vocab_size
    assert pp.perplexity(nll["0"]) > vocabulary / 2
    sure = (np.exp(8) + vocabulary - 1) / np.exp(8)
    assert pp.perplexity(nll["1"]) == pp.perplexity(nll["5"]) == pytest.approx(sure, rel=1e-3)
    assert pp.perplexity(nll["wrong"]) > 5 * pp.perplexity(nll["5"])


def test_frames_before_the_same_target() -> None:
    model, clips = tiny_model(), tiny_clips()
    nll = pp.frame_nll(model, clips)
    assert list(nll) == ["1", "3", "7"]
    direct = pp.answer_nll(model, clips.codes[:, -4:].reshape(len(clips), -1), TOKENS)
    np.testing.assert_array_equal(nll["3"], direct)


def test_a_prompt_beyond_the_context_is_a_user_error() -> None:
    with pytest.raises(UserError, match="context of 16"):
        pp.answer_nll(tiny_model(max_position=16), pp.task_tokens(tiny_prompts(2), DEPTH, 5), TOKENS)
