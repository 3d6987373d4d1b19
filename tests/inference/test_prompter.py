"""Pictures in, pictures out: the Prompter's window, its checks, and `lvm generate`."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lvm import Prompter
from lvm.commands.generate import main
from lvm.inference import generate
from lvm.inference.cache import Cache
from lvm.inference.rollout import Prompt, move_window
from lvm.inference.sampling import GREEDY, Sampling
from lvm.model import LVM, LVMConfig
from lvm.runtime import UserError
from tokenizer import VQGAN, VQGANConfig

NET = VQGANConfig(
    hidden_channels=8,
    channel_mult=(1, 1, 1),
    num_res_blocks=1,
    z_channels=8,
    quantized_embed_dim=8,
    num_embeddings=32,
    resolution=16,
    norm_groups=1,
)
SIZE, TOKENS = 16, 16


@pytest.fixture(scope="module")
def vq():
    torch.manual_seed(0)
    return VQGAN(NET).eval()


def small_model(vq: VQGAN, **change) -> LVM:
    config = LVMConfig(
        num_codes=32,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=2,
        max_position=96,  # BOS and six pictures of 16, of which the last code is never fed
        tokens_per_picture=TOKENS,
        tokenizer_fingerprint=vq.fingerprint,
    )
    model = LVM(replace(config, **change), seed=1)
    for parameter in model.parameters():
        parameter.data.mul_(6.0 if parameter.ndim > 1 else 1.0)
    return model


@pytest.fixture(scope="module")
def prompter(vq):
    return Prompter(small_model(vq), vq)


def pictures(number: int, size: int = SIZE, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (number, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(size // 4, 1).repeat(size // 4, 2)


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


@pytest.fixture(scope="module")
def folder(vq, tmp_path_factory):
    """A model, a tokenizer and pictures a0..a6.png on disk."""
    folder = tmp_path_factory.mktemp("prompting")
    small_model(vq).save_pretrained(folder / "model")
    vq.save_pretrained(folder / "tokenizer")
    for number, picture in enumerate(pictures(7, 32)):
        Image.fromarray(picture).save(folder / f"a{number}.png")
    return folder


def command(folder, *rest: str) -> int | None:
    paths = [str(folder / word) if word.endswith(".png") else word for word in rest]
    return main([str(folder / "model"), "--tokenizer", str(folder / "tokenizer"), *paths])


def test_the_command_writes_answers_a_grid_and_the_record(folder, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--pairs", "a0.png", "a1.png", "--query", "a2.png", "--candidates", "2", "--seed", "3", "--top-k", "9"]
    assert command(folder, *options, "--out", str(out)) == 0
    names = {file.name for file in out.iterdir()}
    assert names == {"answer-0.png", "answer-1.png", "grid.png", "answer.json"}
    record = json.loads((out / "answer.json").read_text())
    assert np.array(record["tokens"]).shape == (2, 1, TOKENS) and len(record["scores"]) == 2
    assert record["seed"] == 3 and record["top_k"] == 9 and record["kind"] == "analogy"
    again = Prompter.from_pretrained(folder / "model", folder / "tokenizer").analogy(
        [(folder / "a0.png", folder / "a1.png")], folder / "a2.png", num_candidates=2, seed=3, top_k=9
    )
    assert np.array_equal(again.tokens, record["tokens"])
    assert np.array_equal(np.asarray(Image.open(out / "answer-1.png")), again.pictures[1, 0])
    assert Image.open(out / "grid.png").size == (4 * 100 + 4 + 8, 2 * 100 + 4)
    assert str(out / "grid.png") in capsys.readouterr().out


def test_the_command_continues_a_sequence_beyond_the_context(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()  # an empty folder will do
    options = ["--sequence", "a0.png", "a1.png", "a2.png", "--num-pictures", "5", "--temperature", "0"]
    command(folder, *options, "--out", str(out))
    assert sorted(file.name for file in out.glob("answer-*")) == [f"answer-0-{n}.png" for n in range(5)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pairs", "a0.png", "a1.png", "a2.png", "--query", "a3.png"], r"--pairs has 3 pictures.*a2\.png"),
        (["--pairs", "a0.png", "a1.png"], "--query is missing"),
        (["--sequence", "a0.png", "--query", "a1.png"], "--query needs --pairs"),
        ([], "either --sequence"),
        (["--sequence", "a0.png", "--pairs", "a0.png", "a1.png"], "either --sequence"),
        (["--sequence", "nowhere.png"], r"nowhere\.png: does not exist"),
        (["--sequence", "a0.png", "broken.png"], r"broken\.png: "),
        (["--sequence", *[f"a{n}.png" for n in range(6)]], "6 pictures and an answer exceed .* at most 5 pictures"),
        (["--pairs", *[f"a{n}.png" for n in range(6)], "--query", "a6.png"], "at most 2 pairs and the query"),
        (["--pairs", "a0.png", "a1.png", "--query", "a2.png", "--num-pictures", "2"], "--num-pictures 2"),
        (["--sequence", "a0.png", "--temperature", "0", "--candidates", "2"], "--candidates 2 at temperature 0"),
        (["--sequence", "a0.png", "--candidates", "0"], "num_candidates 0"),
        (["--sequence", "a0.png", "--num-pictures", "0"], "num_pictures 0"),
        (["--sequence", "a0.png", "--top-p", "2"], "top_p 2.0"),
        (["--sequence", "a0.png", "--seed", "x"], "--seed.*--help"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(folder, tmp_path, options, message):
    whole = (folder / "a0.png").read_bytes()
    (folder / "broken.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=message) as caught:
        command(folder, *options, "--out", str(tmp_path / "deep" / "out"))
    assert caught.value.user_error and "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_folders_that_are_no_model_tokenizer_or_free_place_are_refused(folder, tmp_path):
    picture, out = str(folder / "a0.png"), str(tmp_path / "out")
    model, tokenizer = str(folder / "model"), str(folder / "tokenizer")
    run = tmp_path / "run"
    (run / "step-00000010").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    torch.manual_seed(1)
    VQGAN(NET).save_pretrained(tmp_path / "other")
    for arguments, message in (
        ([model, "--tokenizer", "no-such-tokenizer", "--out", out], "no-such-tokenizer"),
        ([str(tmp_path / "none"), "--tokenizer", tokenizer, "--out", out], "none is not a folder"),
        ([str(run), "--tokenizer", tokenizer, "--out", out], "lvm export"),
        ([model, "--tokenizer", str(tmp_path / "other"), "--out", out], "do not belong together"),
        ([model, "--tokenizer", tokenizer, "--out", str(run)], "exists and is not empty"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            main([*arguments, "--sequence", picture])
        assert caught.value.user_error and not (tmp_path / "out").exists()
