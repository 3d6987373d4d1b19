"""From weights, epochs and caps to the share of sentences that each entry has in a period."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from lvm.runtime import UserError

if TYPE_CHECKING:
    from jaxtyping import Float64


@dataclass(frozen=True)
class Wish:
    """What is asked of an entry, and what it holds."""

    name: str
    pictures: int  # of a sentence
    epoch_tokens: int  # picture tokens
    weight: float | None
    epochs: float | None = None
    max_epochs: float | None = None


def sentence_shares(
    wishes: Sequence[Wish], weights_by: Literal["tokens", "sentences"], total_tokens: float | None = None
) -> "Float64[np.ndarray, 'entries']":
    """The share of sentences of each entry. Raises `UserError` for wishes that contradict one another."""
    pictures = np.array([wish.pictures for wish in wishes], np.float64)
    tokens = np.array([wish.epoch_tokens for wish in wishes], np.float64)
    weight = np.array([wish.weight or 0.0 for wish in wishes])
    if weights_by == "sentences":
        weight = weight * pictures
    asked = np.array([wish.epochs or 0.0 for wish in wishes]) * tokens
    if total_tokens is None:
        if weight.any() and asked.any():
            named = next(wish.name for wish in wishes if wish.epochs)
            raise UserError(
                f"entry {named!r} has epochs beside entries of weights; say in data.total_tokens how long the run is"
            )
        if any(wish.max_epochs for wish in wishes):
            named = next(wish.name for wish in wishes if wish.max_epochs)
            raise UserError(f"entry {named!r} has max_epochs; say in data.total_tokens how long the run is")
        share = (weight if weight.any() else asked) / pictures
        return share / share.sum()
    fixed = asked / total_tokens
    most = np.array([wish.max_epochs or np.inf for wish in wishes]) * tokens / total_tokens
    rest = 1 - fixed.sum()
    if rest < -1e-6 or (rest > 1e-6 and not weight.any()):
        raise UserError(
            f"the entries' epochs make {asked.sum():.4g} tokens, data.total_tokens is {total_tokens:.4g}; "
            + ("raise it or ask for fewer epochs" if rest < 0 else "lower it or give an entry a weight")
        )
    if rest < 1e-6 and weight.any():
        named = next(wish.name for wish in wishes if wish.weight)
        raise UserError(
            f"the entries' epochs make all of data.total_tokens {total_tokens:.4g}, so that nothing is left for entry "
            f"{named!r}; raise it, ask for fewer epochs or give that entry weight 0"
        )
    share = (fixed + max(rest, 0.0) * shared(weight, most / max(rest, 1e-12), total_tokens * rest)) / pictures
    return share / share.sum()


def shared(
    weight: "Float64[np.ndarray, 'entries']", most: "Float64[np.ndarray, 'entries']", tokens: float
) -> "Float64[np.ndarray, 'entries']":
    """Shares in proportion to `weight`, none above `most`: what those cannot take the others get."""
    share, open_ = np.zeros(len(weight)), weight > 0
    while open_.any():
        rest = 1 - share[~open_].sum()
        share[open_] = rest * weight[open_] / weight[open_].sum()
        over = open_ & (share > most)
        if not over.any():
            break
        share[over], open_ = most[over], open_ & ~over
    if weight.any() and share.sum() < 1 - 1e-9:
        raise UserError(
            f"max_epochs leave {(1 - share.sum()) * tokens:.4g} of data.total_tokens to no entry; raise one, or lower "
            "data.total_tokens"
        )
    return share
