"""Parts of annotated pictures, and cases of several parts one after the other: folds, splits."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from lvm.evaluation.annotated import Annotated
from lvm.evaluation.cases import Case
from lvm.evaluation.pairing import PairCases

if TYPE_CHECKING:
    from lvm.evaluation.cases import Picture


class Subset:
    """Some items of `data`, in the order given."""

    def __init__(self, data: Annotated, items: Sequence[int], name: str):
        self._data, self._items = data, list(items)
        self.name, self.channels = name, data.channels
        self.ids = [data.ids[i] for i in items]
        self.groups = [data.groups[i] for i in items]
        self.labels = [data.labels[i] for i in items]

    def __len__(self) -> int:
        return len(self._items)

    def has(self, i: int, channel: str) -> bool:
        return self._data.has(self._items[i], channel)

    def may_ask(self, i: int) -> bool:
        return self._data.may_ask(self._items[i])

    def views(self, i: int) -> Sequence[int]:
        return self._data.views(self._items[i])

    def read(self, i: int, view: int, channels: Collection[str] | None = None) -> "Mapping[str, Picture]":
        return self._data.read(self._items[i], view, channels)

    def fingerprint(self) -> str:
        return f"{self._data.fingerprint()} {self._items}"


class Joined:
    """Cases of all parts. A case's `item` counts within its own part."""

    def __init__(self, parts: Iterable[PairCases]):
        self.parts = list(parts)
        self.broken = [line for part in self.parts for line in part.broken]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def case(self, i: int) -> Case:
        for part in self.parts:
            if i < len(part):
                return part.case(i)
            i -= len(part)
        raise IndexError(i)
