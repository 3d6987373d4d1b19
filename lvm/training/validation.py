"""The loss on what is held out, in the middle of a run: the same windows each time, whatever the number of ranks."""

from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from lvm.data import Plan
from lvm.data.loader import Batch, to_batch
from lvm.training.journal import LossBySource, mean_losses
from lvm.training.parallel import PAD_ROLE, LossFunction, LossOn, counted


class Validation:
    """Windows 0 .. num_windows-1 of `plan`, `size` at a time on each of the data ranks. Every rank calls it alike.

    Nothing of the run changes: no gradient, no noise, and shards are shards again afterwards.
    """

    def __init__(
        self,
        plan: Plan,
        num_windows: int,
        size: int,
        rank: int,
        num_ranks: int,
        model: nn.Module,
        loss_of: LossFunction,
        loss_on: LossOn,
        device: torch.device,
    ):
        self._plan, self._num_windows, self._size = plan, num_windows, size
        self._model, self._loss_of, self._loss_on, self._device = model, loss_of, loss_on, device
        # As many batches on every rank: sharded ranks need one another for each.
        self._first = range(rank * size, -(-num_windows // (size * num_ranks)) * size * num_ranks, size * num_ranks)
        self._kept: list[Batch] = []

    @torch.no_grad()
    def __call__(self) -> dict[str, Any]:
        """`validation_loss` and `validation_loss_by_source`, in nats a target."""
        self._kept = self._kept or [self._batch(first) for first in self._first]
        by_source = LossBySource(len(self._plan.names), self._device, [])
        one = torch.ones((), device=self._device)
        for batch in self._kept:
            tokens, role, source = (batch[key].to(self._device) for key in ("tokens", "role", "source"))
            _, nll = self._loss_of(tokens, role, one)
            by_source.add(nll, source[:, 1:].where(counted(role, self._loss_on), -1))
        by_source.settle(torch.zeros((), dtype=torch.bool, device=self._device))
        reshard(self._model)
        loss, of_sources = mean_losses(by_source.gather(reset=True), self._plan.names)
        return {"validation_loss": loss, "validation_loss_by_source": of_sources}

    def _batch(self, first: int) -> Batch:
        """Windows from `first` on; those beyond the last one count as PAD."""
        batch = to_batch(self._plan.windows(first, self._size))
        beyond = max(0, self._num_windows - first)
        batch["role"][beyond:] = PAD_ROLE
        return batch


def reshard(model: nn.Module) -> None:
    """Give up weights that a forward pass without a backward left whole: those who look at parameters expect shards."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
