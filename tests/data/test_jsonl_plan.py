"""A JSONL of the reference as a plan: the rows of the published loader, whatever the lines, batches and restarts."""

import base64
import gzip
import importlib
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lvm import commands
from lvm.commands import data as data_command
from lvm.commands import train
from lvm.data import JsonLinesPlan, WindowDataset, WindowLoader, jsonl_file, open_plan
from lvm.data.base64_codes import decode_equal
from lvm.runtime import UserError
from lvm.sentences import ANSWER, INPUT, ROLES, SPECIAL
from tokenizer import VQGAN, VQGANConfig

ROOT = Path(__file__).parents[2]
CODES, TOKENS = 64, 4


@pytest.fixture(scope="module", autouse=True)
def quick_disk():
    """Hundreds of small files need not outlive a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def published():
    """The published loader's rows of a file: (inputs, targets) of its first batches, each [batch, T]."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        loader = importlib.import_module("benchmarks.data")

    class CodesAlone(loader.Decode):  # text_processor.fields='{tokens}'
        def __call__(self, example):
            tokens, weights = super().__call__(example)
            return tokens[1:-1], weights[1:-1]

    def rows(path, batch_size, seq_len, number, specials=True):
        decode = (loader.Decode if specials else CodesAlone)(CODES, CODES + 1)
        found = list(islice(loader.batches(loader.decoded(path, decode, None), batch_size, seq_len), number))
        return [np.concatenate([batch[key] for batch in found]) for key in ("input_tokens", "target_tokens")]

    return rows


def drawn(lengths, seed=0):
    """Lines of so many codes each, a quarter of them 0."""
    random = np.random.default_rng(seed)
    return [np.maximum(random.integers(-CODES // 3, CODES, n), 0) for n in lengths]


def line(codes, dtype="<i4"):
    text = base64.b64encode(np.asarray(codes).astype(dtype).tobytes()).decode()
    return json.dumps({"tokens": text}).encode() + b"\n"


def write(path, lines):
    Path(path).write_bytes(b"".join(line(codes) for codes in lines))
    return path


def plan_of(path, seq_len=16, **options):
    values = {"num_codes": CODES, "tokens_per_picture": TOKENS, **options}
    return JsonLinesPlan.from_config({"seq_len": seq_len, "jsonl": str(path), **values})


@contextmanager
def fresh_cache():
    """A file and a cache that nothing else has seen."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LVM_CACHE", f"{name}/cache")
        yield Path(name)


# The rows.


@pytest.mark.parametrize("specials", [True, False])
@pytest.mark.parametrize("lengths", [[16] * 5, [4] * 11, [4, 16, 8, 4, 12, 4], [3, 1, 30, 4], [1], [400]])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_rows_are_those_of_the_published_loader_across_the_end_of_the_file(
    lengths, batch_size, specials, published, tmp_path
):
    lines = drawn(lengths)
    lines[0][:] = 0
    path = write(tmp_path / "a.jsonl", lines)
    with pytest.warns(UserWarning, match="no whole pictures") if sum(n % TOKENS for n in lengths) else no_warning():
        plan = plan_of(path, specials=specials)
    number = 2 + 2 * plan.tokens_per_pass // (16 * batch_size)  # twice round the file and more
    inputs, targets = published(path, batch_size, 16, number, specials)
    windows = plan.windows(0, number * batch_size)
    assert np.array_equal(windows.tokens[:, :-1], inputs) and np.array_equal(windows.tokens[:, 1:], targets)
    assert (windows.source == 0).all() and (inputs == 0).any()


@contextmanager
def no_warning():
    yield


@settings(max_examples=100)
@given(
    lengths=st.lists(st.integers(1, 6).map(lambda n: n * TOKENS), min_size=1, max_size=9),
    seed=st.integers(0, 99),
    seq_len=st.integers(1, 40),
    batch_size=st.integers(1, 5),
    first=st.integers(0, 60),
    blank=st.sets(st.integers(0, 8)),
    newline=st.booleans(),
)
def test_any_file_any_context_any_batch(published, lengths, seed, seq_len, batch_size, first, blank, newline):
    with fresh_cache() as folder:
        lines = drawn(lengths, seed)
        path = folder / "a.jsonl"
        # Blank lines are skipped by EasyLM; the loader of the benchmark is given none.
        text = b"".join(line(codes) + b"\n" * (number in blank) for number, codes in enumerate(lines))
        path.write_bytes(text if newline else text.rstrip(b"\n"))
        plan = plan_of(path, seq_len)
        without = write(folder / "b.jsonl", lines)
        inputs, targets = published(without, batch_size, seq_len, -(-(first + 7) // batch_size))
        window = plan.windows(first, 7)
        assert np.array_equal(window.tokens[:, :-1], inputs[first : first + 7])
        assert np.array_equal(window.tokens[:, 1:], targets[first : first + 7])
        for k in range(7):
            one = plan.window(first + k)
            assert all(np.array_equal(getattr(one, f), getattr(window, f)[k]) for f in ("tokens", "source", "role"))
        roles = np.bincount(window.role[:, 1:].reshape(-1), minlength=len(ROLES))
        assert plan.target_roles(first, 7).tolist() == roles.tolist()


def test_a_number_of_windows_that_is_no_number_is_refused(tmp_path):
    plan = plan_of(write(tmp_path / "a.jsonl", drawn([8])))
    for i, n in ((-1, 1), (0, 0)):
        with pytest.raises(IndexError):
            plan.windows(i, n)


def test_roles_say_what_is_given_and_what_is_answered(tmp_path):
    plan = plan_of(write(tmp_path / "a.jsonl", drawn([4, 12])), seq_len=20)
    expected = [SPECIAL, *[INPUT] * 4, SPECIAL, SPECIAL, *[INPUT] * 4, *[ANSWER] * 8, SPECIAL, SPECIAL]
    window = plan.window(0)
    assert window.role.tolist() == expected
    assert (plan.bos, plan.eos, plan.pad) == (64, 65, 66)
    assert window.tokens[[0, 5, 6]].tolist() == [64, 65, 64]
    for field, dtype in (("tokens", np.int64), ("source", np.int16), ("role", np.int8)):
        assert getattr(window, field).dtype == dtype and getattr(window, field).shape == (21,)
        assert getattr(plan.windows(3, 2), field).flags.c_contiguous
    assert np.array_equal(plan[1], plan.window(1).tokens)


def test_windows_are_equal_in_any_order_and_in_a_copy_of_the_plan(tmp_path):
    plan = plan_of(write(tmp_path / "a.jsonl", drawn([16, 4, 8] * 9)))
    tokens = plan.windows(0, 40).tokens
    copy = pickle.loads(pickle.dumps(plan))
    for i in np.random.default_rng(0).permutation(40):
        assert np.array_equal(plan[i], tokens[i]) and np.array_equal(copy[i], tokens[i])
    workers = torch.utils.data.DataLoader(WindowDataset(plan, 12), batch_size=4, num_workers=1)
    assert np.array_equal(torch.cat([batch["tokens"] for batch in workers]).numpy(), tokens[:12])


def test_a_loader_continues_in_the_middle_of_the_published_rows(published, tmp_path):
    path = write(tmp_path / "a.jsonl", drawn([16, 4, 8, 4]))
    inputs, _ = published(path, 6, 16, 5)
    read = []
    next_window = 0
    for steps, (ranks, size, micro) in ((2, (1, 3, 2)), (3, (2, 3, 1))):
        by_rank = []
        for rank in range(ranks):
            with WindowLoader(plan_of(path), size, next_window, micro, rank, ranks) as loader:
                by_rank.append([next(loader) for _ in range(steps)])
                after = loader.next_window
        next_window = after
        read += [by_rank[r][k][m]["tokens"] for k in range(steps) for m in range(micro) for r in range(ranks)]
    assert next_window == 30 and np.array_equal(torch.cat(read).numpy()[:, :-1], inputs)


# Base64.


@settings(max_examples=100)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 99), st.sampled_from([2, 8192, 65535]))
def test_texts_decoded_together_are_the_codes(texts, count, seed, num_codes):
    codes = np.random.default_rng(seed).integers(0, num_codes, (texts, count)).astype("<i4")
    assert np.array_equal(decode_equal([base64.b64encode(row) for row in codes], count), codes)


@settings(max_examples=300)
@given(st.integers(1, 12), st.integers(0, 99), st.data())
def test_texts_with_anything_else_are_left_to_others(count, seed, data):
    codes = np.random.default_rng(seed).integers(0, 8192, (2, count)).astype("<i4")
    texts = [base64.b64encode(row) for row in codes]
    at, byte = data.draw(st.integers(0, len(texts[1]) - 1)), data.draw(st.integers(0, 255))
    texts[1] = texts[1][:at] + bytes([byte]) + texts[1][at + 1 :]
    try:
        expected = np.frombuffer(base64.b64decode(texts[1], validate=True), "<i4")
        expected = expected if len(expected) == count and (expected >= 0).all() and (expected < 65535).all() else None
    except ValueError:
        expected = None
    found = decode_equal(texts, count)
    assert found is None if expected is None else np.array_equal(found, [codes[0], expected])
    assert decode_equal([texts[0], texts[0] + b"AAAA"], count) is None and decode_equal([b""], 0) is None


# The file.


def test_lines_in_another_dress_are_the_same_lines(published, tmp_path):
    lines = drawn([8, 4, 12, 4])
    plain = write(tmp_path / "plain.jsonl", lines)
    texts = [json.loads(line(codes))["tokens"] for codes in lines]
    dressed = [
        json.dumps({"id": "a", "tokens": texts[0], "source": "x"}),
        json.dumps({"tokens": texts[1]}, separators=(",", ":")),
        '{"tokens": "' + texts[2].replace("A", "\\u0041", 1).replace("/", "\\/") + '"}',
        "  " + json.dumps({"tokens": texts[3]}) + "  ",
    ]
    other = tmp_path / "dressed.jsonl"
    other.write_bytes("\r\n".join(dressed).encode())
    inputs, _ = published(other, 4, 16, 3)
    assert np.array_equal(plan_of(plain).windows(0, 12).tokens, plan_of(other).windows(0, 12).tokens)
    assert np.array_equal(plan_of(other).windows(0, 12).tokens[:, :-1], inputs)


def test_codes_beyond_sixteen_bits(tmp_path):
    codes = [np.array([0, 65534, 65535, 65536]), np.array([1, 2, 3, 99999])]
    plan = plan_of(write(tmp_path / "a.jsonl", codes), 8, num_codes=100_000)
    assert plan[0].tolist() == [100_000, *codes[0], 100_001, 100_000, *codes[1][:2]]


def test_a_file_elsewhere_is_read_by_ranges(tmp_path):
    here = write(tmp_path / "a.jsonl", drawn([16, 4, 8]))
    there = "memory://bucket/a.jsonl"
    fsspec.filesystem("memory").pipe("/bucket/a.jsonl", here.read_bytes())
    plan, local = plan_of(there), plan_of(here)
    assert np.array_equal(plan.windows(0, 9).tokens, local.windows(0, 9).tokens)
    assert plan.fingerprint == local.fingerprint and plan.names == ("a",)
    with pytest.raises(UserError, match=r"memory://bucket/b\.jsonl is missing"):
        plan_of("memory://bucket/b.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        plan_of("nosuch://bucket/b.jsonl")


def test_the_index_is_made_once_and_the_lines_are_not_decoded_for_it(monkeypatch):
    with fresh_cache() as folder:
        path = write(folder / "a.jsonl", drawn([16] * 50))
        decoded = []
        monkeypatch.setattr(
            "lvm.data.jsonl_file.decode_equal", lambda texts, count: decoded.extend(texts) or decode_equal(texts, count)
        )
        first = plan_of(path)
        assert len(decoded) == 1, "the first line"
        first.windows(3, 1)
        assert len(decoded) <= 4
        monkeypatch.setattr("lvm.data.jsonl_file.make_index", lambda *_: pytest.fail("made again"))
        assert np.array_equal(plan_of(path).windows(3, 9).tokens, first.windows(3, 9).tokens)


FRESH = """
import sys
from lvm.data import open_plan
plan = open_plan({"seq_len": 16, "jsonl": sys.argv[1], "num_codes": 64, "tokens_per_picture": 4})
print(plan.fingerprint, plan.windows(5, 2).tokens.tolist())
"""


def test_a_fresh_process_has_the_same_fingerprint_and_windows():
    with fresh_cache() as folder:
        path = write(folder / "a.jsonl", drawn([16, 4, 8] * 30))
        command = [sys.executable, "-c", FRESH, str(path)]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        plan = plan_of(path)
        assert said == f"{plan.fingerprint} {plan.windows(5, 2).tokens.tolist()}"


def test_of_several_processes_one_makes_the_index(monkeypatch):
    with fresh_cache() as folder:
        path = write(folder / "a.jsonl", drawn([16, 4, 8] * 3000))

        def counted(*arguments, make=jsonl_file.make_index):
            with open(folder / "made", "a") as file:
                file.write("once\n")
            return make(*arguments)

        monkeypatch.setattr("lvm.data.jsonl_file.make_index", counted)
        several = [multiprocessing.get_context("fork").Process(target=plan_of, args=(path,)) for _ in range(3)]
        for process in several:
            process.start()
        for process in several:
            process.join()
        assert [process.exitcode for process in several] == [0, 0, 0]
        assert (folder / "made").read_text() == "once\n" and plan_of(path).file.index.lengths == {
            4: 3000,
            8: 3000,
            16: 3000,
        }
        left = sorted(file.name for file in (folder / "cache").rglob("*") if file.is_file())
        assert left == [".lock", "file.json", "lines.int64"]


def test_the_fingerprint_hangs_on_the_bytes_and_the_options_alone(tmp_path):
    lines = drawn([16, 4, 8])
    plan = plan_of(write(tmp_path / "a.jsonl", lines))
    os.utime(tmp_path / "a.jsonl", ns=(1, 1))
    assert plan_of(tmp_path / "a.jsonl").fingerprint == plan.fingerprint
    assert plan_of(write(tmp_path / "b.jsonl", lines), tokenizer_fingerprint="f").fingerprint == plan.fingerprint
    others = [{"seq_len": 15}, {"specials": False}, {"num_codes": 65}, {"tokens_per_picture": 2}]
    prints = [plan_of(tmp_path / "b.jsonl", **options).fingerprint for options in others]
    prints.append(plan_of(write(tmp_path / "b.jsonl", lines[::-1])).fingerprint)
    assert len({plan.fingerprint, *prints}) == 6
    assert json.loads(json.dumps(plan.facts)) == plan.facts


# Mistakes.


BROKEN = {
    "not JSON": b"{",
    'not an object with "tokens"': b'{"token": "AA=="}',
    "no base64 text (a list of numbers is DeLVM's format)": b'{"tokens": [1, 2]}',
    "no base64 text;": b'{"tokens": 5}',
    "its tokens are no base64;": b'{"tokens": "AAAAA"}',
    "30 bytes, no whole number of int32": line([1] * 15, "<i2"),
    "are 3 bytes, no whole number of int32": b'{"tokens": "\\ud800AAA"}',  # half of a surrogate pair
}
BROKEN_INSIDE = {  # found where they are read
    "its tokens are no base64;": line([1] * 16).replace(b"AQAA", b"A*AA", 1),
    "token 3 is 64, the codes are 0..63 (data.num_codes)": line([0, 1, 63, 64, 65] + [0] * 11),
    "token 0 is -1": line([-1] * 16),
    "token 1 is 8388608": line([0, 2**23] + [0] * 14),
}


@pytest.mark.parametrize("says", [*BROKEN, *(f"inside: {says}" for says in BROKEN_INSIDE)])
def test_a_broken_line_is_named(says, tmp_path):
    inside = says.startswith("inside: ")
    says = says.removeprefix("inside: ")
    text = (BROKEN_INSIDE if inside else BROKEN)[says].rstrip(b"\n") + b"\n"
    good = b"".join(line(codes) for codes in drawn([16, 16]))
    path = tmp_path / "a.jsonl"
    path.write_bytes(good + b"\n" + text + good)
    with pytest.raises(UserError) as error:
        plan = plan_of(path)
        assert inside
        plan.windows(0, 1)
        plan.windows(0, 3)
    assert str(error.value).startswith(f"{path} line 4: ") and says in str(error.value)
    assert str(error.value).endswith("; mend or remove that line")
    assert not list(tmp_path.glob(".tmp*"))


def test_what_is_no_token_file_is_refused(tmp_path):
    files = {"empty": b"", "blank": b"\n\n", "no codes": line([]), "compressed (gzip)": gzip.compress(line([1] * 4))}
    for says, content in files.items():
        (tmp_path / says).write_bytes(content)
        with pytest.raises(UserError, match="compressed" if "gzip" in says else "holds no codes"):
            plan_of(tmp_path / says, specials=False)
    for path, says in ((tmp_path / "absent", "is missing"), (tmp_path, "is no file")):
        with pytest.raises(UserError, match=rf"{says}; use data\.jsonl=FILE"):
            plan_of(path)


def test_a_wrong_option_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", drawn([16]))
    for options, says in (
        ({"seq_len": 0}, r"data\.seq_len is 0"),
        ({"tokens_per_picture": 0}, "tokens_per_picture is 0"),
        ({"seed": 1}, r"unknown config key 'data\.seed'"),
        ({"num_codes": 8}, r"a\.jsonl line 1: token \d+ is \d+, the codes are 0\.\.7"),
    ):
        with pytest.raises(UserError, match=says):
            plan_of(path, **options)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", drawn([16] * 9))
    plan = plan_of(path)
    saved, before = pickle.dumps(plan), plan.windows(0, 9).tokens
    os.replace(write(tmp_path / "b.jsonl", drawn([16] * 9, seed=1)), path)
    assert np.array_equal(plan.windows(0, 9).tokens, before), "the file it has open is the old one"
    with pytest.raises(UserError, match="changed while it was read"):
        pickle.loads(saved)
    plan = plan_of(path)
    with open(path, "ab") as file:
        file.write(line([1] * 4))
    for read in (plan.check_files, lambda: plan.windows(0, 9)):
        with pytest.raises(UserError, match="changed while it was read"):
            read()


# Commands.


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A token file of pictures of 4 codes, and an untrained tokenizer for it."""
    folder = tmp_path_factory.mktemp("reference")
    config = VQGANConfig(
        hidden_channels=8, channel_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=4, quantized_embed_dim=4,
        num_embeddings=CODES, resolution=16, norm_groups=1,
    )  # fmt: skip
    torch.manual_seed(0)
    VQGAN(config).eval().save_pretrained(folder / "tokenizer")
    return write(folder / "a.jsonl", drawn([16, 4, 8, 4, 12] * 4)), folder / "tokenizer"


def options(path, prefix=""):
    return [
        f"{prefix}{o}" for o in (f"jsonl={path}", f"num_codes={CODES}", f"tokens_per_picture={TOKENS}", "seq_len=16")
    ]


def test_data_plan_and_explain_print_it(files, tmp_path, capsys):
    path, tokenizer = files
    plan = open_plan({"jsonl": str(path), "num_codes": CODES, "tokens_per_picture": TOKENS, "seq_len": 16})
    assert data_command.main(["plan", "data/reference", *options(path)]) == 0
    said = capsys.readouterr().out
    assert "20 sentences a period" in said and "1..4" in said and plan.fingerprint in said
    assert data_command.main(["plan", "data/reference", *options(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["entries"] == plan.describe()
    assert plan.waste() == 0 and not plan.left_out()
    assert plan.describe(176 * 3)[0]["epochs"] == 3 and plan.describe()[0]["epochs"] is None
    assert plan.samples(22)[0]["pictures"] == plan.explain(1)[-1]["pictures"]

    shown = ["explain", "data/reference", *options(path), "--window", "5"]
    assert data_command.main([*shown, "--out", str(tmp_path / "w.png"), "--tokenizer", str(tokenizer)]) == 0
    assert "a.jsonl:10 view 0 image frame 2" in capsys.readouterr().out and (tmp_path / "w.png").is_file()
    with pytest.raises(UserError, match="tokenizer"):
        wrong = [*shown, "tokenizer_fingerprint=f", "--out", str(tmp_path / "v.png"), "--tokenizer", str(tokenizer)]
        data_command.main(wrong)
    capsys.readouterr()
    assert data_command.main([*shown, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == plan.explain(5)
    with pytest.raises(UserError, match="copy that file"):
        commands.run(["export-tokens", "data/reference", str(tmp_path / "out"), *options(path), "--sentences", "3"])


def test_explain_says_where_every_token_comes_from(files):
    path, _ = files
    plan = plan_of(path)
    lines = path.read_bytes()
    for i in (0, 1, 9, 30):
        window, stream = plan[i], np.full(17, -1)
        for sentence in plan.explain(i):
            picture = sentence["pictures"][0]
            text = lines[picture["byte"] :].splitlines()[0]
            assert text == lines.splitlines()[picture["line"] - 1]
            codes = np.frombuffer(base64.b64decode(json.loads(text)["tokens"]), "<i4")
            tokens = np.array([plan.bos, *codes, plan.eos])
            assert len(tokens) == sentence["end"] - sentence["start"] == 4 * len(sentence["pictures"]) + 2
            for place, token in enumerate(tokens, sentence["start"]):
                if 0 <= place < 17:
                    stream[place] = token
        assert np.array_equal(stream, window)


def test_a_mixture_is_still_a_mixture():
    with pytest.raises(UserError, match=r"data\.entries is empty"):
        open_plan({"seq_len": 16, "sources": {}, "entries": {}})


def test_train_reads_it_continues_and_refuses_another_file(files, tmp_path, capsys):
    path, tokenizer = files
    model = [f"model.num_codes={CODES}", f"model.tokens_per_picture={TOKENS}", "model.hidden_size=32"]
    run = [f"run_dir={tmp_path / 'run'}", f"tokenizer={tokenizer}", "trainer.num_threads=1"]
    command = ["experiment=debug", "data=reference", *model, *run, "model.intermediate_size=48"]
    with fresh_cache():
        assert train.main([*command, *options(path, "data."), "codebook_start=true", "trainer.max_steps=2"]) == 0
        again = [*command, *options(path, "data."), "codebook_start=true", "trainer.max_steps=4"]
        assert train.main(again) == 0
        assert "step 2 of 4" in capsys.readouterr().out
        other = write(tmp_path / "b.jsonl", drawn([16] * 3))
        with pytest.raises(UserError, match=r"another plan: jsonl\.sha256 is"):
            train.main([*command, *options(other, "data."), "codebook_start=true", "trainer.max_steps=6"])
        moved = [*command, *options(other, "data."), "codebook_start=true", "trainer.max_steps=6", "data.new_plan=true"]
        assert train.main(moved) == 0
