"""What training, the loader and the commands ask of a plan, whatever it is made from."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Int8, Int16, Int64


@dataclass(frozen=True)
class Window:
    """T + 1 tokens (the model is fed the first T), of one window or of n: shapes [T+1] or [n, T+1]."""

    tokens: "Int64[np.ndarray, '*n t']"
    source: "Int16[np.ndarray, '*n t']"  # index of the entry, -1 for PAD
    role: "Int8[np.ndarray, '*n t']"  # input 0, answer 1, special 2 (BOS, EOS), pad 3


class Plan(Protocol):
    """An endless list of windows, each a pure function of the plan and its number: `TokenPlan`, `JsonLinesPlan`."""

    seq_len: int  # T
    tokens_per_picture: int
    num_codes: int
    bos: int
    eos: int
    pad: int

    @property
    def names(self) -> tuple[str, ...]:
        """Of the entries that `Window.source` counts."""

    @property
    def stores(self) -> Mapping[str, Any]:
        """Source -> where its pictures are."""

    @property
    def stages(self) -> Sequence[Any]:
        """Each with a `first_window`."""

    @property
    def config(self) -> Any:
        """With `packing` among it."""

    @property
    def tokenizer_fingerprint(self) -> str:
        """Of the tokenizer whose codes these are; empty where nobody knows."""

    @property
    def fingerprint(self) -> str:
        """Hex sha256 of `facts`: equal fingerprint, equal bytes."""

    @property
    def facts(self) -> dict[str, Any]:
        """All that decides the bytes of windows, as JSON; a refused resume shows which differ."""

    def window(self, i: int) -> Window: ...
    def windows(self, i: int, n: int) -> Window: ...
    def __getitem__(self, i: int) -> "Int64[np.ndarray, 't']": ...
    def target_roles(self, i: int, n: int) -> "Int64[np.ndarray, '4']":
        """How many targets of each role windows i .. i+n-1 hold, from lengths alone."""

    def shards(self, i: int, n: int) -> list[tuple[str, int]]:
        """(source, number of the shard) that windows i .. i+n-1 are read from, in the order of their first use."""

    def check_files(self) -> None:
        """Raise `UserError` that names what it reads and is missing or changed."""

    def explain(self, i: int) -> list[dict[str, Any]]:
        """The sentences of window i, and the origin of each of their pictures."""

    def samples(self, draw: int = 0) -> list[dict[str, Any]]:
        """Sentence `draw` of each entry, in the words of `explain`."""

    def describe(self, total_tokens: float | None = None) -> list[dict[str, Any]]:
        """One row for each stage and entry: what `lvm data plan` prints."""

    def waste(self, stage: int = 0) -> float:
        """Share of tokens that is PAD."""

    def left_out(self) -> Counter[str]:
        """Reason -> items that no sentence may show, summed over entries."""
