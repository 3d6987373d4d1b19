"""Before the first step: two ranks that agree go on, and what is wrong with one is a line that names its node."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lvm.cluster.self_test import Facts, problems_of

FAULTS = {
    "config": "node n2 (rank 1) has another config: optim.lr is 0.2 and on n1 0.1; ",
    "clock": "the clock of node n2 (rank 1) is 31 s ahead of the others'; ",
    "room": "node n2 (rank 1) has ",
    "write": "node n2 (rank 1) cannot write to ",
    "code": "node n2 (rank 1) runs other code ",
    "sum": "node n2 (rank 1) got a wrong sum of all ranks; ",
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """By fault (null: none): what each of two ranks came to."""
    folder = tmp_path_factory.mktemp("self-test")
    (folder / "run").mkdir()
    faults = [None, *FAULTS, None]
    command = [sys.executable, str(Path(__file__).with_name("self_test_rank.py"))]
    command += [str(folder / "init"), str(folder / "run"), json.dumps(faults)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LVM_CACHE": str(folder / "cache")}
    ranks = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank)}, stderr=subprocess.PIPE) for rank in (0, 1)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=120)
        assert rank.returncode == 0, errors.decode()[-2000:]
    columns = [json.loads((folder / f"init-{rank}.json").read_text()) for rank in (0, 1)]
    return dict(zip(faults, zip(*columns))), folder / "run"


def test_ranks_that_agree_pass_in_seconds_and_the_bandwidth_is_measured(reports):
    by_fault, run_dir = reports
    written = json.loads((run_dir / "self_test.json").read_text())
    assert [report["passed"] for report in by_fault[None]] == [True, True]
    assert written == by_fault[None][0] and written["seconds"] < 20
    assert [rank["node"] for rank in written["ranks"]] == ["n1", "n2"]
    speed = written["all_reduce"]
    assert speed["bytes_per_second"] == pytest.approx(speed["bytes"] / speed["seconds"])  # 2 (n - 1) / n is 1
    assert len({rank["code"] for rank in written["ranks"]}) == 1
    assert not list(run_dir.glob(".tmp*")), "nothing is left of what was written to try the disk"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_one_node_stops_all_ranks_with_a_line_that_names_it(reports, fault):
    by_fault, _ = reports
    texts = [report["error"] for report in by_fault[fault]]
    assert texts[0] == texts[1] and texts[0].startswith(FAULTS[fault]) and "\n" not in texts[0]


def fact(rank, node, **changes):
    values = {"clock": 0.0, "code": "a", "commit": "c", "config": "x", "torch": "2.13", "cuda": "13", "python": "3.11"}
    return Facts(rank, node, **(values | {"device": "cpu", "free_bytes": {}, "problem": None} | changes))


def test_the_odd_node_is_named_by_majority_with_its_ranks():
    facts = [
        fact(0, "n1", torch="2.11"),
        fact(1, "n1", torch="2.11"),
        *(fact(r, f"n{r // 2 + 1}") for r in range(2, 8)),
    ]
    assert problems_of(facts) == [
        "node n1 (ranks 0-1) has torch 2.11, node n2 (rank 2) 2.13; use one environment on all nodes"
    ]
    late = [fact(0, "n1", clock=-60.0), fact(1, "n2"), fact(2, "n3", clock=1.0)]
    assert problems_of(late) == ["the clock of node n1 (rank 0) is 60 s behind the others'; set it (chrony or ntp)"]
