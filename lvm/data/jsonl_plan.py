"""`JsonLinesPlan`: a JSONL of the reference in the order of its lines, row for row as its own loader cuts it.

    plan = JsonLinesPlan.from_config({"seq_len": 4096, "jsonl": "dataset.jsonl"})
    plan.windows(next_window, 8).tokens         # int64 [8, T + 1]

Window i is stream[i T : i T + T + 1] of the endless stream that holds the file's sentences, again from the beginning
where it ends, and never shuffled: batch k of b rows of ytongbai/LVM (EasyLM/data.py) is windows k b .. k b + b - 1. The
interface is that of `TokenPlan`. The file does not say what answers what: the first picture of a line counts as input
and the others as answers. (The loss counts every target, as the reference's does.)
"""

import hashlib
import json
import math
import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from lvm.data.base import Window
from lvm.data.config import PLAN_VERSION
from lvm.data.jsonl_file import TokenFile
from lvm.runtime import UserError, build
from lvm.sentences import ANSWER, INPUT, ROLES, SPECIAL

if TYPE_CHECKING:
    from jaxtyping import Int8, Int32, Int64


@dataclass(frozen=True)
class JsonLinesConfig:
    seq_len: int  # T, tokens the model is fed; a window holds one more
    jsonl: str  # the file: a sentence a line, {"tokens": base64 of little-endian int32}; or s3://...
    specials: bool = True  # BOS and EOS round each line ('<|8192|>,{tokens},<|8193|>'); false: codes alone ('{tokens}')
    num_codes: int = 8192  # of the tokenizer
    tokens_per_picture: int = 256
    tokenizer_fingerprint: str = ""  # of the tokenizer whose codes they are; "": unknown, the file does not say
    packing: ClassVar[str] = "concat"

    def __post_init__(self) -> None:
        for name in ("seq_len", "num_codes", "tokens_per_picture"):
            if getattr(self, name) < 1:
                raise UserError(f"data.{name} is {getattr(self, name)}; use 1 or more")


class OnlyStage(NamedTuple):
    first_window: int = 0


@dataclass(frozen=True)
class Sentences:
    """Neighbouring sentences of the stream."""

    number: "Int64[np.ndarray, 's']"  # in the stream, from 0
    passes: "Int64[np.ndarray, 's']"  # how often the file was read before
    row: "Int64[np.ndarray, 's']"  # sentence of the file
    start: "Int64[np.ndarray, 's']"  # its first token, from the first token asked for; not above 0 for the first
    codes: "Int64[np.ndarray, 's']"  # how many


class JsonLinesPlan:
    """Build with `from_config`."""

    def __init__(self, config: JsonLinesConfig, file: TokenFile):
        self.config, self.file = config, file
        self.seq_len, self.num_codes = config.seq_len, config.num_codes
        self.tokens_per_picture, self.tokenizer_fingerprint = config.tokens_per_picture, config.tokenizer_fingerprint
        self.bos, self.eos, self.pad = self.num_codes, self.num_codes + 1, self.num_codes + 2
        self.names = (PurePosixPath(config.jsonl).stem,)
        self.stores = {self.names[0]: PicturesOfFile(config, file)}
        self.stages = [OnlyStage()]
        self.extra = 2 if config.specials else 0  # tokens of a sentence beside its codes
        self.tokens_per_pass = int(file.index.codes_before[-1]) + self.extra * len(file)

    @classmethod
    def from_config(cls, config: "JsonLinesConfig | Mapping[str, Any]") -> "JsonLinesPlan":
        """Raises `UserError` for a file that is missing, empty or damaged, and for unknown keys."""
        if not isinstance(config, JsonLinesConfig):
            config = build(JsonLinesConfig, config, "data")
        plan = cls(config, TokenFile(config.jsonl, config.num_codes))
        if parts := plan.num_with_part_of_a_picture():
            warnings.warn(
                f"{config.jsonl}: {parts:,} of {len(plan.file):,} lines are no whole pictures of "
                f"{config.tokens_per_picture} codes and are read as they are; is data.tokens_per_picture right?",
                stacklevel=2,
            )
        return plan

    def num_with_part_of_a_picture(self) -> int:
        lengths = self.file.index.lengths
        return sum(count for codes, count in lengths.items() if codes % self.tokens_per_picture)

    # The stream.

    def sentences(self, first: int, end: int) -> Sentences:
        """Those with a token among tokens first .. end-1 of the stream."""
        before = self.file.index.codes_before
        number = np.arange(self._sentence_at(first), self._sentence_at(end - 1) + 1, dtype=np.int64)
        passes, row = np.divmod(number, len(self.file))
        start = passes * self.tokens_per_pass + before[row] + self.extra * row - first
        return Sentences(number, passes, row, start, before[row + 1] - before[row])

    def _sentence_at(self, token: int) -> int:
        passes, inside = divmod(token, self.tokens_per_pass)
        count, before = len(self.file), self.file.index.codes_before
        row = bisect_right(range(count), inside, key=lambda row: int(before[row]) + self.extra * row) - 1
        return passes * count + row

    def _tokens(self, sentences: Sentences) -> "Int32[np.ndarray, 'tokens']":
        codes = self.file.codes(sentences.row.tolist())
        if self.extra:
            bos, eos = np.array([self.bos], np.int32), np.array([self.eos], np.int32)
            codes = [part for of_sentence in codes for part in (bos, of_sentence, eos)]
        return np.concatenate(codes, dtype=np.int32)

    def _roles(self, sentences: Sentences) -> "Int8[np.ndarray, 'tokens']":
        given = np.minimum(sentences.codes, self.tokens_per_picture)
        special = np.full_like(given, self.extra // 2)
        lengths = np.stack([special, given, sentences.codes - given, special], axis=1)  # s 4
        kinds = np.array([SPECIAL, INPUT, ANSWER, SPECIAL], np.int8)
        return np.repeat(np.tile(kinds, len(given)), lengths.reshape(-1))

    # Windows.

    def window(self, i: int) -> Window:
        """Window i, each field [T+1]."""
        batch = self.windows(i, 1)
        return Window(batch.tokens[0], batch.source[0], batch.role[0])

    def __getitem__(self, i: int) -> "Int64[np.ndarray, 't']":
        """The tokens of window i alone."""
        return self.window(i).tokens

    def windows(self, i: int, n: int) -> Window:
        """Windows i .. i+n-1, each field [n, T+1]. Raises `UserError` for a damaged line."""
        if i < 0 or n < 1:
            raise IndexError(f"windows {i} .. {i + n - 1}")
        size = n * self.seq_len + 1
        sentences = self.sentences(i * self.seq_len, i * self.seq_len + size)
        first = -int(sentences.start[0])
        tokens, role = (
            np.lib.stride_tricks.sliding_window_view(stream[first : first + size], self.seq_len + 1)[:: self.seq_len]
            for stream in (self._tokens(sentences), self._roles(sentences))
        )
        return Window(tokens.astype(np.int64), np.zeros(tokens.shape, np.int16), np.ascontiguousarray(role))

    def target_roles(self, i: int, n: int) -> "Int64[np.ndarray, '4']":
        """How many targets (all tokens of a window but its first) of each role windows i .. i+n-1 hold."""
        size = n * self.seq_len
        sentences = self.sentences(i * self.seq_len + 1, i * self.seq_len + 1 + size)
        first = sentences.start + self.extra // 2
        answers = first + np.minimum(sentences.codes, self.tokens_per_picture)
        borders = np.clip([first, answers, first + sentences.codes], 0, size)
        totals = np.zeros(len(ROLES), np.int64)
        totals[[INPUT, ANSWER]] = np.diff(borders, axis=0).sum(axis=1)
        totals[SPECIAL] = size - totals.sum()
        return totals

    def shards(self, i: int, n: int) -> list[tuple[str, int]]:
        """None: it is one file."""
        return []

    def check_files(self) -> None:
        self.file.check()

    # What the plan says of itself.

    def explain(self, i: int) -> list[dict[str, Any]]:
        """The sentences of window i: line of the file, place, and which picture stands where; parts are not listed."""
        first = i * self.seq_len
        sentences = self.sentences(first, first + self.seq_len + 1)
        columns = (sentences.number, sentences.passes, sentences.row, sentences.start, sentences.codes)
        return [
            {
                **self._of_file,
                "stage": 0,
                "sentence": number,
                "draw": number,
                "epoch": passes,
                "start": start,
                "end": start + codes + self.extra,
                "codes": codes,
                "pictures": self._pictures(row, codes),
            }
            for number, passes, row, start, codes in zip(*(column.tolist() for column in columns))
            if codes + self.extra
        ]

    def samples(self, draw: int = 0) -> list[dict[str, Any]]:
        """One sentence of the file, in the words of `explain`."""
        row = draw % len(self.file)
        before, after = self.file.index.codes_before[row : row + 2].tolist()
        return [{**self._of_file, "draw": draw, "pictures": self._pictures(row, after - before)}]

    @property
    def _of_file(self) -> dict[str, str]:
        return {"entry": self.names[0], "source": self.names[0], "recipe": "jsonl"}

    def _pictures(self, row: int, codes: int) -> list[dict[str, Any]]:
        line = int(self.file.index.line[row])
        return [
            {
                "item": row,
                "id": f"{PurePosixPath(self.config.jsonl).name}:{line}",
                "view": 0,
                "channel": "image",
                "frame": frame,
                "role": ROLES[ANSWER if frame else INPUT],
                "store": self.config.jsonl,
                "line": line,
                "byte": int(self.file.index.start[row]),
            }
            for frame in range(codes // self.tokens_per_picture)
        ]

    def describe(self, total_tokens: float | None = None) -> list[dict[str, Any]]:
        """The one row of `TokenPlan.describe`; a period is the file. Epochs are those in so many picture tokens."""
        sizes = sorted({codes // self.tokens_per_picture for codes in self.file.index.lengths})
        return [
            {
                "stage": 0,
                **self._of_file,
                "units": len(self.file),
                "sentences": len(self.file),
                "pictures": sizes[0] if len(sizes) == 1 else f"{sizes[0]}..{sizes[-1]}",
                "tokens": self.tokens_per_pass,
                "sentences_per_period": len(self.file),
                "sentence_share": 1.0,
                "token_share": 1.0,
                "epochs": total_tokens and total_tokens / int(self.file.index.codes_before[-1]),
                "left_out": {},
            }
        ]

    def waste(self, stage: int = 0) -> float:
        """Share of tokens that is PAD."""
        return 0.0

    def left_out(self) -> Counter[str]:
        """Nothing is."""
        return Counter()

    @cached_property
    def facts(self) -> dict[str, Any]:
        """All that decides the bytes of windows, as JSON. The path is not among it."""
        return {
            "plan_version": PLAN_VERSION,
            "jsonl": {"sha256": self.file.index.sha256, "specials": self.config.specials},
            "vocabulary": {"num_codes": self.num_codes, "bos": self.bos, "eos": self.eos, "pad": self.pad},
            "tokens_per_picture": self.tokens_per_picture,
            "seq_len": self.seq_len,
            "packing": self.config.packing,
            "stages": [{"from_window": 0}],
        }

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of `facts`: equal fingerprint, equal bytes."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()


class PicturesOfFile:
    """What is asked of a store to draw what a window shows: each line an item, its pictures the frames of a clip."""

    channels = ("image",)

    def __init__(self, config: JsonLinesConfig, file: TokenFile):
        self._file, self._tokens = file, config.tokens_per_picture
        self.tokenizer_fingerprint, self.num_codes = config.tokenizer_fingerprint, config.num_codes
        self.where = config.jsonl
        side = math.isqrt(self._tokens)
        self.grid = (side, side) if side * side == self._tokens else (1, self._tokens)

    def bit(self, channel: str) -> int:
        return self.channels.index(channel)

    def pictures(
        self, items: "Int64[np.ndarray, 'k']", channel: Any, frames: "Int64[np.ndarray, 'k']"
    ) -> "Int64[np.ndarray, 'k t']":
        sentences = self._file.codes(items.tolist())
        starts = (frames * self._tokens).tolist()
        return np.stack([codes[start : start + self._tokens] for codes, start in zip(sentences, starts)])
