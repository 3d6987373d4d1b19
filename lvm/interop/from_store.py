"""Sentences out of a store or a plan, codes alone, uint16 [p, t] each: what `write_jsonl` and `write_delvm` take."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from lvm.data import TokenPlan
from lvm.runtime import UserError
from lvm.sentences.base import owns
from lvm.store import TokenStore

if TYPE_CHECKING:
    from jaxtyping import UInt16

AT_ONCE = 512  # sentences gathered together


def store_sentences(
    store: TokenStore, num_sentences: int | None = None, channel: str = "image"
) -> "Iterator[UInt16[np.ndarray, 'p t']]":
    """Each item that holds the channel, all its pictures as they are stored, in the order in which they were read.

    Held-out groups too: what a plan may show, only the plan knows. What was taken down is left out.
    """
    (items,) = np.nonzero(owns(store, channel) & store.admitted)
    items = items[np.lexsort((store.view[items], store.item[items]))][:num_sentences]
    if not len(items):
        raise UserError(f"no item of {store.path} has {channel} of its own; name another channel")
    for first in range(0, len(items), AT_ONCE):
        here = items[first : first + AT_ONCE]
        count = store.num_pictures[here].astype(np.int64)
        ends = np.cumsum(count)
        frame = np.arange(ends[-1]) - np.repeat(ends - count, count)
        yield from np.split(store.pictures(np.repeat(here, count), channel, frame), ends[:-1])


def plan_sentences(
    plan: TokenPlan, num_sentences: int | None = None, entry: str | None = None
) -> "Iterator[UInt16[np.ndarray, 'p t']]":
    """The first sentences of one entry (None: of one epoch), or of the mixture in the order of its schedule.

    Raises `UserError` for an unknown entry, and for a mixture without a number (it has no end) or with stages.
    """
    if entry is None:
        if num_sentences is None:
            raise UserError("a mixture has no end; say how many sentences, or name an entry to write one epoch of it")
        if len(plan.stages) > 1:
            raise UserError(f"this mixture has {len(plan.stages)} stages; name an entry, or a config without stages")
        row, total = -1, num_sentences
    else:
        names = [known.name for known in plan.entries]
        if entry not in names:
            raise UserError(f"no entry {entry!r} with a weight; known: {', '.join(names)}")
        row = names.index(entry)
        total = plan.entries[row].num_sentences if num_sentences is None else num_sentences
    for first in range(0, total, AT_ONCE):
        number = np.arange(first, min(first + AT_ONCE, total))
        rows, draws = plan.scheduled(plan.stages[0], number) if row < 0 else (np.full(len(number), row), number)
        sentences: dict[int, np.ndarray] = {}
        for at, here, shown in plan.compose(rows, draws):
            store = plan.entries[at].store
            codes = store.pictures(shown.item.reshape(-1), shown.channel.reshape(-1), shown.frame.reshape(-1))
            sentences |= zip(here.tolist(), codes.reshape(*shown.item.shape, -1))  # (s p) t -> s p t
        yield from (sentences[place] for place in range(len(number)))
