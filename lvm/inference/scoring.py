"""How likely given answers are: one pass over each sequence, and one over what several sequences begin with.

The choices of a puzzle after its matrix, candidates after their prompt, queries after the same pairs: what they share
is fed once and kept (cache.py), and only the rest is fed for each.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from lvm.inference.cache import Cache, bytes_per_token, cache_dtype, nll_of
from lvm.inference.engine import default_cache_bytes
from lvm.inference.sharing import Group, group_by_prefix
from lvm.runtime.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64

    from lvm.model import LVM

TOKENS_AT_ONCE = 2**13  # fed in one forward pass


@torch.inference_mode()
def score_answers(
    model: "LVM",
    sequences: "Sequence[Int64[np.ndarray, 't']]",
    answer_tokens: "Sequence[int]",
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> "list[Float32[np.ndarray, 'answer_tokens']]":
    """NLL in nats, over the whole vocabulary, of the last `answer_tokens[i]` tokens of each sequence, BOS included.

    Under autocast the blocks compute in its type; logits are float32. Raises `UserError` where a sequence is longer
    than the model's context.
    """
    for sequence in sequences:
        if len(sequence) - 1 > model.config.max_position:
            raise UserError(
                f"a prompt of {len(sequence) - 1} tokens exceeds the model's context of {model.config.max_position}; "
                "show less"
            )
    # An answer's first token is told by the position before it, which must be a row's own.
    prompts = [sequence[: len(sequence) - n] for sequence, n in zip(sequences, answer_tokens)]
    nll: list[np.ndarray] = [np.empty(0, np.float32)] * len(sequences)
    alone: dict[tuple[int, int], list[int]] = {}
    for group in group_by_prefix(prompts):
        if worth_sharing(group, sequences):
            score_behind_prefix(model, sequences, answer_tokens, group, nll)
        else:
            for member in group.members:
                alone.setdefault((len(sequences[member]), answer_tokens[member]), []).append(member)
    for (length, last), members in alone.items():
        rows = max(1, tokens_at_once // (length - 1))
        for start in range(0, len(members), rows):
            piece = members[start : start + rows]
            tokens = torch.from_numpy(np.stack([sequences[member] for member in piece]).astype(np.int64))
            tokens = tokens.to(model.head.weight.device)
            hidden = model.hidden(tokens[:, :-1])[:, -last:]
            for member, row in zip(piece, nll_of(model, hidden, tokens[:, -last:])):
                nll[member] = row
    return nll


def worth_sharing(group: Group, sequences: "Sequence[Int64[np.ndarray, 't']]") -> bool:
    """Whether a third of the tokens is saved: plain passes run faster token by token."""
    if not group.shared:
        return False
    saved = group.shared * (len(group.members) - 1)
    return 3 * saved >= sum(len(sequences[member]) - 1 for member in group.members)


def score_behind_prefix(
    model: "LVM",
    sequences: "Sequence[Int64[np.ndarray, 't']]",
    answer_tokens: Sequence[int],
    group: Group,
    nll: "list[np.ndarray]",
) -> None:
    device = model.head.weight.device
    rest = {member: sequences[member][group.shared :] for member in group.members}
    longest = max(map(len, rest.values())) - 1
    each = bytes_per_token(model.config, cache_dtype(model).itemsize)
    rows = int(np.clip((default_cache_bytes(model) - each * group.shared) // (each * longest), 1, len(rest)))
    cache = Cache(model, 1, rows, 1, group.shared, longest, 1)
    cache.feed_prefix(0, torch.from_numpy(sequences[group.members[0]][: group.shared].astype(np.int64)).to(device))
    for start in range(0, len(rest), rows):
        members = group.members[start : start + rows]
        fed = np.zeros((len(members), longest), np.int64)
        for row, member in zip(fed, members):
            row[: len(rest[member]) - 1] = rest[member][:-1]
        lengths = [len(rest[member]) - 1 for member in members]
        most = max(answer_tokens[member] for member in members)
        hidden = cache.rows_hidden(0, range(len(members)), torch.from_numpy(fed).to(device), lengths, most)
        for member, row in zip(members, hidden):
            last = answer_tokens[member]
            target = torch.from_numpy(rest[member][-last:].astype(np.int64)).to(device)
            nll[member] = nll_of(model, cache.normed(row[None, -last:]), target[None])[0]
