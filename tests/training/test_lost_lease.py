"""A rank that lives on after its run was taken over by another incarnation writes nothing more into the folder."""

import json

import pytest
from fake_plan import FakePlan, run

from lvm.runtime import UserError
from lvm.runtime.checkpoint import list_checkpoints
from lvm.runtime.metrics import read_metrics


class TakenOver(FakePlan):
    """While it reads window 16, the fifth step's first, another incarnation takes the lease."""

    def __init__(self, lease):
        super().__init__()
        self.lease = lease

    def windows(self, i, n):
        if i <= 16 < i + n:
            self.lease.write_text(json.dumps(json.loads(self.lease.read_text()) | {"token": "another", "pid": 1}))
        return super().windows(i, n)


@pytest.mark.parametrize("every", [{"log_every_steps": 1}, {"save_every_steps": 3}, {"log_every_steps": 1000}])
def test_what_is_left_of_a_run_writes_nothing(tmp_path, every):
    options = {"max_steps": 9, "validate_every_steps": 3, "validation_windows": 4} | every
    with pytest.raises(UserError, match="was taken over by pid 1"):
        run(tmp_path, TakenOver(tmp_path / "lease.json"), **options)
    assert all(record["step"] < 6 for record in read_metrics(tmp_path / "metrics"))
    assert all(path.name < "step-00000006" for path in list_checkpoints(tmp_path / "checkpoints"))
    assert not (tmp_path / "result.json").exists()
    assert json.loads((tmp_path / "lease.json").read_text())["token"] == "another"
