"""Answers to prompts in the middle of a run: by a callable of the caller's, on the whole model, on rank 0."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule

from lvm.model import LVM
from lvm.runtime.distributed import Distributed
from lvm.training.parallel import full

# (model, step) -> figures for the log; a `Path` among them is a picture
Answer = Callable[[LVM, int], Mapping[str, Any]]


def ask(answer: Answer, model: LVM, step: int, ranks: Distributed) -> Mapping[str, Any]:
    """The figures, on rank 0; every rank calls it alike and waits. What fails there is raised on all."""
    figures: Mapping[str, Any] = {}
    problem: Exception | None = None
    whole = whole_model(model, ranks)
    if whole is not None:
        try:
            figures = answer(whole.eval(), step)
        except Exception as error:
            problem = error
        whole.train()
    ranks.together(problem)
    return figures


@torch.no_grad()
def whole_model(model: LVM, ranks: Distributed) -> LVM | None:
    """The model itself, or of a sharded one a whole copy on rank 0 (bf16 on a GPU) and None on the others."""
    if not isinstance(model, FSDPModule):
        return model
    whole: LVM | None = None
    if ranks.is_main:
        device = next(model.parameters()).device
        with torch.device("meta"):
            whole = LVM(model.config)
        whole = whole.to(torch.bfloat16 if device.type == "cuda" else torch.float32).to_empty(device=device)
        if model.config.tie_embeddings:  # to_empty makes two of the one
            whole.head.weight = whole.embed.weight
    targets = list(whole.parameters()) if whole is not None else [None] * len(list(model.parameters()))
    for shard, target in zip(model.parameters(), targets, strict=True):
        gathered = full(shard.detach())  # one at a time
        if target is not None:
            target.copy_(gathered)
    return whole
