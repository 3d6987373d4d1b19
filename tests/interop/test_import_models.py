"""Folders that others wrote: the released 7B's layout and DeLVM's export, in miniature, read to equal logits."""

import json

import pytest
import torch
from safetensors.torch import save_file

from lvm.commands.export import export
from lvm.model import LVM, ModelError

RELEASED = {  # the published folder's keys; it names neither BOS, EOS nor PAD
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": 8292,
}
DELVM = {  # what its convert2hf.py saves of an InternLMConfig
    "architectures": ["InternLMForCausalLM"],
    "auto_map": {
        "AutoConfig": "modeling_internlm.InternLMConfig",
        "AutoModel": "modeling_internlm.InternLMForCausalLM",
        "AutoModelForCausalLM": "modeling_internlm.InternLMForCausalLM",
    },
    "bias": True,
    "hidden_act": "silu",
    "hidden_size": 48,
    "initializer_range": 0.02,
    "intermediate_size": 256,
    "max_position_embeddings": 2048,
    "model_type": "internlm",
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": 8192,
}


def random_state(config, biases):
    """Tensors as both folders name them, in float16."""
    generator = torch.Generator().manual_seed(1)
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    normal = lambda *shape: (torch.randn(shape, generator=generator) * 0.15).half()
    state = {"model.embed_tokens.weight": normal(v, d), "lm_head.weight": normal(v, d)}
    state["model.norm.weight"] = normal(d) + 1
    for layer in range(config["num_hidden_layers"]):
        here = f"model.layers.{layer}."
        for name in "qkvo":
            state[f"{here}self_attn.{name}_proj.weight"] = normal(d, d)
            if biases:
                state[f"{here}self_attn.{name}_proj.bias"] = normal(d)
        for name, shape in (("gate", (f, d)), ("up", (f, d)), ("down", (d, f))):
            state[f"{here}mlp.{name}_proj.weight"] = normal(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            state[f"{here}{name}.weight"] = normal(d) + 1
    return state


def logits_by_hand(state, config, tokens):
    """One sentence through the decoder, in float64: rotations are products of complex numbers, heads go one by one."""
    w = {name: tensor.double() for name, tensor in state.items()}
    heads, t = config["num_attention_heads"], len(tokens)
    size = config["hidden_size"] // heads
    angles = torch.arange(t)[:, None] * 10_000.0 ** (-torch.arange(0, size, 2).double() / size)
    turn = torch.polar(torch.ones_like(angles), angles)

    def norm(x, name):
        return x / (x.square().mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt() * w[name]

    def rotated(x):
        y = torch.complex(x[:, : size // 2], x[:, size // 2 :]) * turn
        return torch.cat([y.real, y.imag], dim=-1)

    def linear(y, name):
        return y @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    x = w["model.embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        here = f"model.layers.{layer}."
        y = norm(x, f"{here}input_layernorm.weight")
        q, k, v = (linear(y, f"{here}self_attn.{name}_proj").split(size, dim=-1) for name in "qkv")
        answers = []
        for head in range(heads):
            scores = rotated(q[head]) @ rotated(k[head]).T / size**0.5
            scores = scores.masked_fill(torch.ones(t, t).triu(1).bool(), float("-inf"))
            answers.append(scores.softmax(-1) @ v[head])
        x = x + linear(torch.cat(answers, dim=-1), f"{here}self_attn.o_proj")
        y = norm(x, f"{here}post_attention_layernorm.weight")
        gate = linear(y, f"{here}mlp.gate_proj")
        x = x + linear(gate * gate.sigmoid() * linear(y, f"{here}mlp.up_proj"), f"{here}mlp.down_proj")
    return norm(x, "model.norm.weight") @ w["lm_head.weight"].T


def write_released(folder, state):
    names = list(state)
    shards = [names[0::3], names[1::3], names[2::3]]
    files = [f"model-0000{i + 1}-of-00003.safetensors" for i in range(3)]
    for file, shard in zip(files, shards):
        save_file({name: state[name] for name in shard}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, shard in zip(files, shards) for name in shard}
    index = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(RELEASED))


def write_delvm(folder, state, **change):
    half = DELVM["hidden_size"] // DELVM["num_attention_heads"] // 2
    kept = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(half) for i in range(2)}
    torch.save(state | kept, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(DELVM | change))
    code = f"from pathlib import Path\nPath({str(folder / 'it_ran')!r}).touch()\nraise SystemExit(1)\n"
    (folder / "modeling_internlm.py").write_text(code)


TOKENS = torch.randint(8192, (60,), generator=torch.Generator().manual_seed(2))


def test_the_released_layout_is_read_and_comes_out_with_its_special_ids(tmp_path):
    transformers = pytest.importorskip("transformers")
    state = random_state(RELEASED, biases=False)
    write_released(tmp_path, state)
    model = LVM.from_pretrained(tmp_path)
    config = model.config
    assert (config.num_codes, config.bos, config.prompt_bos, config.tokens_per_picture) == (8192, 8192, False, 256)
    with torch.no_grad():
        torch.testing.assert_close(
            model(TOKENS[None])[0].double(), logits_by_hand(state, RELEASED, TOKENS), atol=1e-3, rtol=1e-4
        )
    export(tmp_path, tmp_path / "again", torch.float16)
    again = LVM.from_pretrained(tmp_path / "again", dtype=None)
    assert all(
        p.dtype == torch.float16 and torch.equal(p, q.half()) for p, q in zip(again.parameters(), model.parameters())
    )
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float32)
    assert (opened.config.bos_token_id, opened.config.eos_token_id, opened.config.pad_token_id) == (8192, 8193, 8194)
    assert (
        opened.generation_config.max_new_tokens == 256
    )  # left as they are, ids 1 and 2 would begin and end a sentence


def test_delvms_export_is_read_without_running_its_code_and_comes_out_as_a_llama(tmp_path):
    transformers = pytest.importorskip("transformers")
    state = random_state(DELVM, biases=True)
    write_delvm(tmp_path, state)
    model, expected = LVM.from_pretrained(tmp_path), logits_by_hand(state, DELVM, TOKENS)
    config = model.config
    assert (config.num_codes, config.tokens_per_picture, config.max_position) == (8192, 256, 2048)
    assert config.attention_bias and not config.has_special_tokens and not config.prompt_bos
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS[None])[0].double(), expected, atol=1e-3, rtol=1e-4)
    with pytest.raises(ModelError, match="prompted, not trained"):
        _ = config.bos

    _, stored = export(tmp_path, tmp_path / "as stored")
    assert stored == torch.float16
    export(tmp_path, tmp_path / "llama", torch.float32)
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "llama").eval()
    assert type(opened).__name__ == "LlamaForCausalLM"
    with torch.no_grad():
        torch.testing.assert_close(opened(TOKENS[None]).logits[0].double(), expected, atol=1e-3, rtol=1e-4)
    assert opened.generation_config.eos_token_id is None and opened.generation_config.suppress_tokens is None
    assert not (tmp_path / "it_ran").exists()


def test_delvms_export_without_biases_is_read_too(tmp_path):
    state = random_state(DELVM, biases=False)
    write_delvm(tmp_path, state, bias=False)
    model = LVM.from_pretrained(tmp_path)
    assert not model.config.attention_bias
    with torch.no_grad():
        by_hand = logits_by_hand(state, DELVM, TOKENS)
        torch.testing.assert_close(model(TOKENS[None])[0].double(), by_hand, atol=1e-3, rtol=1e-4)
