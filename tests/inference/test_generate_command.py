"""`lvm generate`: one prompt, and many prompts that survive what happens to jobs."""

import base64
import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small_disk import small_disk
from tiny_prompter import NET, TOKENS, command, pictures, write_lines

from lvm import Prompter
from lvm.commands import main as lvm_main
from lvm.commands.generate import main
from lvm.inference import generate
from lvm.inference.answer_files import Grid
from lvm.inference.prompt_files import natural, read_prompts
from lvm.inference.prompt_job import blocks
from lvm.model import LVM
from lvm.runtime import UserError
from lvm.runtime.files import claimed
from lvm.runtime.tasks import read_shard, shard_of_environment
from tokenizer import VQGAN

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")  # bytes are equal for equal numbers of threads


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
        (["--sequence", "a0.png", "--candidates", "1000000"], "num_candidates 1000000 is too many"),
        (["--sequence", "a0.png", "--num-pictures", "1000000"], "--num-pictures 1000000 is too many"),
        (["--sequence", "a0.png", "--device", "meta"], "--device 'meta' is unknown"),
        (["--sequence", "a0.png", "--device", "cpu:3"], "--device 'cpu:3' is unknown"),
        (["--sequence", "x" * 300], "x: .*too long"),
        (["--pairs", "a0.png", "a1.png", "--query", str(ROOT / "docs")], "docs is a folder; --queries answers all"),
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


# Many prompts.


def run(*words) -> SimpleNamespace:
    """`lvm generate` as the shell sees it, in this process."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit) as end:
        lvm_main(["generate", *map(str, words)])
    return SimpleNamespace(returncode=end.value.code, stdout=out.getvalue(), stderr=err.getvalue())


def argv(*words) -> list[str]:
    return [sys.executable, "-m", "lvm", "generate", *map(str, words)]


def written(out: Path) -> dict[str, bytes]:
    """Every file that is not hidden, by path."""
    files = (file for file in out.rglob("*") if file.is_file())
    named = {str(file.relative_to(out)): file.read_bytes() for file in files}
    return {name: content for name, content in named.items() if not any(p.startswith(".") for p in Path(name).parts)}


@pytest.fixture(scope="module")
def many(folder, tmp_path_factory):
    """(words of a command for 40 prompts of three forms, what it writes when nothing happens to it)."""
    pairs = [["a0.png", "a1.png"], ["a2.png", "a3.png"]]
    rows = [{"id": f"pair{n}", "pairs": pairs, "query": f"a{n % 7}.png"} for n in range(20)]
    rows += [{"sequence": [f"a{n % 7}.png", f"a{(n + 2) % 7}.png"], "num_pictures": 2} for n in range(15)]
    rows += [{"pictures": ["a1.png", "a2.png", "a3.png", f"a{n}.png"], "tuple": 3} for n in range(5)]
    file = write_lines(folder / "many.jsonl", rows)
    words = [folder / "model", "--tokenizer", folder / "tokenizer", "--prompts", file, "--candidates", 2]
    out = tmp_path_factory.mktemp("many") / "whole"
    done = run(*words, "--out", out)
    assert done.returncode == 0, done.stderr
    return words, written(out)


def test_each_of_many_prompts_is_answered_as_alone(folder, many, tmp_path):
    _, whole = many
    lines = [json.loads(line) for line in whole["answers.jsonl"].decode().splitlines()]
    assert len(lines) == 40 and [line["id"] for line in lines[:2]] == ["pair0", "pair1"]
    assert [line["id"] for line in lines[20:23]] == ["a2", "a3", "a4"] and "a2-2" in {line["id"] for line in lines}
    options = ["--pairs", "a0.png", "a1.png", "a2.png", "a3.png", "--query", "a5.png", "--candidates", "2"]
    command(folder, *options, "--out", str(tmp_path / "alone"))
    alone = json.loads((tmp_path / "alone" / "answer.json").read_text())
    assert alone["tokens"] == lines[5]["tokens"]
    np.testing.assert_allclose(alone["scores"], lines[5]["scores"], rtol=1e-4)
    assert (tmp_path / "alone" / "answer-1.png").read_bytes() == whole["pair5/answer-1.png"]
    assert np.array(lines[25]["tokens"]).shape == (2, 2, TOKENS) and lines[25]["files"][1][1].endswith("answer-1-1.png")
    assert np.array(lines[38]["tokens"]).shape == (2, 2, TOKENS)  # one of three is there


def test_the_same_command_again_does_nothing_and_another_is_refused(many, tmp_path):
    words, whole = many
    out = tmp_path / "out"
    assert run(*words, "--out", out).returncode == 0
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.png")}
    (out / "answers.jsonl").unlink()
    assert run(*words, "--out", out).returncode == 0
    assert written(out) == whole and before == {file: file.stat().st_mtime_ns for file in out.rglob("*.png")}
    other = run(*words, "--seed", 1, "--out", out)
    assert other.returncode == 2 and "seed is 1 and was 0" in other.stderr and other.stderr.count("\n") == 1
    other = run(*words[:-2], "--candidates", 1, "--out", out)
    assert other.returncode == 2 and "num_candidates is 1 and was 2" in other.stderr
    assert written(out) == whole


def test_a_job_that_is_killed_ends_in_the_same_bytes(many, tmp_path):
    words, whole = many
    out = tmp_path / "out"
    kills = 0
    for wanted in (1, 18):  # at the first answers, and in the second block
        process = subprocess.Popen(argv(*words, "--out", out), cwd=ROOT, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 240
        while process.poll() is None and len(list(out.glob("[!.]*/answer.json"))) < wanted:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (out / "answers.jsonl").exists()
        for answer in out.glob("[!.]*/"):  # complete or absent
            assert (answer / "answer.json").exists() and (answer / "grid.png").exists()
    assert kills == 2
    (out / ".tmp-0123abcd-pair0").mkdir()  # as a killed writer leaves it
    (out / "pair0" / "answer.json").exists() and shutil.rmtree(out / "pair0")
    assert run(*words, "--out", out).returncode == 0
    assert written(out) == whole and not list(out.glob(".tmp-*"))


def test_three_shards_write_what_one_process_writes(many, tmp_path):
    words, whole = many
    out = tmp_path / "out"
    for shard in (2, 0):
        done = run(*words, "--out", out, "--shard", f"{shard}/3")
        assert done.returncode == 0 and "other shards are not done" in done.stdout
    assert not (out / "answers.jsonl").exists()
    done = run(*words, "--out", out, "--shard", "1/3")
    assert done.returncode == 0 and "40 answers" in done.stdout
    assert written(out) == whole


def stop_without_lock(process: subprocess.Popen, lock: Path) -> None:
    """Stop it while it does not hold the lock, or the others would wait for that instead of being refused."""
    while True:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        with open(lock) as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                process.send_signal(signal.SIGCONT)
        time.sleep(0.005)


def test_two_processes_on_one_folder_are_refused(many, tmp_path):
    words, whole = many
    out = tmp_path / "out"
    first = subprocess.Popen(argv(*words, "--out", out), cwd=ROOT)
    while not (out / ".shard-0-of-1.json").exists():
        assert first.poll() is None
        time.sleep(0.001)
    stop_without_lock(first, out / ".lease.lock")
    try:
        second, third = (run(*words, "--out", out, "--shard", shard) for shard in ("0/1", "1/2"))
    finally:
        first.send_signal(signal.SIGCONT)
    for refused in (second, third):
        assert refused.returncode == 2 and f"pid {first.pid}" in refused.stderr and refused.stderr.count("\n") == 1
    assert first.wait() == 0 and written(out) == whole


def test_one_prompt_is_answered_by_one_process_at_a_time(folder, tmp_path, capfd):
    out = tmp_path / "deep" / "out"
    options = ["--sequence", "a0.png", "a1.png", "--num-pictures", "9", "--temperature", "0", "--out", str(out)]
    with claimed(out), pytest.raises(UserError, match=rf"out is being made by pid {os.getpid()}; wait for it"):
        command(folder, *options)
    assert not any(tmp_path.iterdir())
    assert command(folder, *options) == 0
    assert "pictures: 9/9" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_what_the_context_does_not_hold_is_said_and_not_drawn(folder, tmp_path, capsys):
    pairs = [f"a{n}.png" for n in range(6)]
    words = ["--pairs", *pairs, "--query", "a6.png", "--window", "move", "--candidates", "3", "--choose", "agreement"]
    command(folder, *words, "--out", str(tmp_path / "out"))
    record = json.loads((tmp_path / "out" / "answer.json").read_text())
    assert record["pictures_left_out"] == 2 and len(record["prompt"]) == 7
    assert Image.open(tmp_path / "out" / "grid.png").size[0] == (5 + 1) * 100 + 4 + 8
    printed = capsys.readouterr().out
    assert "the first 2 pictures are left out" in printed
    score = record["choices"]["by_rule"]["agreement"][record["chosen"]]
    assert f"chosen by agreement, {score:.3f}" in printed


def test_many_chosen_answers_are_reported_beside_random_ones(folder, tmp_path, capsys):
    words = [
        "--pairs",
        "a0.png",
        "a1.png",
        "--queries",
        "a2.png",
        "a3.png",
        "--candidates",
        "3",
        "--choose",
        "log_prob",
    ]
    command(folder, *words, "--out", str(tmp_path / "out"))
    records = [json.loads((tmp_path / "out" / name / "answer.json").read_text()) for name in ("a2", "a3")]
    chosen = sum(record["choices"]["one_colour"][record["chosen"]] for record in records) / 2
    random = sum(record["choices"]["one_colour"][0] for record in records) / 2
    assert f"of one colour: {chosen:.1%} of the chosen answers, {random:.1%} of random ones" in capsys.readouterr().out


def test_an_unreadable_picture_fails_its_prompts_alone(folder, tmp_path):
    whole = (folder / "a0.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(whole[: len(whole) // 2])
    names = ["a1.png", "broken.png", "a2.png", "nowhere.png"]
    rows = [{"sequence": [str(folder / n if (folder / n).is_file() and n[0] == "a" else n)]} for n in names]
    file, out = write_lines(tmp_path / "prompts.jsonl", rows), tmp_path / "out"
    words = [folder / "model", "--tokenizer", folder / "tokenizer", "--prompts", file, "--candidates", 1, "--out", out]
    done = run(*words)
    assert done.returncode == 1 and "2 prompts failed, the first broken" in done.stderr
    failed = [json.loads(line) for line in (out / "failed.jsonl").read_text().splitlines()]
    assert [row["id"] for row in failed] == ["broken", "nowhere"]
    assert failed[1]["reason"] == "does not exist" and failed[1]["file"] == str(tmp_path / "nowhere.png")
    assert failed[0]["where"] == f"{file} line 2" and "cannot be decoded" in failed[0]["reason"]
    lines = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a1", "a2"]

    assert run(*words).returncode == 1  # nothing is mended yet
    for name in ("broken.png", "nowhere.png"):
        (tmp_path / name).write_bytes(whole)
    assert run(*words).returncode == 0 and not (out / "failed.jsonl").exists()
    lines = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a1", "broken", "a2", "nowhere"]
    assert lines[1]["tokens"] == lines[3]["tokens"]


def test_a_full_disk_loses_nothing(many, tmp_path):
    words, whole = many
    with small_disk(tmp_path / "disk", "400k") as disk:
        full = run(*words, "--out", disk / "out")
        assert full.returncode == 2 and "No space left" in full.stderr and full.stderr.count("error:") == 1
        kept = written(disk / "out")
        assert 0 < len(kept) < len(whole) and kept == {name: whole[name] for name in kept}
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        assert run(*words, "--out", disk / "out").returncode == 0
        assert written(disk / "out") == whole and not list((disk / "out").rglob(".tmp-*"))


def test_queries_of_a_folder_share_their_pairs(folder, tmp_path):
    (tmp_path / "queries").mkdir()
    for name, picture in zip(("q10", "q2", "q1"), pictures(3, seed=5)):
        Image.fromarray(picture).resize((40, 20)).save(tmp_path / "queries" / f"{name}.png")
    out = tmp_path / "out"
    options = ["--pairs", "a0.png", "a1.png", "--queries", str(tmp_path / "queries"), "--out", str(out), "--no-grid"]
    assert command(folder, *options, "--original-size", "--choose", "agreement", "--candidates", "3") == 0
    lines = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["q1", "q2", "q10"] and not list(out.rglob("grid.png"))
    for line in lines:
        assert Image.open(out / line["files"][0][0]).size == (40, 20)
        best = line["chosen"]
        assert best == int(np.argmax(line["choices"]["by_rule"]["agreement"]))
        assert (out / line["id"] / "answer.png").read_bytes() == (out / line["files"][best][0]).read_bytes()


def test_a_folder_is_a_sequence_in_natural_order(folder, tmp_path, capsys):
    (tmp_path / "frames").mkdir()
    for n, name in ((0, "f1"), (1, "f2"), (2, "f10")):
        shutil.copy(folder / f"a{n}.png", tmp_path / "frames" / f"{name}.png")
    words = ["--candidates", "1", "--json", "--out"]
    command(folder, "--sequence", str(tmp_path / "frames"), *words, str(tmp_path / "one"))
    record = json.loads(capsys.readouterr().out)
    command(folder, "--sequence", "a0.png", "a1.png", "a2.png", *words, str(tmp_path / "two"))
    assert record["tokens"] == json.loads(capsys.readouterr().out)["tokens"]
    assert record["scores"] == record["choices"]["by_rule"]["log_prob"] and record["seed"] == 0
    assert sorted(["b10", "b9", "b", "10", "9"], key=natural) == ["9", "10", "b", "b9", "b10"]


def test_codes_may_be_given_instead_of_pictures(folder, tmp_path):
    codes = np.random.default_rng(0).integers(0, 32, (3, TOKENS))
    raw = base64.b64encode(codes.astype("<i4").tobytes()).decode()
    rows = [{"tokens": codes.tolist()}, {"tokens": raw}, {"id": "flat", "tokens": codes.reshape(-1).tolist()}]
    file, out = write_lines(tmp_path / "codes.jsonl", rows), tmp_path / "out"
    command(folder, "--prompts", str(file), "--temperature", "0", "--out", str(out))
    lines = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["prompt-00001", "prompt-00002", "flat"]
    prompter = Prompter.from_pretrained(folder / "model", folder / "tokenizer")
    expected = generate(prompter.model, torch.from_numpy(codes).reshape(1, -1), TOKENS, temperature=0.0)
    assert all(line["tokens"] == expected.tokens.reshape(1, 1, -1).tolist() for line in lines)
    shown = np.asarray(Image.open(out / "flat" / "grid.png"))
    answer = np.asarray(Image.open(out / "flat" / "answer-0.png"))
    grid = Grid(prompter.decode(codes), num_candidates=1, num_answers=1)
    grid.place(0, answer[None])
    assert np.array_equal(shown, grid.pixels)


CODES = [0] * TOKENS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"sequence": ["a0.png"]}\n{"sequence": ', "prompts.jsonl line 2: not JSON"),
        ('[{"sequence": ["a0.png"]},\n {"sequence" 3}]', "prompts.jsonl line 2: not JSON"),
        ('[{"sequence": ["a0.png"]}, 7]', "prompt 2: 7 is no object"),
        ("", "holds no prompt"),
        ('{"query": "a0.png"}', "line 1: has none of sequence, pairs"),
        ('{"sequence": ["a0.png"], "tokens": []}', "has 'sequence' and 'tokens'"),
        ('{"sequence": ["a0.png"], "num_picture": 2}', "unknown key 'num_picture'"),
        ('{"sequence": []}', r"line 1: sequence is \[\]"),
        ('{"sequence": ["a0.png"], "num_pictures": 0}', "num_pictures is 0"),
        ('{"pairs": [["a0.png", "a1.png"], ["a2.png"]], "query": "a3.png"}', r'pair 1 is \["a2.png"\]; a pair is'),
        ('{"pairs": [["a0.png", "a1.png"]]}', "line 1: query is null"),
        (
            '{"id": "x", "sequence": ["a0.png"]}\n{"id": "x", "sequence": ["a1.png"]}',
            "line 2: id 'x' is that of",
        ),
        ('{"id": "../x", "sequence": ["a0.png"]}', "line 1: id .* cannot name a folder"),
        (f'\n{{"tokens": [{[*CODES[:-1], 32]}]}}', r"line 2: token 15 of picture 0 is 32; the .* codes are 0\.\.31"),
        (f'{{"tokens": [{CODES[:-1]}]}}', "15 tokens are no whole pictures of 16"),
        ('{"tokens": "%%%"}', "line 1: tokens is a text that is no base64"),
        ('{"tokens": [[1.5]]}', "token 0 of picture 0 is 1.5, no code"),
        (
            json.dumps({"tokens": [CODES] * 6}),
            "line 1: a prompt of 6 pictures .* at most 5 pictures",
        ),
        (json.dumps({"pictures": ["a0.png"], "tuple": 6}), "tuples of 6 pictures do not fit"),
        ('{"input": ["a0.png"], "output": "b.png"}', "add --protocol reference"),
        ('{"sequence": ["a0.png"], "sequence": ["a1.png"]}', "line 1: not JSON \\('sequence' stands there twice"),
        ('{"sequence": ["a0.png"], "num_pictures": 1000000000000}', "num_pictures is 1000000000000; at most"),
        (json.dumps({"tokens": [CODES], "tuple": 3}), "tokens in tuples need num_pictures"),
    ],
)
def test_a_malformed_list_of_prompts_is_one_line(folder, tmp_path, text, message):
    (folder / "prompts.jsonl").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        command(folder, "--prompts", str(folder / "prompts.jsonl"), "--out", str(tmp_path / "out"))
    assert "\n" not in str(caught.value) and not any(tmp_path.iterdir())


def test_longer_prompts_are_answered_where_the_window_may_move(folder, tmp_path):
    names = [f"a{n}.png" for n in range(7)]
    options = ["--temperature", "0", "--out"]
    command(folder, "--sequence", *names, "--window", "move", *options, str(tmp_path / "long"))
    command(folder, "--sequence", *names[2:], *options, str(tmp_path / "short"))
    long, short = (json.loads((tmp_path / n / "answer.json").read_text()) for n in ("long", "short"))
    assert long["tokens"] == short["tokens"]


# Shards.


def test_prompts_with_common_pictures_share_a_block(folder, tmp_path):
    rows = [{"id": f"{n}", "pairs": [[f"p{n % 4}.png", "b.png"]], "query": f"q{n}.png"} for n in range(40)]
    found = blocks(read_prompts(write_lines(tmp_path / "p.jsonl", rows)))
    assert sorted(int(asked.id) for block in found for asked in block) == list(range(40))
    assert [len(block) for block in found] == [10, 10, 10, 10]
    assert all(len({asked.prefix for asked in block}) == 1 for block in found)
    assert [len(block) for block in blocks(read_prompts(tmp_path / "p.jsonl") * 20)] == [50] * 16


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({}, (0, 1)),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, (0, 1)),  # a batch script is no task of a step
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}, (3, 4)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1",
          "SLURM_ARRAY_TASK_STEP": "2"}, (2, 3)),
        ({"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_STEP_NUM_TASKS": "4",
          "SLURM_PROCID": "3"}, (7, 8)),
    ],
)  # fmt: skip
def test_shards_follow_the_launcher(monkeypatch, environment, shard):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert shard_of_environment() == shard


def test_shards_that_cannot_be_told_are_refused(monkeypatch):
    for text in ("4/4", "1", "a/b", "-1/2"):
        with pytest.raises(UserError, match="must be I/N"):
            read_shard(text)
    for key, value in (("ID", "7"), ("COUNT", "2"), ("MIN", "3"), ("STEP", "1")):  # --array=3,7
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{key}", value)
    with pytest.raises(UserError, match="give --shard"):
        shard_of_environment()


def test_answers_that_lost_a_file_are_made_again(folder, tmp_path):
    rows = [{"sequence": [f"a{n}.png"]} for n in range(3)]
    file, out = write_lines(folder / "three.jsonl", rows), tmp_path / "out"
    words = ["--prompts", str(file), "--candidates", "2", "--out", str(out)]
    assert command(folder, *words) == 0
    before = written(out)
    (out / "a1" / "answer-0.png").unlink()
    shutil.rmtree(out / "a2")
    assert command(folder, *words) == 0
    assert written(out) == before
    (out / "a0" / "answer.json").write_text("[]")
    assert command(folder, *words) == 0
    assert written(out) == before


def test_a_single_answer_that_lost_a_file_is_not_reported_as_there(folder, tmp_path):
    out = tmp_path / "out"
    words = ["--sequence", "a0.png", "--candidates", "2", "--out", str(out)]
    assert command(folder, *words) == 0 == command(folder, *words)
    (out / "answer-1.png").unlink()
    with pytest.raises(UserError, match="exists and is not empty"):
        command(folder, *words)
    (out / "answer.json").write_text('["question"]')
    with pytest.raises(UserError, match="exists and is not empty"):
        command(folder, *words)


def test_a_place_where_no_folder_can_be_made_is_said_before_the_weights_are_read(folder, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert command(folder, "--sequence", "a0.png", "--candidates", "1", "--out", str(tmp_path / "link")) == 0
    assert (tmp_path / "empty" / "answer.json").is_file()
    monkeypatch.setattr(LVM, "from_pretrained", None)
    monkeypatch.chdir(folder)
    for out in ("a0.png/x", "z" * 300, "z" * 240, "."):
        with pytest.raises(UserError, match=r"--out .*(cannot be made|you work in)"):
            main(
                [str(folder / "model"), "--tokenizer", str(folder / "tokenizer"), "--sequence", "a0.png", "--out", out]
            )


def test_a_folder_that_was_filled_meanwhile_is_one_line(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    answer = Prompter.continuations

    def filled(*arguments, **options):
        (out / "other").mkdir(parents=True)
        return answer(*arguments, **options)

    monkeypatch.setattr(Prompter, "continuations", filled)
    with pytest.raises(UserError, match="was filled while its answer was drawn"):
        command(folder, "--sequence", "a0.png", "--out", str(out))
    assert [file.name for file in out.iterdir()] == ["other"]


def test_one_prompt_in_a_task_of_an_array_says_whose_it_is(folder, tmp_path, monkeypatch):
    for key, value in {"ID": "1", "COUNT": "3", "MIN": "0", "STEP": "1"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{key}", value)
    words = ["--sequence", "a0.png", "--candidates", "1", "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match=r"task 1 of 3 of an array; .* --shard 0/1"):
        command(folder, *words)
    assert command(folder, *words, "--shard", "0/1") == 0


def test_a_list_with_a_byte_order_mark_and_an_impossible_path(folder, tmp_path):
    file = folder / "bom.jsonl"
    rows = [{"sequence": ["a0.png"]}, {"sequence": ["x" * 5000 + ".png"]}, {"sequence": ["a1.png"]}]
    file.write_bytes(b"\xef\xbb\xbf" + "".join(json.dumps(row) + "\n" for row in rows).encode())
    out = tmp_path / "out"
    assert command(folder, "--prompts", str(file), "--candidates", "1", "--out", str(out)) == 1
    assert {"a0", "a1"} <= {path.name for path in out.iterdir()}
    assert "too long" in (out / "failed.jsonl").read_text()


def test_paths_may_be_spelled_otherwise(folder, tmp_path, monkeypatch):
    out = str(tmp_path / "out")
    begin = [str(folder / "model"), "--tokenizer", str(folder / "tokenizer"), "--candidates", "1", "--out", out]
    monkeypatch.chdir(folder)
    assert main([*begin, "--sequence", "./a0.png"]) == 0
    assert main([*begin, "--sequence", str(folder / "a0.png")]) == 0
    with pytest.raises(UserError, match="another question"):
        main([*begin, "--sequence", "a1.png"])
