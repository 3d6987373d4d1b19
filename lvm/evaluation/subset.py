"""Some of the items of annotated pictures: those of one class, say."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lvm.evaluation.annotated import Annotated

if TYPE_CHECKING:
    from lvm.evaluation.cases import Picture


class Subset:
    """Items `members` of `data`, renumbered; the channels are those that the first of them has."""

    def __init__(self, data: Annotated, members: Sequence[int], name: str):
        self.data, self.members, self.name = data, list(members), name
        self.ids = [data.ids[i] for i in self.members]
        self.groups = [data.groups[i] for i in self.members]
        self.labels = [data.labels[i] for i in self.members]
        self.channels = tuple(self.read(0, self.views(0)[0])) if self.members else ()

    def __len__(self) -> int:
        return len(self.members)

    def has(self, i: int, channel: str) -> bool:
        return channel in self.channels

    def may_ask(self, i: int) -> bool:
        return self.data.may_ask(self.members[i])

    def views(self, i: int) -> Sequence[int]:
        return self.data.views(self.members[i])

    def read(self, i: int, view: int) -> "Mapping[str, Picture]":
        return self.data.read(self.members[i], view)

    def fingerprint(self) -> str:
        return f"{self.data.fingerprint()} {self.name}"
