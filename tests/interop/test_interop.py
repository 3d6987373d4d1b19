"""Token files of the reference and of DeLVM: in and out of stores without a changed byte, or refused in one line."""

import base64
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lvm import commands
from lvm.data import TokenPlan
from lvm.interop import (
    Vocabulary,
    import_tokens,
    meta_path,
    plan_sentences,
    read_delvm,
    read_jsonl,
    store_sentences,
    write_delvm,
    write_jsonl,
)
from lvm.interop.to_store import plan_of_tokens
from lvm.runtime.hashing import group_hash
from lvm.sentences import ANSWER, INPUT
from lvm.store import verify
from lvm.store.job import make_plan
from tokenizer import VQGAN, VQGANConfig

CODES, GRID = 64, (4, 4)
TOKENS = 16
VOCABULARY = Vocabulary("tiny", "f" * 64, CODES, GRID, 16)


@pytest.fixture(scope="module", autouse=True)
def quick_disk():
    """Hundreds of small files need not outlive a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    config = VQGANConfig(
        hidden_channels=8, channel_mult=(1, 1, 1), num_res_blocks=1, z_channels=4, quantized_embed_dim=4,
        num_embeddings=CODES, resolution=16, norm_groups=1,
    )  # fmt: skip
    torch.manual_seed(0)
    VQGAN(config).eval().save_pretrained(folder)
    return folder


def drawn(pictures, seed=0):
    """Sentences of so many pictures each, a quarter of whose codes are 0."""
    rng = np.random.default_rng(seed)
    return [np.maximum(rng.integers(-CODES // 3, CODES, (n, TOKENS)), 0).astype(np.uint16) for n in pictures]


def as_the_reference_writes(sentences):
    lines = []
    for codes in sentences:
        text = base64.b64encode(codes.reshape(-1).astype(np.int32).tobytes()).decode("utf-8")
        lines.append(json.dumps({"tokens": text}) + "\n")
    return "".join(lines).encode()


def as_delvm_writes(sentences):
    """The bytes of train.bin, and the table of train.bin.meta."""
    lines, table, place = [], [], 0
    for codes in sentences:
        line = str.encode(json.dumps(dict(tokens=codes.reshape(-1).tolist())) + "\n")
        lines.append(line)
        table.append((place, codes.size))
        place += len(line)
    return b"".join(lines), np.array(table, np.int64)


def write_files(folder, sentences):
    """A file of each format as its own project writes it: {format: path}."""
    (folder / "a.jsonl").write_bytes(as_the_reference_writes(sentences))
    content, table = as_delvm_writes(sentences)
    (folder / "train.bin").write_bytes(content)
    with open(folder / "train.bin.meta", "wb") as file:
        np.save(file, table)
    return {"jsonl": folder / "a.jsonl", "delvm": folder / "train.bin"}


@settings(max_examples=12)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=9), st.integers(0, 99), st.integers(1, 4))
def test_a_file_comes_out_of_a_store_as_it_went_in(pictures, seed, shard_size):
    sentences = drawn(pictures, seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for format, file in write_files(folder, sentences).items():
            store = import_tokens(file, folder / format, VOCABULARY, format, shard_size)
            assert sorted(store.num_pictures.tolist()) == sorted(pictures)
            for out, write in (("out.jsonl", write_jsonl), ("out.bin", write_delvm)):
                assert write(folder / format / out, store_sentences(store)) == len(pictures)
            assert (folder / format / "out.jsonl").read_bytes() == (folder / "a.jsonl").read_bytes()
            assert (folder / format / "out.bin").read_bytes() == (folder / "train.bin").read_bytes()
            assert (folder / format / "out.bin.meta").read_bytes() == (folder / "train.bin.meta").read_bytes()


@settings(max_examples=40)
@given(st.lists(st.integers(1, 5), max_size=6), st.integers(0, 99))
def test_what_is_written_is_read_back_line_by_line(pictures, seed):
    sentences = drawn(pictures, seed)
    with tempfile.TemporaryDirectory() as name:
        for read, write in ((read_jsonl, write_jsonl), (read_delvm, write_delvm)):
            file = Path(name) / write.__name__
            write(file, sentences)
            back = list(read(file, CODES, TOKENS))
            assert [sentence.line for sentence in back] == list(range(1, len(pictures) + 1))
            assert all(np.array_equal(b.codes, codes) for b, codes in zip(back, sentences, strict=True))


def test_a_store_of_tokens_is_a_store_like_any_other(tmp_path, tokenizer_folder):
    vqgan = VQGAN.from_pretrained(tokenizer_folder)
    sentences = drawn([4, 2, 4, 1, 4])
    file = write_files(tmp_path, sentences)["jsonl"]
    store = import_tokens(file, tmp_path / "store", VOCABULARY)
    verify(store.path)
    assert store.channels == ("image",) and (store.view == 0).all() and (store.label == -1).all()
    assert {store.id(i) for i in range(5)} == {f"a.jsonl:{line}" for line in range(1, 6)}
    assert store.group.tolist() == [group_hash(store.id(i)) for i in range(5)]
    assert store.shards[0][0] == "00000" and len(store.blocks.shard) == 3, "a block for each number of pictures"
    for i in range(5):
        codes = store.pictures(np.full(store.num_pictures[i], i), "image", np.arange(store.num_pictures[i]))
        assert np.array_equal(codes, sentences[int(store.id(i).split(":")[1]) - 1])

    class Source:
        name, channels, labels, resize = "a.jsonl", ("image",), (), "none"

        def fingerprint(self):
            return "f"

        def __len__(self):
            return 5

    made = Vocabulary("tiny", vqgan.fingerprint, CODES, GRID, 16)
    plan = plan_of_tokens("a.jsonl", "f", 5, 2, made)
    assert {key: plan[key] for key in plan if key != "tokenizer"} == make_plan(Source(), vqgan, 16, 2)


def test_the_same_import_again_opens_the_store_and_another_is_refused(tmp_path, tokenizer_folder, capsys):
    file = write_files(tmp_path, drawn([3, 3]))["jsonl"]
    command = ["import-tokens", str(file), str(tmp_path / "store"), "--tokenizer", str(tokenizer_folder)]
    assert commands.run(command) == 0
    assert "2 of 3 pictures: recipe verbatim, pictures 3" in capsys.readouterr().out
    written = (tmp_path / "store" / "store.json").stat().st_mtime_ns
    assert commands.run(command) == 0
    assert (tmp_path / "store" / "store.json").stat().st_mtime_ns == written
    file.write_bytes(as_the_reference_writes(drawn([3, 2])))
    assert "exists and is not" in refused(command, capsys)


def mixture(store, **entries):
    return {
        "seq_len": 100,
        "period": 8,
        "held_out_per_mille": 0,
        "sources": {"foreign": {"store": str(store.path)}},
        "entries": {name: {"source": "foreign", "recipe": "verbatim", **entry} for name, entry in entries.items()},
    }


def test_a_plan_shows_sentences_verbatim_and_keeps_code_0(tmp_path):
    sentences = drawn([4, 2, 4, 1, 4, 2])
    sentences[1][:] = 0
    store = import_tokens(write_files(tmp_path, sentences)["delvm"], tmp_path / "store", VOCABULARY, "delvm")
    entries = {"long": {"weight": 2, "pictures": 4}, "short": {"weight": 1, "pictures": 2}}
    plan = TokenPlan.from_config(mixture(store, **entries, one={"weight": 1, "pictures": 1}))
    by_length = {n: {codes.tobytes() for codes in sentences if len(codes) == n} for n in (1, 2, 4)}
    for entry in plan.entries:
        shown = list(plan_sentences(plan, entry=entry.name))
        assert {codes.tobytes() for codes in shown} == by_length[entry.recipe.pictures], "an epoch shows each once"
        assert entry.left_out == {f"not of {entry.recipe.pictures} pictures": 6 - len(by_length[entry.recipe.pictures])}
    stream = np.concatenate([window[:-1] for window in plan.windows(0, 20).tokens])
    assert (stream == 0).any()
    expected = [[plan.bos, *codes.reshape(-1), plan.eos] for codes in plan_sentences(plan, 80)]
    assert np.array_equal(np.concatenate(expected)[: len(stream)], stream), "the mixture in the order of its windows"
    roles = plan.windows(0, 20).role
    assert set(np.unique(roles)) > {INPUT, ANSWER}


def test_export_tokens_of_a_config_and_of_a_store(tmp_path, capsys):
    sentences = drawn([2, 2, 1, 2])
    files = write_files(tmp_path, sentences)
    store = import_tokens(files["jsonl"], tmp_path / "store", VOCABULARY)
    config = tmp_path / "mix.yaml"
    config.write_text(json.dumps(mixture(store, a={"weight": 1, "pictures": 2}, b={"weight": 1, "pictures": 1})))
    out = tmp_path / "out.bin"
    command = ["export-tokens", str(config), str(out)]
    assert commands.run([*command, "--entry", "a", "--format", "delvm", "period=4"]) == 0
    assert {s.codes.tobytes() for s in read_delvm(out, CODES, TOKENS)} == {
        s.tobytes() for s in sentences if len(s) == 2
    }
    assert "exists; remove it" in refused([*command, "--entry", "a"], capsys)
    out.unlink()
    assert ".meta exists" in refused([*command, "--entry", "a", "--format", "delvm"], capsys)
    meta_path(out).unlink()
    assert "mixture has no end" in refused(command, capsys)
    assert "no entry 'c' with a weight; known: a, b" in refused([*command, "--entry", "c"], capsys)
    assert "--channel is for a STORE" in refused([*command, "--channel", "depth"], capsys)
    assert commands.run([*command, "--sentences", "7"]) == 0 and len(out.read_bytes().splitlines()) == 7
    out.unlink()
    command[1] = str(store.path)
    assert "--sentences 0: must be at least 1" in refused([*command, "--sentences", "0"], capsys)
    assert "--entry is for a CONFIG" in refused([*command, "--entry", "a"], capsys)
    assert "unknown channel 'depth'" in refused([*command, "--channel", "depth"], capsys)
    assert not out.exists()
    assert commands.run([*command, "--sentences", "3"]) == 0
    assert "<|64|>,{tokens},<|65|>" in capsys.readouterr().out
    assert out.read_bytes().splitlines() == files["jsonl"].read_bytes().splitlines()[:3]


def refused(command, capsys):
    """The one line a command ends with, exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        commands.main(command)
    said = capsys.readouterr().err
    assert left.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    return said


def base64_of(values, dtype="<i4"):
    return json.dumps({"tokens": base64.b64encode(np.array(values, dtype).tobytes()).decode()}).encode()


BROKEN_JSONL = {
    "not JSON": b"{",
    "not an object": b"[1]",
    'with "tokens"': b'{"token": "AA=="}',
    "no base64;": b'{"tokens": "A*AA"}',
    "no base64 text (a list of numbers is DeLVM's format)": b'{"tokens": [1, 2]}',
    "no base64 text;": b'{"tokens": 5}',
    "30 bytes, no whole number of int32": base64_of([1] * 15, "<i2"),
    "token 3 is 64, the tokenizer's codes are 0..63": base64_of([0, 1, 63, 64, 65] + [0] * 11),
    "token 0 is -1": base64_of([-1] * 16),
    "15 tokens are no whole pictures of 16": base64_of([1] * 15),
    "0 tokens": base64_of([]),
    "2049 pictures": base64_of([1] * 16 * 2049),
    "longer than a sentence": b'{"tokens": "' + b"A" * 300_000,
}
BROKEN_DELVM = {
    "not JSON": b'{"tokens": [1, ',
    "no list (base64 text is the reference's JSONL)": base64_of([1] * 16),
    "not all integers": b'{"tokens": [1, 2.0]}',
    "more than 64 bits": b'{"tokens": [1, 99999999999999999999]}',
    "15 tokens are no whole pictures": b'{"tokens": [' + b"1, " * 14 + b"1]}",
    "token 15 is 64": b'{"tokens": [' + b"1, " * 15 + b"64]}",
}


@pytest.mark.parametrize(
    ("format", "says", "line"),
    [
        pytest.param(format, says, line, id=f"{format}: {says}")
        for format, lines in (("jsonl", BROKEN_JSONL), ("delvm", BROKEN_DELVM))
        for says, line in lines.items()
    ],
)
def test_a_broken_line_is_named_and_leaves_nothing(format, says, line, tmp_path, tokenizer_folder, capsys):
    good = as_the_reference_writes(drawn([2])) if format == "jsonl" else as_delvm_writes(drawn([2]))[0]
    file = tmp_path / "tokens"
    file.write_bytes(good + line + b"\n" + good)
    if format == "delvm":
        values = line.decode().count(",") + 1
        table = [(0, 32), (len(good), values), (len(good) + len(line) + 1, 32)]
        np.save(tmp_path / "meta.npy", np.array(table, np.int64))
        (tmp_path / "meta.npy").rename(meta_path(file))
    before = sorted(tmp_path.iterdir())
    command = ["import-tokens", str(file), str(tmp_path / "store"), "--tokenizer", str(tokenizer_folder)]
    said = refused([*command, "--format", format, "--shard-size", "1"], capsys)
    assert f"{file} line 2: " in said and says in said
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (None, "train.bin.meta is missing"),
        (b"text", "is no .npy file"),
        (np.zeros(3, np.int64), "is no table of bytes and lengths"),
        (np.array([[0, 32], [1, 32]]), "row 1: byte 1 with 32 tokens, but line 2 of train.bin starts at byte"),
        (np.array([[0, 16]]), "row 0: byte 0 with 16 tokens"),
        (1, "row 1: no such line"),
        (3, "has 2 sentences and train.bin.meta 3"),
    ],
)
def test_a_meta_file_that_disagrees_is_refused(table, says, tmp_path, tokenizer_folder, capsys):
    file = write_files(tmp_path, drawn([2, 2]))["delvm"]
    true = np.load(meta_path(file))
    meta_path(file).unlink()
    if isinstance(table, int):
        table = np.concatenate([true, true])[:table]
    if isinstance(table, bytes):
        meta_path(file).write_bytes(table)
    elif table is not None:
        np.save(tmp_path / "m.npy", table)
        (tmp_path / "m.npy").rename(meta_path(file))
    command = ["import-tokens", str(file), str(tmp_path / "store"), "--tokenizer", str(tokenizer_folder)]
    assert says in refused([*command, "--format", "delvm"], capsys)
    assert not (tmp_path / "store").exists() and not list(tmp_path.glob(".tmp*"))


def test_what_is_no_token_file_is_refused(tmp_path, tokenizer_folder, capsys):
    (tmp_path / "empty").write_bytes(b"\n\n")
    for file, says in ((tmp_path / "absent", "is missing"), (tmp_path, "is no file"), (tmp_path / "empty", "holds no")):
        command = ["import-tokens", str(file), str(tmp_path / "store"), "--tokenizer", str(tokenizer_folder)]
        assert says in refused(command, capsys)
    assert "shard_size is 0" in refused([*command, "--shard-size", "0"], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_blank_lines_are_skipped_and_counted(tmp_path):
    first, second = as_the_reference_writes(drawn([1, 2])).splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_bytes(first + b"\n" + second.rstrip())
    assert [sentence.line for sentence in read_jsonl(tmp_path / "a.jsonl", CODES, TOKENS)] == [1, 3]
