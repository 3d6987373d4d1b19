"""`lvm bench`: at tiny sizes every benchmark returns the promised keys, and both sides do the same work."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from lvm.commands import bench
from lvm.model import LVM, LVMConfig
from lvm.runtime import UserError

KEYS = {"ours", "alternative", "ratio", "limit", "machine", "commit"}
TINY = {
    "tokenize": ["pictures=4", "batch_size=2", "rounds=1", "compile=false"],
    "data": [
        "pictures=300",
        "tokens_per_picture=4",
        "num_codes=64",
        "seq_len=64",
        "batch_size=2",
        "batches=3",
        "sentences=100",
        "rounds=1",
    ],
    "train": ["seq_len=16", "batch_size=1", "steps=1", "rounds=1", "compile=false", "precision=fp32"],
    "generate": ["pictures=1", "candidates=2", "rounds=1"],
}


@pytest.fixture(autouse=True)
def small_limits(monkeypatch):
    monkeypatch.setattr(bench, "MATMUL_SIDE", {"cpu": 64, "cuda": 64})
    monkeypatch.setattr(bench, "COPY_BYTES", {"cpu": 2**16, "cuda": 2**16})
    monkeypatch.setattr(bench, "LIMIT_SECONDS", 0.001)
    yield
    bench.matmul_peak.cache_clear()
    bench.copy_bandwidth.cache_clear()


@pytest.fixture
def small_model(monkeypatch):
    config = LVMConfig(32, 0, 32, 64, num_layers=2, num_heads=2, max_position=64, tokens_per_picture=4)
    monkeypatch.setattr(bench, "DEMO", config)


@pytest.mark.parametrize("name", bench.NAMES)
def test_the_json_has_the_promised_keys_and_the_rates_agree(name, tmp_path, capsys, small_model):
    assert bench.main([name, *TINY[name], "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found.keys() >= KEYS
    assert found["ratio"] == pytest.approx(found["ours"]["rate"] / found["alternative"]["rate"])
    assert found["limit"]["share"] == pytest.approx(found["ours"]["rate"] / found["limit"]["rate"])
    assert len(found["ours"]["rounds"]) == 1 and found["machine"]["cores"] >= 1
    assert found["ours"]["unit"] in capsys.readouterr().out
    if name == "tokenize":
        for limit in (found["limit"], found["decode"]["limit"]):
            assert 0 < limit["with_memory"] < limit["rate"]
    if name == "data":
        assert found["same_first_batch"] is True
    if name == "train":
        assert found["ours"]["first_loss"] == pytest.approx(found["alternative"]["first_loss"], rel=1e-5)
    if name == "generate":
        assert found["equal_greedy_codes"] == 1.0


def test_the_published_loader_reads_the_sentences_in_circles_and_a_pool_changes_nothing(tmp_path):
    data = bench.benchmark("data")
    lines = tmp_path / "lines.jsonl"
    options = data.Options(pictures=300, tokens_per_picture=4, num_codes=64, seq_len=64, batch_size=2)
    plan = data.make_plan(data.write_store(tmp_path / "store", options), options)
    data.write_json_lines(lines, plan, 100)
    decode = data.Decode(plan.bos, plan.eos)
    first = [tokens for tokens, _ in data.islice(data.decoded(lines, decode, None), 200)]
    assert first[:100] == first[100:]
    stream = plan.windows(0, 40).tokens[:, :-1].reshape(-1)
    told = np.concatenate([np.array(tokens) for tokens in first[:100]])
    assert np.array_equal(told[: len(stream)], stream[: len(told)])
    with data.get_context("fork").Pool(1) as pool:
        examples = data.decoded(lines, decode, pool)
        assert [tokens for tokens, _ in data.islice(examples, 200)] == first
        examples.close()


def test_without_transformers_ours_is_still_measured(monkeypatch, small_model):
    train = bench.benchmark("train")
    monkeypatch.setattr(train, "hugging_face_model", lambda model: None)
    found = train.run(train.Options(seq_len=16, batch_size=1, steps=1, rounds=1, compile=False, precision="fp32"))
    assert found["ratio"] is None and "not installed" in found["alternative"]["what"]


def test_the_demo_model_is_the_one_of_the_configs_but_for_its_context():
    from lvm.commands.cost import model_config

    assert replace(model_config("demo"), max_position=bench.DEMO.max_position) == bench.DEMO


def test_the_transformers_model_is_ours():
    model = LVM(LVMConfig(32, 0, 32, 64, num_layers=2, num_heads=2, max_position=64, tokens_per_picture=4))
    tokens = torch.arange(16)[None]
    net = bench.hugging_face_model(model).eval()
    with torch.no_grad():
        assert torch.allclose(net(input_ids=tokens).logits, model(tokens), atol=1e-5)


def test_contestants_take_turns_and_the_first_round_is_not_kept():
    calls = []

    def contestant(name):
        return lambda: calls.append(name) or float(len(calls))

    seconds = bench.take_turns({"a": contestant("a"), "b": contestant("b")}, rounds=2)
    assert "".join(calls) == "baabba"
    assert seconds == {"a": [3.0, 6.0], "b": [4.0, 5.0]}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["tokenise"], "tokenise"),
        (["train", "step=3"], "steps"),
        (["generate", "pictures=16"], "pictures is 16"),
        (["train", "device=gpu"], "device"),
        (["data", "rounds=0"], "rounds"),
    ],
)
def test_a_wrong_argument_is_one_line_that_names_it(arguments, named):
    small = TINY["data"][:-1] if arguments[0] == "data" else []
    with pytest.raises(UserError, match=named):
        bench.main([arguments[0], *small, *arguments[1:]])


def test_an_installation_without_a_checkout_says_where_benchmarks_are(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    with pytest.raises(UserError, match="checkout"):
        bench.benchmark("train")


def test_the_tokenizers_layers_have_its_flops_and_its_values():
    from tokenizer.model import PRESETS

    tokenize = bench.benchmark("tokenize")
    config = PRESETS["lvm-f16-8192"]
    encoder, decoder = tokenize.layers(config)
    encoding, decoding = tokenize.flops_per_picture(config)
    distances = 2 * 256 * 64 * 8192
    assert sum(flops for flops, _ in encoder) + distances == encoding and sum(flops for flops, _ in decoder) == decoding
    picture, first = 3 * 256 * 256, 128 * 256 * 256
    assert encoder[0] == (2 * first * 3 * 9, picture + first) and encoder[1] == (0, 3 * first)
