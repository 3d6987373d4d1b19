"""A sweep on a real Slurm, through Hydra's submitit launcher: a killed member is told, the next call completes it."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))
from tiny_sweeps import tiny_overrides, write_sweep

from lvm.commands import sweep as command
from lvm.runtime import UserError, read_json

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def sweep(cluster, tmp_path_factory):
    """The arguments of a sweep of four on the cluster, and its folder."""
    folder = tmp_path_factory.mktemp("sweep")
    overrides = [*tiny_overrides(folder), "trainer.max_steps=200", "trainer.save_every_steps=50"]
    path = write_sweep(folder, overrides, {"first": {"grid": {"seed": [0, 1, 2, 3]}}})
    out = folder / "out"
    return ["run", str(path), f"out={out}", "launcher=slurm", "partition=main", "time=20", "cpus=1"], out


def kill_when_it_trains(run_dir, killed):
    """SIGKILL for the process that holds the run's lease, once it has logged something."""
    while not any((run_dir / "metrics").glob("*.jsonl")) or not next((run_dir / "metrics").glob("*")).read_text():
        time.sleep(0.02)
    pid = read_json(run_dir / "lease.json")["pid"]
    os.kill(pid, signal.SIGKILL)
    killed.append(pid)


def submissions(member):
    return (member / "slurm" / "jobs.jsonl").read_text().splitlines()


@pytest.mark.parametrize(
    ("option", "message"),
    [("partition=nowhere", "partition 'nowhere' is unknown"), ("gpus=9", "gpus=9 is more"), ("nodes=5", "nodes=5 is")],
)
def test_what_the_cluster_lacks_is_refused_and_nothing_submitted(cluster, sweep, option, message):
    arguments, out = sweep
    key = option.partition("=")[0]
    with pytest.raises(UserError, match=message):
        command.main([*(a for a in arguments if not a.startswith(f"{key}=")), option])
    assert not out.exists() and not cluster.run("squeue", "-h").strip()


def test_a_killed_member_of_four_is_told_and_the_next_call_completes_it(sweep, capsys):
    arguments, out = sweep
    members = [out / "first" / f"seed={seed}" for seed in range(4)]
    killed = []
    killer = threading.Thread(target=kill_when_it_trains, args=(members[2], killed), daemon=True)
    killer.start()
    assert command.main(arguments) == 1
    said = capsys.readouterr()
    assert killed and "first/seed=2 (failed)" in said.err and "seed=1" not in said.err
    rows = read_json(out / "table.json")
    assert [row["state"] for row in rows] == ["finished", "finished", "failed", "finished"]
    assert "_2 FAILED" in rows[2]["why"]

    assert command.main(arguments) == 0
    assert "3 done, 0 running already, 1 to run" in capsys.readouterr().out
    assert [row["state"] for row in read_json(out / "table.json")] == ["finished"] * 4
    assert [len(submissions(member)) for member in members] == [1, 1, 2, 1]
    assert (members[2] / "logs" / "rank-0.log").stat().st_size > 0
