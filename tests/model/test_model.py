"""The decoder: equal to the reference folder and to transformers, with the published shapes, whole in and out."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import lvm.model
from lvm.inference.cache import Cache
from lvm.model import LVM, LVMConfig, ModelError, document_positions

ROOT = Path(__file__).parents[2]
PARITY = ROOT.parent / "shared" / "parity" / "llama_hf"
TINY = LVMConfig(num_codes=20, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, max_position=64)
PUBLISHED = {  # total and without the embedding and the head, at a vocabulary of 8292
    "debug": (2_451_072, 328_320),
    "100m": (116_974_720, 106_360_960),
    "300m": (290_968_576, 273_986_560),
    "600m": (648_396_288, 622_923_264),
    "1b": (1_147_119_616, 1_113_155_584),
    "3b": (3_274_742_400, 3_221_673_600),
    "7b": (6_544_199_680, 6_476_271_616),
    "13b": (12_773_094_400, 12_688_184_320),
    "20b": (20_722_710_528, 20_620_818_432),
    "30b": (32_213_342_720, 32_102_959_616),
}


def preset(name: str) -> LVMConfig:
    return LVMConfig(**yaml.safe_load((ROOT / "configs" / "model" / f"{name}.yaml").read_text()))


def random_model(config: LVMConfig = TINY, scale: float = 8.0) -> LVM:
    model, generator = LVM(config, seed=3), torch.Generator().manual_seed(3)
    for parameter in model.parameters():  # far from uniform predictions, so that a mistake shows
        if parameter.ndim > 1:
            parameter.data.mul_(scale)
        else:
            parameter.data.uniform_(0.5, 1.5, generator=generator)
    return model


def tokens(*shape: int, below: int = 120, seed: int = 0) -> torch.Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_parameter_counts(name):
    config = preset(name)
    assert config.vocab_size == 8292
    with torch.device("meta"):
        model = LVM(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert (total, total - 2 * 8292 * config.hidden_size) == PUBLISHED[name]
    assert model.num_params() == total


LADDER = {name: 1e6 * float(name.removesuffix("m")) for name in ("0.1m", "0.3m", "1m", "3m", "10m", "25m", "50m")}


@pytest.mark.parametrize("name", LADDER)
def test_a_rung_of_the_ladder_has_the_parameters_its_first_line_says(name):
    first = (ROOT / "configs" / "model" / f"ladder_{name}.yaml").read_text().splitlines()[0]
    config = preset(f"ladder_{name}")
    with torch.device("meta"):
        model = LVM(config)
    inner = sum(p.numel() for key, p in model.named_parameters() if not key.startswith(("embed", "head")))
    assert first.startswith(f"# {inner:,} parameters beside the embedding and the head")
    assert abs(inner / LADDER[name] - 1) < 0.12
    assert config.head_size in (32, 64) and config.hidden_size % 32 == 0 and config.intermediate_size % 8 == 0


def test_the_presets_for_kernels_and_demo_have_the_stated_heads():
    assert (preset("3b-h128").head_size, preset("3b-h128").num_heads) == (128, 25)
    demo = preset("demo")
    assert (demo.vocab_size, demo.head_size, demo.num_params) == (1124, 64, 1_079_424)


@pytest.mark.skipif(not PARITY.is_dir(), reason="the parity folder is not on this machine")
def test_logits_and_greedy_tokens_equal_the_reference_folder():
    model, expected = LVM.from_pretrained(PARITY), load_file(PARITY / "expected.safetensors")
    with torch.no_grad():
        assert torch.allclose(model(expected["tokens"].long()), expected["logits"], atol=2e-5)
        sequence = expected["greedy_prompt"].long()
        for _ in range(expected["greedy_tokens"].shape[1]):
            sequence = torch.cat([sequence, model(sequence)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(sequence[:, expected["greedy_prompt"].shape[1] :].int(), expected["greedy_tokens"])


OPTIONS = [
    {},
    {"num_kv_heads": 2},
    {"tie_embeddings": True},
    {"head_size": 16},
    {"qk_norm": True},
    {"attention_bias": True, "num_kv_heads": 2},
    {"qk_norm": True, "num_kv_heads": 1, "tie_embeddings": True, "head_size": 16},
]


@pytest.mark.parametrize("shard_bytes", [10**9, 10_000])
@pytest.mark.parametrize("change", OPTIONS, ids=lambda change: "-".join(change) or "plain")
def test_transformers_opens_our_folder_and_gives_our_logits(tmp_path, change, shard_bytes):
    transformers = pytest.importorskip("transformers")
    model = random_model(replace(TINY, **({"rope_theta": 500.0} | change)))
    assert model.num_params() == sum(parameter.numel() for parameter in model.parameters())
    model.save_pretrained(tmp_path, shard_bytes=shard_bytes)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(theirs).__name__ == ("Qwen3ForCausalLM" if model.config.qk_norm else "LlamaForCausalLM")
    fed = tokens(2, 40)
    with torch.no_grad():
        assert torch.allclose(model(fed), theirs(fed).logits, atol=2e-4, rtol=1e-4)
    assert theirs.config.eos_token_id == 21 and theirs.generation_config.eos_token_id == 21
    theirs.save_pretrained(tmp_path / "theirs")
    again = LVM.from_pretrained(tmp_path / "theirs")
    assert again.config == model.config and torch.equal(again(fed), model(fed))


@pytest.mark.parametrize("shard_bytes", [10**9, 10_000])
@pytest.mark.parametrize("change", OPTIONS, ids=lambda change: "-".join(change) or "plain")
def test_a_saved_model_comes_back_whole(tmp_path, change, shard_bytes):
    config = replace(TINY, tokens_per_picture=9, tokenizer_fingerprint="ab12", prompt_bos=True, z_loss=1e-4, **change)
    model = random_model(config)
    model.save_pretrained(tmp_path, shard_bytes=shard_bytes)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_bytes == 10_000)
    again = LVM.from_pretrained(tmp_path)
    assert again.config == config
    for (name, a), (_, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_pytorch_bin_folders_are_read_and_pickles_of_code_are_refused(tmp_path):
    model = random_model()
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert torch.equal(LVM.from_pretrained(tmp_path)(tokens(1, 8)), model(tokens(1, 8)))
    torch.save({"x": Path("/")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="more than tensors"):
        LVM.from_pretrained(tmp_path)


def test_folders_that_do_not_say_are_read_as_the_released_model_or_as_codes_alone(tmp_path):
    random_model().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    for key in ("num_codes", "tokens_per_picture", "prompt_bos", "tokenizer_fingerprint"):
        del values[key]
    read = lambda **change: lvm.model.config_from_hugging_face(values | change)
    assert (read().num_codes, read().prompt_bos, read().tokens_per_picture) == (120, False, None)
    released = read(vocab_size=8292)
    assert (released.num_codes, released.bos, released.tokens_per_picture) == (8192, 8192, 256)
    with pytest.raises(ModelError, match="prompted, not trained"):
        _ = read().bos


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"attention_bias": True}, r"lacks 8 tensors .*q_proj.bias"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "llama3"),
        ({"model_type": "gpt2"}, "'gpt2'"),
        ({"intermediate_size": 50}, "config.json makes it"),
        ({"num_hidden_layers": 1}, "layers.1"),
        ({"num_hidden_layers": 3}, "lacks 9 tensors"),
        ({"model_type": "qwen3"}, r"lacks 4 tensors .*q_norm"),
        ({"model_type": "qwen3", "use_sliding_window": True}, "use_sliding_window"),
        ({"vocab_size": None}, "vocab_size"),
    ],
)
def test_a_folder_of_another_kind_is_refused_in_one_line_that_names_the_cause(tmp_path, change, message):
    random_model().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | change))
    with pytest.raises(ModelError, match=message) as error:
        LVM.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_truncated_and_missing_weights_are_named(tmp_path):
    random_model().save_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read"):
        LVM.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="neither"):
        LVM.from_pretrained(tmp_path)
    save_file({"stray": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="'stray'"):
        LVM.from_pretrained(tmp_path)


def test_a_document_mask_makes_each_sentence_as_if_alone():
    model = random_model()
    bos = TINY.bos
    first, second = tokens(1, 11, below=20), tokens(1, 7, below=20, seed=1)
    first[0, 0] = second[0, 0] = bos
    fed = torch.cat([first, second], dim=1)
    positions, documents = document_positions(fed, bos)
    assert positions.tolist() == [[*range(11), *range(7)]] and documents.tolist() == [[1] * 11 + [2] * 7]
    with torch.no_grad():
        together = model(fed, positions, documents)
        assert torch.allclose(together[:, :11], model(first), atol=1e-4)
        assert torch.allclose(together[:, 11:], model(second), atol=1e-4)


def test_a_piece_cut_by_a_window_starts_at_position_zero_in_document_zero():
    positions, documents = document_positions(torch.tensor([[5, 6, TINY.bos, 7]]), TINY.bos)
    assert positions.tolist() == [[0, 1, 0, 1]] and documents.tolist() == [[0, 0, 1, 1]]


def test_no_token_sees_a_later_one():
    model, fed = random_model(), tokens(1, 20)
    changed = fed.clone()
    changed[0, 12:] = (changed[0, 12:] + 1) % 120
    with torch.no_grad():
        assert torch.equal(model(fed)[:, :12], model(changed)[:, :12])


@pytest.mark.parametrize("qk_norm", [False, True])
def test_keys_and_values_that_are_kept_give_the_same_logits(qk_norm):
    model, fed = random_model(replace(TINY, qk_norm=qk_norm, num_kv_heads=2)), tokens(2, 12, below=20)
    cache = Cache(model, slots=1, rows=2, candidates=1, prefix_tokens=0, suffix_tokens=10, answer_tokens=2)
    with torch.no_grad():
        kept = [
            cache.feed_rows(0, [0, 1], fed[:, :10], [10, 10]),
            *(cache.step(fed[:, i, None])[:, 0] for i in (10, 11)),
        ]
        torch.testing.assert_close(torch.stack(kept, dim=1), model(fed)[:, 9:], atol=2e-4, rtol=1e-4)


def test_queries_and_keys_of_any_scale_attend_alike_with_qk_norm():
    model, fed = random_model(replace(TINY, qk_norm=True)), tokens(1, 16)
    with torch.no_grad():
        before = model(fed)
        for layer in model.layers:
            layer.attention.q.weight.mul_(30.0)
            layer.attention.k.weight.mul_(0.5)
        torch.testing.assert_close(model(fed), before, atol=1e-3, rtol=1e-3)


def test_only_differences_of_positions_matter():
    model, fed = random_model(), tokens(1, 16)
    with torch.no_grad():
        assert torch.allclose(model(fed, torch.arange(16)[None] + 30), model(fed), atol=1e-3)


def test_weights_start_from_seed_and_name_alone():
    deep = LVM(replace(TINY, num_layers=3), seed=5).state_dict()
    for name, parameter in LVM(TINY, seed=5).state_dict().items():
        assert torch.equal(parameter, deep[name]), name
    assert not torch.equal(deep["embed.weight"], LVM(TINY, seed=6).state_dict()["embed.weight"])
    assert not torch.equal(deep["layers.0.attention.q.weight"], deep["layers.1.attention.q.weight"])
    drawn = LVM(replace(TINY, num_codes=2000, vocab_size=2100)).embed.weight.detach()
    assert abs(float(drawn.mean())) < 1e-3 and abs(float(drawn.std()) - 0.02) < 1e-3


def test_flops_follow_the_definition_of_mfu():
    config = preset("3b")
    matrices = PUBLISHED["3b"][0] - 8292 * 3200
    assert config.flops_per_token(4096) == 6 * matrices + 12 * 26 * 3200 * 4096
    assert config.flops_per_token(4096, causal=True) == 6 * matrices + 6 * 26 * 3200 * 4096


def test_impossible_shapes_are_refused_with_the_values():
    with pytest.raises(ModelError, match="100 is not a multiple of num_heads 3"):
        LVMConfig(hidden_size=100, num_heads=3)
    with pytest.raises(ModelError, match="num_kv_heads 3"):
        replace(TINY, num_kv_heads=3)
    with pytest.raises(ModelError, match="vocab_size 10 is below"):
        LVMConfig(num_codes=20, vocab_size=10)
    with pytest.raises(ModelError, match="z_loss is -1"):
        replace(TINY, z_loss=-1.0)
    assert LVMConfig(**asdict(TINY)) == TINY


def test_codes_that_start_from_a_codebook_are_near_where_their_vectors_are():
    model = LVM(TINY, seed=1)
    special = model.embed.weight[20:].clone()
    codebook = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    codebook[7] = codebook[3] + 0.01
    model.start_from_codebook(codebook, seed=1)
    for weight in (model.embed.weight, model.head.weight):
        distance = torch.cdist(weight[3:4], weight[:20])[0]
        assert distance.argsort()[:2].tolist() == [3, 7]
        assert 5 * distance[7] < distance.sort().values[2]
    torch.testing.assert_close(model.embed.weight[20:], special)
    again = LVM(TINY, seed=1)
    again.start_from_codebook(100 * codebook, seed=1)
    torch.testing.assert_close(again.embed.weight, model.embed.weight)
    with pytest.raises(ModelError, match="19 codes, the model 20"):
        model.start_from_codebook(codebook[1:])
