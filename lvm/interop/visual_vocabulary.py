"""Codes as text: one character a code, and the tokenizer files that Hugging Face tools and sentencepiece open.

Code k becomes chr(FIRST + k), so programs that take text take prompts of pictures. FIRST is 0x4E00, the start of the
CJK ideographs (8,192 codes end at 0x6DFF); a codebook that would reach the surrogates starts at plane 2, 0x20000.

    text = text_of_codes([17, 4, 8191], 8192)            # what the files' tokenizers read
    codes_of_text(text, 8192)                            # [17, 4, 8191]
    write_vocabulary(folder, config)                     # tokenizer.model, tokenizer.json, tokenizer_config.json

Ids are those of the model: codes, then <|bos|>, <|eos|>, <|pad|>, <|unk|> and the spare ones up to vocab_size. A model
without special tokens has only <|unk|>, which no text of codes contains, just beyond its vocabulary.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lvm.model import LVMConfig
from lvm.runtime import UserError, atomic_write, write_json

BASIC, SURROGATES, PLANE_2, END = 0x4E00, 0xD800, 0x20000, 0x110000
NORMAL_UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # sentencepiece's types of a piece
BPE = 2  # and of a model


def first_character(num_codes: int) -> int:
    """The code point of code 0. Raises `UserError` where Unicode has too few."""
    if num_codes <= SURROGATES - BASIC:
        return BASIC
    if num_codes <= END - PLANE_2:
        return PLANE_2
    raise UserError(f"{num_codes} codes do not fit Unicode, one character each; at most {END - PLANE_2} do")


def text_of_codes(codes: Sequence[int], num_codes: int) -> str:
    first = first_character(num_codes)
    for code in codes:
        if not 0 <= code < num_codes:
            raise UserError(f"{code} is no code; codes are 0..{num_codes - 1}")
    return "".join(chr(first + code) for code in codes)


def codes_of_text(text: str, num_codes: int) -> list[int]:
    first = first_character(num_codes)
    for place, character in enumerate(text):
        if not 0 <= ord(character) - first < num_codes:
            raise UserError(f"character {place} of the text, {character!r}, stands for no code of {num_codes}")
    return [ord(character) - first for character in text]


def special_pieces(config: LVMConfig) -> dict[str, int]:
    """Names and ids of what is no code, in the order of their ids, without a gap."""
    names = ["<|bos|>", "<|eos|>", "<|pad|>"] if config.has_special_tokens else []
    names.append("<|unk|>")
    spare = config.vocab_size - config.num_codes - len(names)
    names += [f"<|spare_{i}|>" for i in range(spare)]
    return {name: config.num_codes + i for i, name in enumerate(names)}


def write_vocabulary(folder: Path, config: LVMConfig) -> None:
    atomic_write(folder / "tokenizer.model", sentencepiece_model(config))
    write_json(folder / "tokenizer.json", tokenizer_json(config))
    write_json(folder / "tokenizer_config.json", tokenizer_config(config))


# The files of the tokenizers library and of transformers.


def tokenizer_json(config: LVMConfig) -> dict[str, Any]:
    """A BPE of single characters without merges; BOS before a text where prompts begin with it."""
    special = special_pieces(config)
    characters = text_of_codes(range(config.num_codes), config.num_codes)
    begins = config.prompt_bos and config.has_special_tokens
    text, bos = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<|bos|>", "type_id": 0}}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id_, "content": name, **flags} for name, id_ in special.items()],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, text] if begins else [text],
            "pair": [bos, text, {"Sequence": {"id": "B", "type_id": 0}}] if begins else [text, text],
            "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [config.bos], "tokens": ["<|bos|>"]}}
            if begins
            else {},
        },
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<|unk|>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {character: code for code, character in enumerate(characters)} | special,
            "merges": [],
        },
    }


def tokenizer_config(config: LVMConfig) -> dict[str, Any]:
    roles = {f"{role}_token": f"<|{role}|>" for role in ("bos", "eos", "pad", "unk")}
    if not config.has_special_tokens:
        roles = {"unk_token": "<|unk|>"}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": config.prompt_bos and config.has_special_tokens,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_position,
        "padding_side": "left",
        **roles,
    }


# sentencepiece's ModelProto, https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto


def sentencepiece_model(config: LVMConfig) -> bytes:
    """A model whose ids are the codes; one that sentencepiece trains would put unk, bos and eos on ids 0, 1 and 2."""
    special = special_pieces(config)
    pieces = [_piece(character, USER_DEFINED) for character in text_of_codes(range(config.num_codes), config.num_codes)]
    pieces += [_piece(name, NORMAL_UNKNOWN if name == "<|unk|>" else CONTROL) for name in special]
    ids = {40: "<|unk|>", 41: "<|bos|>", 42: "<|eos|>", 43: "<|pad|>"}  # numbers of the fields unk_id .. pad_id
    trainer = _number(3, BPE) + _number(4, len(pieces))
    trainer += b"".join(_number(field, special.get(name, -1)) for field, name in ids.items())
    trainer += b"".join(_bytes(field + 5, name.encode()) for field, name in ids.items())
    as_it_is = _bytes(1, b"identity") + _number(3, 0) + _number(4, 0) + _number(5, 0)  # no dummy prefix, keeps spaces
    return b"".join(_bytes(1, piece) for piece in pieces) + _bytes(2, trainer) + _bytes(3, as_it_is)


def _piece(text: str, kind: int) -> bytes:
    return _bytes(1, text.encode()) + _number(3, kind)


def _number(field: int, value: int) -> bytes:
    return bytes([*_varint(field << 3), *_varint(value & 2**64 - 1)])


def _bytes(field: int, value: bytes) -> bytes:
    return bytes([*_varint(field << 3 | 2), *_varint(len(value))]) + value


def _varint(value: int) -> Iterator[int]:
    while value > 0x7F:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value
