"""Which prompts begin alike, so that what they share is fed and kept once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Int64

LEAST_SHARED = 32  # tokens: less is not worth a level of its own


@dataclass(frozen=True)
class Group:
    shared: int  # leading tokens that all members have; less than any member is long
    members: list[int]  # numbers of prompts


def group_by_prefix(prompts: "Sequence[Int64[np.ndarray, 't']]", least: int = LEAST_SHARED) -> list[Group]:
    """Each prompt in one group. Prompts that share less than `least` tokens with their neighbours stand alone.

    In sorted order neighbours share most; a group takes the next one while that does not lose tokens that it saved.
    """
    order = sorted(range(len(prompts)), key=lambda number: prompts[number].astype(">i8").tobytes())
    groups: list[Group] = []
    for number in order:
        if groups:
            last = groups[-1]
            m = len(last.members)
            shared = min(
                last.shared, len(prompts[number]) - 1, common_length(prompts[last.members[-1]], prompts[number])
            )
            if shared >= least and m * shared >= (m - 1) * last.shared:
                groups[-1] = Group(shared, [*last.members, number])
                continue
        groups.append(Group(len(prompts[number]) - 1, [number]))
    return [group if len(group.members) > 1 else Group(0, group.members) for group in groups]


def common_length(a: "Int64[np.ndarray, 't']", b: "Int64[np.ndarray, 'u']") -> int:
    """Of how many tokens the common beginning is."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n
