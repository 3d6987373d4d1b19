"""The loader's state is one integer; ranks, batch sizes and restarts do not change what a step reads."""

import numpy as np
import pytest
import torch
from fakes import FakeStore
from mixtures import mixture

from lvm.data import TokenPlan, WindowDataset, WindowLoader

PLAN = TokenPlan.from_config(mixture(), {"world": FakeStore(scenes=60, clips=8, frames=(16, 40))})


def steps(n, **options):
    with WindowLoader(PLAN, **options) as loader:
        return [next(loader) for _ in range(n)], loader.next_window


def tokens(step):
    return torch.cat([batch["tokens"] for batch in step])


@pytest.mark.parametrize(("ranks", "micro_batches", "size"), [(1, 1, 12), (1, 4, 3), (3, 2, 2), (2, 3, 2), (12, 1, 1)])
def test_a_step_reads_the_same_windows_for_any_ranks_and_batch_sizes(ranks, micro_batches, size):
    by_rank = [
        steps(2, batch_size=size, micro_batches=micro_batches, rank=r, ranks=ranks, next_window=5)[0]
        for r in range(ranks)
    ]
    for k in range(2):
        in_order = [by_rank[r][k][m]["tokens"] for m in range(micro_batches) for r in range(ranks)]
        assert np.array_equal(torch.cat(in_order).numpy(), PLAN.windows(5 + 12 * k, 12).tokens)


def test_a_loader_built_with_the_saved_integer_continues_exactly():
    whole, _ = steps(5, batch_size=3)
    _, saved = steps(2, batch_size=3)  # steps fetched ahead of these two are not counted
    assert saved == 6
    rest, end = steps(3, batch_size=3, next_window=saved)
    assert end == 15 and all(torch.equal(tokens(a), tokens(b)) for a, b in zip(whole[2:], rest))


def test_batches_carry_tokens_sources_and_roles():
    (step,), _ = steps(1, batch_size=2)
    window = PLAN.windows(0, 2)
    assert step[0].keys() == {"tokens", "source", "role"}
    for name, dtype in (("tokens", torch.int64), ("source", torch.int16), ("role", torch.int8)):
        assert step[0][name].dtype == dtype and np.array_equal(step[0][name].numpy(), getattr(window, name))


def test_an_error_while_reading_reaches_the_reader():
    class Broken:
        def windows(self, first, n):
            raise OSError("shard 00003 is gone")

    with WindowLoader(Broken(), batch_size=1) as loader, pytest.raises(OSError, match="shard 00003 is gone"):
        next(loader)


def test_the_dataset_serves_workers_of_a_torch_loader():
    loader = torch.utils.data.DataLoader(WindowDataset(PLAN, 8), batch_size=4, num_workers=1)
    got = torch.cat([batch["tokens"] for batch in loader])
    assert np.array_equal(got.numpy(), PLAN.windows(0, 8).tokens)
