"""Answers beyond the context: kept while they grow, replayed to the bit, a few pictures of them at a time."""

import json
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_disk import small_disk
from tiny_prompter import SIZE, TOKENS, command, small_model, small_vqgan, write_lines

from lvm.inference import Prompter, prompter
from lvm.inference.answer_files import MOST_COLUMNS, Grid
from lvm.inference.choosing import score_candidates
from lvm.inference.decoded import PICTURES_AT_ONCE, Decoded
from lvm.inference.rollout import Prompt
from lvm.inference.rounds import Rounds
from lvm.inference.sampling import Sampling
from lvm.runtime import UserError

ROOT = Path(__file__).resolve().parents[2]
QUESTION = {"seed": 3}


@pytest.fixture(scope="module")
def prompter_(one_thread):
    vq = small_vqgan()
    return Prompter(small_model(vq), vq)


@pytest.fixture
def prompts():
    codes = np.random.default_rng(0).integers(0, 32, (4, TOKENS))
    return [Prompt(codes, num_pictures=7), Prompt(codes[:3], num_pictures=7, tuple_size=2)]


class Killed(BaseException):
    pass


def ask(asked: Prompter, prompts: list[Prompt], rounds: Rounds | None):
    return dict(asked.continuations(prompts, 2, Sampling(), 3, rounds=rounds))


def count_rounds(monkeypatch, end_in: int = 10**6) -> list[int]:
    """How many requests each round of the engine had; it is killed amid round `end_in`."""
    counts: list[int] = []
    engine = prompter.answer_requests

    def counted(model, requests, sampling):
        drawn = engine(model, requests, sampling)
        counts.append(len(requests))
        yield next(drawn)
        if len(counts) == end_in:
            raise Killed
        yield from drawn

    monkeypatch.setattr(prompter, "answer_requests", counted)
    return counts


def test_a_killed_rollout_goes_on_at_its_last_whole_round(prompter_, prompts, tmp_path, monkeypatch):
    whole = ask(prompter_, prompts, None)
    with monkeypatch.context() as patch:
        drawn = count_rounds(patch)
        ask(prompter_, prompts, None)
        every = len(drawn)
    assert every == 6  # two or three pictures more in the first round, then one by one, of pairs two by two

    for end_in, torn in ((4, 0), (5, 1), (6, 40)):  # amid the fourth round; amid the next, and its line not whole
        rounds = Rounds(tmp_path, QUESTION, prompts)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            before = rounds.file.read_bytes().count(b"\n") if rounds.file.exists() else 0
            count_rounds(patch, end_in - before)
            ask(prompter_, prompts, rounds)
        rounds.close()
        assert rounds.file.read_bytes().count(b"\n") == end_in - 1
        if torn:
            rounds.file.write_bytes(rounds.file.read_bytes()[:-torn])
            end_in -= 1
    with monkeypatch.context() as patch:
        drawn = count_rounds(patch)
        found = ask(prompter_, prompts, Rounds(tmp_path, QUESTION, prompts))
    assert len(drawn) == every - (end_in - 1)
    for number, expected in whole.items():
        assert np.array_equal(found[number].tokens, expected.tokens)
        assert np.array_equal(found[number].log_probs, expected.log_probs)
    with monkeypatch.context() as patch:
        drawn = count_rounds(patch)
        ask(prompter_, prompts, Rounds(tmp_path, QUESTION, prompts))
    assert drawn == []


def test_other_prompts_and_options_have_another_file(prompts, tmp_path):
    file = partial(lambda *asked: Rounds(tmp_path, *asked).file)
    other = Prompt(prompts[0].codes[::-1], num_pictures=7)
    longer = Prompt(prompts[0].codes, num_pictures=8)
    asked = [(QUESTION, prompts), ({"seed": 4}, prompts), (QUESTION, prompts[:1]), (QUESTION, [other])]
    assert len({file(*one) for one in [*asked, (QUESTION, [longer])]}) == 5
    assert file(QUESTION, prompts) == file(dict(QUESTION), list(prompts)) and not list(tmp_path.iterdir())


def test_a_damaged_line_is_drawn_again(prompter_, prompts, tmp_path):
    whole = ask(prompter_, prompts, Rounds(tmp_path, QUESTION, prompts))
    file = Rounds(tmp_path, QUESTION, prompts).file
    before = file.read_bytes()
    lines = before.splitlines(keepends=True)
    without_third = b"".join(lines[:2] + lines[3:])
    lines[2] = lines[2][:-9] + b"A" + lines[2][-8:] if lines[2][-9:-8] != b"A" else lines[2][:-9] + b"B" + lines[2][-8:]
    for damaged in (b"".join(lines), without_third, b"\0" * len(before)):
        file.write_bytes(damaged)
        found = ask(prompter_, prompts, Rounds(tmp_path, QUESTION, prompts))
        assert all(np.array_equal(found[n].tokens, whole[n].tokens) for n in whole)
        assert file.read_bytes() == before


def test_an_answer_within_the_context_keeps_no_rounds(prompter_, tmp_path):
    prompts = [Prompt(np.zeros((2, TOKENS), np.int64), num_pictures=4)]
    ask(prompter_, prompts, Rounds(tmp_path / "rounds", QUESTION, prompts))
    assert not (tmp_path / "rounds").exists()


def argv(folder: Path, *words) -> list[str]:
    given = [folder / "model", "--tokenizer", folder / "tokenizer", *words]
    return [sys.executable, "-m", "lvm", "generate", *map(str, given)]


def sample(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in out.iterdir()}


def test_the_command_goes_on_with_an_answer_that_was_killed(folder, one_thread, tmp_path, monkeypatch):
    words = ["--sequence", "a0.png", "a1.png", "--num-pictures", "12", "--candidates", "2", "--out"]
    with monkeypatch.context() as patch:
        every = count_rounds(patch)
        assert command(folder, *words, str(tmp_path / "whole")) == 0
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        count_rounds(patch, 5)
        command(folder, *words, str(out))
    assert not out.exists() and len(list((tmp_path / ".rounds-out").iterdir())) == 1
    with monkeypatch.context() as patch:
        rest = count_rounds(patch)
        assert command(folder, *words, str(out)) == 0
    assert len(rest) == len(every) - 4
    assert sample(out) == sample(tmp_path / "whole")
    assert not list(tmp_path.glob(".rounds*"))


def test_what_a_killed_writer_left_beside_is_removed(folder, one_thread, tmp_path):
    words = ["--sequence", "a0.png", "a1.png", "--num-pictures", "6", "--candidates", "1", "--out"]
    out, under_way, aside = (tmp_path / name for name in ("o[1]", ".rounds-o[1]", ".tmp-0123abcd-o[1]"))
    aside.mkdir()
    (aside / "answer-0-0.png").touch()  # killed while it wrote
    assert command(folder, *words, str(out)) == 0 and not aside.exists()
    under_way.mkdir()
    (under_way / "0123.jsonl").touch()  # killed when all was written
    assert command(folder, *words, str(out)) == 0 and [file.name for file in tmp_path.iterdir()] == [out.name]


def test_a_long_answer_is_drawn_by_one_process_at_a_time(folder, one_thread, tmp_path, monkeypatch):
    words = ["--sequence", "a0.png", "--num-pictures", "9", "--candidates", "1", "--out", str(tmp_path / "new" / "out")]
    engine, refused = prompter.answer_requests, []

    def second_one(*arguments):
        yield from engine(*arguments)
        if (tmp_path / "new" / ".rounds-out").exists() and not refused:
            with pytest.raises(UserError, match="out is being made by pid") as caught:
                refused.append(None)
                command(folder, *words)
            refused.append(caught.value)

    monkeypatch.setattr(prompter, "answer_requests", second_one)
    assert command(folder, *words) == 0 and len(refused) == 2


def test_a_full_disk_names_the_file_and_keeps_the_rounds_before(folder, one_thread, tmp_path):
    rows = [{"id": f"s{n}", "sequence": [f"a{n}.png"], "num_pictures": 90} for n in range(5)]
    words = ["--prompts", str(write_lines(folder / "full.jsonl", rows)), "--candidates", "2", "--no-grid", "--out"]
    assert command(folder, *words, str(tmp_path / "whole")) == 0
    with small_disk(tmp_path / "disk", "64k") as disk:
        done = subprocess.run(argv(folder, *words, disk / "out"), cwd=ROOT, capture_output=True, text=True)
        (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert done.returncode == 2 and "No space left" in error and "/.rounds/0/" in error, done.stderr
        (rounds,) = (disk / "out").glob(".rounds/0/*.jsonl")
        assert rounds.read_bytes().count(b"\n") > 5
        subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
        assert command(folder, *words, str(disk / "out")) == 0
        assert (disk / "out" / "answers.jsonl").read_bytes() == (tmp_path / "whole" / "answers.jsonl").read_bytes()


def test_a_list_of_long_answers_that_is_killed_ends_in_the_same_bytes(folder, one_thread, tmp_path, monkeypatch):
    rows = [{"id": f"s{n}", "sequence": [f"a{n}.png", f"a{n + 1}.png"], "num_pictures": 30} for n in range(5)]
    file, out = write_lines(folder / "long.jsonl", rows), tmp_path / "out"
    words = ["--prompts", str(file), "--candidates", "2", "--no-grid", "--out"]
    with monkeypatch.context() as patch:
        every = count_rounds(patch)
        assert command(folder, *words, str(tmp_path / "whole")) == 0
    process = subprocess.Popen(argv(folder, *words, out), cwd=ROOT)
    lines = lambda: sum(file.read_bytes().count(b"\n") for file in out.glob(".rounds/*/*.jsonl"))
    deadline = time.monotonic() + 120
    while process.poll() is None and lines() < 6:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with monkeypatch.context() as patch:
        rest = count_rounds(patch)
        assert command(folder, *words, str(out)) == 0
    assert len(rest) <= len(every) - 6
    for name in ("answers.jsonl", *(f"s{n}/answer-1-29.png" for n in range(5))):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (out / ".rounds").exists()


# Pictures.


def test_pictures_of_a_long_answer_are_decoded_a_few_at_a_time_and_not_kept(prompter_):
    codes = np.random.default_rng(1).integers(0, 32, (3, 50, TOKENS))
    at_once: list[int] = []

    def decode(codes):
        at_once.append(len(codes))
        return prompter_.decode(codes)

    kept, passing = Decoded(decode, codes), Decoded(decode, codes, kept=3 * 50 * SIZE * SIZE * 3 - 1)
    first = list(kept)
    decoded = sum(at_once)
    assert decoded == 150 and max(at_once) <= PICTURES_AT_ONCE
    assert all(np.array_equal(one, other) for one, other in zip(first, kept, strict=True))
    assert sum(at_once) == decoded
    for _ in range(2):
        assert all(np.array_equal(one, other) for one, other in zip(first, passing, strict=True))
    assert sum(at_once) == 3 * decoded and len(passing) == 50 and passing.num_candidates == 3


def test_scores_of_pictures_in_passing_are_those_of_pictures_at_hand(prompter_):
    prompt = Prompt(np.random.default_rng(2).integers(0, 32, (3, TOKENS)), num_pictures=4)
    [(_, found)] = prompter_.continuations([prompt], 3, Sampling(), 1)
    passing = Decoded(prompter_.decode, found.tokens, kept=0)
    whole = np.stack(list(passing), axis=1)
    expected, scores = (score_candidates(prompter_, prompt, found, seen) for seen in (whole, passing))
    assert scores.record() == expected.record()
    pairs = np.abs(whole[:, None].astype(float) - whole[None]).mean((2, 3, 4, 5))
    np.testing.assert_allclose(scores.by_rule["agreement"], -pairs.sum(1) / 2, rtol=1e-5)


def test_the_grid_of_a_long_answer_shows_some_of_its_pictures():
    shown = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    long, short = Grid(shown, 2, 1000), Grid(shown, 2, MOST_COLUMNS)
    for number in range(1000):
        long.place(number, np.full((2, SIZE, SIZE, 3), number % 251, np.uint8))
    for place, number in enumerate(np.linspace(0, 999, MOST_COLUMNS).round().astype(int)):
        short.place(place, np.full((2, SIZE, SIZE, 3), number % 251, np.uint8))
    assert np.array_equal(long.pixels, short.pixels)


def test_a_long_answer_is_written_whole_with_the_chosen_one(folder, one_thread, tmp_path):
    words = ["--sequence", "a0.png", "--num-pictures", "70", "--candidates", "3", "--choose", "agreement"]
    assert command(folder, *words, "--out", str(tmp_path / "out")) == 0
    record = json.loads((tmp_path / "out" / "answer.json").read_text())
    names = record["pictures"][record["chosen"]]
    assert len(names) == 70 and len(list((tmp_path / "out").glob("answer-chosen-*.png"))) == 70
    last = (tmp_path / "out" / "answer-chosen-69.png").read_bytes()
    assert last == (tmp_path / "out" / names[69]).read_bytes()
    width = Image.open(tmp_path / "out" / "grid.png").width
    shutil.rmtree(tmp_path / "out")
    assert width < 70 * 96
