"""What a run asks of its data: windows prepared by processes change no weight; a missing shard is named first."""

import pytest
import torch
from fake_plan import FakePlan, run

from lvm.runtime import UserError
from lvm.training import TrainerConfig


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_run_with_loader_workers_ends_in_the_same_weights(tmp_path):
    one, _ = run(tmp_path / "thread", max_steps=3)
    other, _ = run(tmp_path / "processes", max_steps=3, loader_workers=1)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_a_shard_that_is_missing_is_named_before_anything_is_written(tmp_path):
    class Damaged(FakePlan):
        def check_files(self):
            raise UserError("shard 00003 is missing; copy it again")

    plan = Damaged()
    with pytest.raises(UserError, match=r"^shard 00003 is missing; copy it again$"):
        run(tmp_path / "run", plan)
    assert plan.read == [] and not (tmp_path / "run").exists()


def test_fewer_than_no_workers_are_refused():
    with pytest.raises(UserError, match=r"trainer.loader_workers is -1; use 0 or more"):
        TrainerConfig(max_steps=1, batch_size=1, loader_workers=-1)
