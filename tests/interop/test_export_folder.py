"""An exported folder in other programs: transformers' logits and answers, tokenizer files, the card, wider heads."""

import re
from dataclasses import replace

import pytest
import torch
from exported_models import KINDS, SMALL, exported, lively, prompts

from lvm.commands.export import export
from lvm.inference import generate
from lvm.interop.padded_heads import pad_config
from lvm.interop.visual_vocabulary import codes_of_text, text_of_codes, write_vocabulary
from lvm.model import LVM, LVMConfig
from lvm.runtime import UserError

transformers = pytest.importorskip("transformers")


def theirs(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_answers_of_transformers_are_ours(tmp_path, kind):
    model = lively(replace(SMALL, **KINDS[kind]))
    codes, fed = prompts(model.config)
    opened = theirs(exported(model, tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(opened(fed).logits, model(fed), atol=2e-4, rtol=1e-4)
    answer = opened.generate(fed, do_sample=False, max_new_tokens=70, min_new_tokens=70)[:, fed.shape[1] :]
    ours = generate(model, codes, num_tokens=70, temperature=0.0).tokens[:, 0]
    assert torch.equal(answer, ours) and len(ours.unique()) > 5


@pytest.mark.parametrize("writer", ["export", "save_pretrained"])
def test_asked_for_nothing_else_transformers_draws_one_picture_of_all_codes(tmp_path, writer):
    model = LVM(SMALL)
    with torch.no_grad():  # what is no code is likelier than any code
        model.norm.weight.copy_(torch.linspace(1, 2, 40))
        hidden = model.hidden(prompts(SMALL)[1][:1])[0, -1]
        model.head.weight[SMALL.num_codes :] += 10 * hidden / hidden.norm()
    opened = theirs(exported(model, tmp_path) if writer == "export" else exported(model, tmp_path).parent / "saved")
    fed = prompts(SMALL)[1][:1].repeat(1024, 1)
    assert opened(fed[:1]).logits[0, -1].argmax() >= SMALL.num_codes
    torch.manual_seed(0)
    answer = opened.generate(fed)[:, fed.shape[1] :]
    assert answer.shape == (1024, 4) and answer.max() < SMALL.num_codes
    assert len(answer[:, 0].unique()) > 100  # the default would keep 50


@pytest.mark.parametrize("begin", [True, False])
def test_the_tokenizer_puts_bos_where_prompts_begin_with_it(tmp_path, begin):
    folder = exported(lively(replace(SMALL, prompt_bos=begin)), tmp_path)
    codes, fed = prompts(replace(SMALL, prompt_bos=begin), count=1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    read = tokenizer(text_of_codes(codes[0].tolist(), 120), return_tensors="pt")
    assert torch.equal(read["input_ids"], fed)
    answer = theirs(folder).generate(**read)[0, fed.shape[1] :]
    assert codes_of_text(tokenizer.decode(answer), 120) == answer.tolist()


def test_texts_of_different_lengths_are_answered_together_as_alone(tmp_path):
    model = lively(SMALL)
    folder = exported(model, tmp_path)
    tokenizer, opened = transformers.AutoTokenizer.from_pretrained(folder), theirs(folder)
    rows = [codes[: 8 + 5 * i] for i, codes in enumerate(prompts(SMALL)[0])]
    read = tokenizer([text_of_codes(row.tolist(), 120) for row in rows], padding=True, return_tensors="pt")
    answer = opened.generate(**read, do_sample=False)[:, read["input_ids"].shape[1] :]
    assert torch.equal(answer, generate(model, rows, num_tokens=4, temperature=0.0).tokens[:, 0])


@pytest.mark.parametrize(
    ("num_codes", "vocab_size"), [(20, 120), (1024, 1124), (8192, 8292), (8192, 8192), (8192, 8195), (40_000, 40_100)]
)
def test_every_id_goes_through_both_tokenizers_and_back(tmp_path, num_codes, vocab_size):
    import sentencepiece

    special = vocab_size > num_codes
    config = LVMConfig(num_codes=num_codes, vocab_size=vocab_size, prompt_bos=special, max_position=10**6)
    write_vocabulary(tmp_path, config)
    text, codes = text_of_codes(range(num_codes), num_codes), list(range(num_codes))
    assert codes_of_text(text, num_codes) == codes

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert pieces.encode(text) == codes and pieces.decode(codes) == text
    every = list(range(vocab_size))
    assert pieces.piece_to_id(pieces.id_to_piece(every)) == every
    named = (pieces.bos_id(), pieces.eos_id(), pieces.pad_id())
    assert named == ((config.bos, config.eos, config.pad) if special else (-1, -1, -1))

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer(text)["input_ids"] == [num_codes] * special + codes
    assert tokenizer.decode(codes) == text
    assert tokenizer.encode(tokenizer.decode(every), add_special_tokens=False) == every
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (
        named if special else (None,) * 3
    )
    assert tokenizer.unk_token_id == pieces.unk_id() and tokenizer("x")["input_ids"][-1] == pieces.unk_id()


def test_what_stands_for_no_code_is_refused_in_one_line():
    with pytest.raises(UserError, match="character 1 of the text, 'x'"):
        codes_of_text("\u4e00x", 20)
    with pytest.raises(UserError, match="20 is no code"):
        text_of_codes([3, 20], 20)
    with pytest.raises(UserError, match="do not fit Unicode"):
        text_of_codes([], 10**6)


def snippets(folder):
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)


@pytest.mark.parametrize("kind", ["llama", "without BOS", "qk_norm"])
def test_the_cards_python_runs_in_the_folder(tmp_path, monkeypatch, kind):
    model = lively(replace(SMALL, tokenizer_fingerprint="ab12", **KINDS[kind]))
    folder = exported(model, tmp_path)
    monkeypatch.chdir(folder)
    in_transformers, in_ours, in_vllm = snippets(folder)
    for code in (in_transformers, in_ours):
        names = {}
        exec(code, names)
        assert len(names["answer"]) == 4 and max(names["answer"]) < 120
    compile(in_vllm, "card", "exec")
    assert "allowed_token_ids=list(range(120))" in in_vllm
    card = (folder / "README.md").read_text()
    assert f"{model.config.num_params:,}" in card and "`ab12`" in card and "licence | not stated" in card


@pytest.mark.parametrize("change", [{}, {"num_kv_heads": 2, "attention_bias": True}, {"tie_embeddings": True}])
def test_heads_padded_with_zeros_give_equal_logits_here_and_in_transformers(tmp_path, change):
    model = lively(replace(SMALL, **change))
    folder = exported(model, tmp_path, head_size=16)
    wide, opened, (_, fed) = LVM.from_pretrained(folder), theirs(folder), prompts(SMALL, length=100)
    assert (model.config.head_size, wide.config.head_size, opened.config.head_dim) == (10, 16, 16)
    assert wide.layers[0].attention.q.weight.shape == (64, 40)
    with torch.no_grad():
        for logits in (wide(fed), opened(fed).logits):
            torch.testing.assert_close(logits, model(fed), atol=1e-3, rtol=1e-3)


def test_the_frequencies_of_wider_heads_are_those_of_the_narrow_ones():
    narrow = LVMConfig(hidden_size=3200, num_heads=32)
    wide = pad_config(narrow, 128)
    pairs = torch.arange(50, dtype=torch.float64)
    before = narrow.rope_theta ** (-2 * pairs / 100)
    assert torch.allclose(wide.rope_theta ** (-2 * pairs / 128), before, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "head_size", "message"),
    [({}, 8, "at least the model's 10"), ({}, 13, "must be even"), ({"qk_norm": True}, 16, "qk_norm")],
)
def test_heads_that_cannot_be_padded_are_refused(tmp_path, change, head_size, message):
    LVM(replace(SMALL, **change)).save_pretrained(tmp_path / "saved")
    with pytest.raises(UserError, match=message):
        export(tmp_path / "saved", tmp_path / "hf", head_size=head_size)
    assert not (tmp_path / "hf").exists()
