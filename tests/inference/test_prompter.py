"""Pictures in, pictures out: the Prompter's window and its checks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_prompter import SIZE, TOKENS, pictures, small_model, small_vqgan

from lvm import Prompter
from lvm.inference import generate
from lvm.inference.cache import Cache
from lvm.inference.rollout import Prompt, move_window
from lvm.inference.sampling import GREEDY, Sampling, answer_keys
from lvm.inference.sliding import continue_on_old_keys
from lvm.runtime import UserError


@pytest.fixture(scope="module")
def vq():
    return small_vqgan()


@pytest.fixture(scope="module")
def prompter(vq):
    return Prompter(small_model(vq), vq)


def test_an_analogy_is_the_continuation_of_its_codes_decoded(prompter):
    shown = pictures(5)
    answer = prompter.analogy([(shown[0], shown[1]), (shown[2], shown[3])], shown[4], num_candidates=3, seed=4)
    prompt = torch.from_numpy(prompter.encode(shown)).reshape(1, -1)
    expected = generate(prompter.model, prompt, TOKENS, num_candidates=3, seed=4)
    assert np.array_equal(answer.tokens[:, 0], expected.tokens[0].numpy())
    np.testing.assert_allclose(answer.scores, expected.log_probs[0].mean(-1).numpy(), rtol=1e-4)
    assert answer.pictures.shape == (3, 1, SIZE, SIZE, 3) and answer.pictures.dtype == np.uint8
    assert np.array_equal(answer.pictures[1], prompter.decode(answer.tokens[1]))


def test_a_sequence_within_the_context_is_one_generation(prompter):
    shown = pictures(3)
    answer = prompter.sequence(list(shown), num_pictures=3, num_candidates=2, seed=1)
    prompt = torch.from_numpy(prompter.encode(shown)).reshape(1, -1)
    expected = generate(prompter.model, prompt, 3 * TOKENS, num_candidates=2, seed=1)
    assert np.array_equal(answer.tokens.reshape(2, -1), expected.tokens[0].numpy())


def test_beyond_the_context_the_window_moves_frame_by_frame_and_keeps_bos(prompter):
    assert prompter.pictures_per_window == 6
    answer = prompter.sequence(pictures(4), num_pictures=5, temperature=0.0)
    sentence = np.concatenate([prompter.encode(pictures(4)), answer.tokens[0]])
    for number in range(6, 9):  # what is drawn after each move sees BOS and the five pictures before it alone
        before = torch.from_numpy(sentence[number - 5 : number]).reshape(1, -1)
        expected = generate(prompter.model, before, TOKENS, temperature=0.0).tokens[0, 0].numpy()
        assert np.array_equal(sentence[number], expected)


def test_candidates_of_a_long_rollout_do_not_depend_on_their_number(prompter):
    many = prompter.sequence(pictures(4), num_pictures=4, num_candidates=3, seed=2).tokens
    few = prompter.sequence(pictures(4), num_pictures=4, num_candidates=2, seed=2).tokens
    assert np.array_equal(few, many[:2])
    assert len({candidate[-1].tobytes() for candidate in many}) == 3


def test_candidates_that_came_to_the_same_picture_part_again(vq):
    narrow = Prompter(small_model(vq, max_position=32), vq)  # two pictures: each answer follows one picture alone
    model = narrow.model
    for parameter in model.parameters():
        parameter.data.mul_(0.0 if parameter.ndim > 1 else 1.0)  # uniform: only the noise decides
    [(_, found)] = narrow.continuations([Prompt(np.zeros((1, TOKENS), np.int64), 3)], 4, Sampling(), seed=0)
    codes = found.tokens
    assert len({row.tobytes() for row in codes.reshape(12, TOKENS)}) == 12


def continuation(prompter: Prompter, prompt: Prompt, *arguments, **options):
    [(number, found)] = prompter.continuations([prompt], *arguments, **options)
    assert number == 0
    return found


def test_the_reference_moves_its_window_picture_by_picture(prompter):
    codes = np.random.default_rng(3).integers(0, 32, (7, TOKENS))  # three pairs and a query; five pictures fit
    whole = continuation(prompter, Prompt(codes, tuple_size=2))
    single = continuation(prompter, Prompt(codes, tuple_size=2), window="frames")
    expect = lambda kept: (
        generate(prompter.model, torch.from_numpy(kept.reshape(1, -1)), TOKENS, temperature=0.0).tokens
    )
    assert np.array_equal(whole.tokens[:, 0], expect(codes[2:])[0])
    assert np.array_equal(single.tokens[:, 0], expect(codes[2:])[0])
    six = continuation(prompter, Prompt(codes[:6], tuple_size=2), window="frames")
    assert np.array_equal(six.tokens[:, 0], expect(codes[1:6])[0])
    assert np.array_equal(continuation(prompter, Prompt(codes[:6], tuple_size=2)).tokens[:, 0], expect(codes[2:6])[0])


def test_old_keys_serve_on_exactly_where_they_saw_nothing_that_left(vq):
    """Of one layer keys and values depend on their own token alone: reusing them is then feeding anew."""
    shallow = Prompter(small_model(vq, num_layers=1), vq)
    prompt = Prompt(np.random.default_rng(5).integers(0, 32, (8, TOKENS)), num_pictures=9, tuple_size=2)
    for candidates, sampling in ((1, GREEDY), (3, Sampling(temperature=0.8))):
        anew = continuation(shallow, prompt, candidates, sampling, seed=4)
        reused = continuation(shallow, prompt, candidates, sampling, seed=4, window="reuse")
        assert np.array_equal(reused.tokens, anew.tokens) and anew.tokens.shape == (candidates, 9, TOKENS)
        np.testing.assert_allclose(reused.log_probs, anew.log_probs, atol=2e-3)


@pytest.mark.parametrize(
    ("window", "shown", "size", "wanted"),
    [(6, 1, 1, 9), (2, 1, 1, 3), (4, 3, 2, 6), (6, 1, 2, 8), (6, 1, 1, 6), (4, 9, 2, 5)],
)
def test_the_window_may_leave_behind_what_was_just_drawn(vq, window, shown, size, wanted):
    shallow = Prompter(small_model(vq, num_layers=1, max_position=window * TOKENS), vq)
    prompt = Prompt(np.random.default_rng(5).integers(0, 32, (shown, TOKENS)), num_pictures=wanted, tuple_size=size)
    anew = continuation(shallow, prompt, 2, Sampling(), seed=4)
    assert np.array_equal(continuation(shallow, prompt, 2, Sampling(), seed=4, window="reuse").tokens, anew.tokens)
    keys = answer_keys([prompt.codes.reshape(-1)], 2, 4)[0]
    one_by_one = continue_on_old_keys(shallow.model, prompt, window, keys, Sampling(), cache_bytes=1)
    assert np.array_equal(one_by_one.tokens, anew.tokens)


def test_old_keys_of_a_deep_model_remember_what_left(prompter):
    prompt = Prompt(np.random.default_rng(5).integers(0, 32, (5, TOKENS)), num_pictures=4)
    anew, reused = continuation(prompter, prompt), continuation(prompter, prompt, window="reuse")
    assert np.array_equal(reused.tokens[0, 0], anew.tokens[0, 0])  # nothing had left yet
    difference = np.abs(reused.log_probs - anew.log_probs).max((0, 2))
    assert difference[0] < 2e-3 < difference[1]


def test_a_rollout_of_any_length_needs_no_more_memory(prompter, monkeypatch):
    sizes = []
    made = Cache.__init__
    monkeypatch.setattr(Cache, "__init__", lambda self, *a, **o: made(self, *a, **o) or sizes.append(self.nbytes))
    prompt = Prompt(np.random.default_rng(6).integers(0, 32, (4, TOKENS)))
    for window in ("tuples", "reuse"):
        most = []
        for number in (8, 24):
            sizes.clear()
            assert continuation(prompter, replace(prompt, num_pictures=number), window=window).tokens.shape[1] == number
            most.append(max(sizes))
        assert most[0] == most[1]


def test_many_prompts_are_answered_as_each_alone(prompter):
    generator = np.random.default_rng(9)
    prompts = [
        Prompt(generator.integers(0, 32, (int(n), TOKENS)), num_pictures=int(more), tuple_size=int(size))
        for n, more, size in zip(
            generator.integers(1, 9, 12), generator.integers(1, 7, 12), generator.integers(1, 4, 12)
        )
    ]
    together = dict(prompter.continuations(prompts, 2, Sampling(temperature=0.9), seed=3))
    assert sorted(together) == list(range(12))
    for number, prompt in enumerate(prompts):
        alone = continuation(prompter, prompt, 2, Sampling(temperature=0.9), seed=3)
        assert np.array_equal(alone.tokens, together[number].tokens)


def test_an_unknown_window_and_tuples_larger_than_it_are_refused(prompter):
    prompt = Prompt(np.zeros((2, TOKENS), np.int64))
    with pytest.raises(UserError, match="window 'pairs' is unknown; use one of tuples, frames, reuse"):
        continuation(prompter, prompt, window="pairs")
    with pytest.raises(UserError, match="tuples of 6 pictures do not fit a window of 6"):
        continuation(prompter, replace(prompt, tuple_size=6))


def test_of_too_many_pairs_whole_pairs_leave_the_window(prompter):
    shown = pictures(9)
    pairs = list(zip(shown[:-1:2], shown[1:-1:2]))
    long = prompter.analogy(pairs, shown[-1], temperature=0.0)
    short = prompter.analogy(pairs[2:], shown[-1], temperature=0.0)
    assert np.array_equal(long.tokens, short.tokens)
    assert (long.left_out, short.left_out) == (4, 0) and len(long.prompt) == 9


def test_candidates_that_would_all_be_the_same_are_refused(prompter):
    shown = pictures(3)
    message = "2 candidates at temperature 0 would all be the same; draw 1"
    with pytest.raises(UserError, match=message):
        prompter.sequence(shown, num_candidates=2, temperature=0.0)
    with pytest.raises(UserError, match=message):
        generate(prompter.model, torch.zeros(1, 4, dtype=torch.int64), 2, num_candidates=2, temperature=0.0)


@pytest.mark.parametrize("window", ["tuples", "reuse"])
def test_progress_is_told_of_every_picture(prompter, window):
    told = []
    prompts = [Prompt(np.zeros((3, TOKENS), np.int64), 9), Prompt(np.ones((2, TOKENS), np.int64), 1)]
    assert len(list(prompter.continuations(prompts, 2, Sampling(), window=window, progress=told.append))) == 2
    assert sum(told) == 2 * (9 + 1) and len(told) > 4


@pytest.mark.parametrize(
    ("number", "room", "size", "leave"), [(5, 5, 2, 0), (6, 5, 1, 1), (6, 5, 2, 2), (7, 5, 2, 2), (9, 5, 2, 4)]
)
def test_the_window_moves_by_whole_tuples(number, room, size, leave):
    assert move_window(number, room, size) == leave


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_codes": 64}, "64 codes, the tokenizer has 32"),
        ({"tokens_per_picture": 9}, "9 tokens a picture, the tokenizer has 16"),
        ({"tokenizer_fingerprint": "ab" * 32}, "trained on the codes of tokenizer abababababab"),
        ({"max_position": 31}, "context of 31 tokens does not hold two pictures"),
    ],
)
def test_a_model_and_a_tokenizer_that_do_not_belong_together_are_refused(vq, change, message):
    with pytest.raises(UserError, match=message):
        Prompter(small_model(vq, **change), vq)


def test_an_imported_model_that_does_not_name_its_tokenizer_is_taken(vq):
    imported = small_model(vq, tokenizer_fingerprint="", tokens_per_picture=None, prompt_bos=False)
    assert Prompter(imported, vq).pictures_per_window == 6


def test_pictures_of_any_size_are_squashed_and_other_arrays_refused(prompter):
    answer = prompter.sequence([Image.new("L", (50, 20), 9), pictures(1, 64)[0]], temperature=0.0)
    assert answer.prompt.shape == (2, SIZE, SIZE, 3)
    with pytest.raises(UserError, match=r"float64 \[4, 4\]"):
        prompter.sequence([np.zeros((4, 4))])
    with pytest.raises(UserError, match="no picture"):
        prompter.sequence([])
    with pytest.raises(UserError, match="pair 0 has 1 pictures"):
        prompter.analogy([(pictures(1)[0],)], pictures(1)[0])
