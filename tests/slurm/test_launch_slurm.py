"""`lvm launch` on a real Slurm: trainings on two nodes, continued, requeued and chained; arrays; what Slurm refuses."""

import json
import os
import stat
import sys
import time

import pytest
from PIL import Image
from tiny_runs import tiny_run, tiny_tokenizer

from lvm.cluster import slurm
from lvm.commands import launch
from lvm.runtime import UserError
from lvm.runtime.metrics import read_metrics
from lvm.store import TokenStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TWO_NODES = ["nodes=2", "gpus=1", "cpus_per_task=1", "time=10", "trainer.accelerator=cpu"]
ON_THE_CPU = ["gpus=0", "cpus_per_task=1", "time=10"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def overrides(tokenizer):
    return [*tiny_run(tokenizer), "trainer.log_every_steps=1", "trainer.save_every_steps=5"]


@pytest.fixture
def start(cluster, capsys, tmp_path, monkeypatch):
    """Launch in a folder of its own, as a user would; what was printed."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        assert launch.main([str(word) for word in words]) == 0
        return capsys.readouterr().out

    return run


def jobs_of(run_dir):
    return [json.loads(line)["id"] for line in (run_dir / "slurm" / "jobs.jsonl").read_text().splitlines()]


def log(run_dir, name="rank-0"):
    return (run_dir / "logs" / f"{name}.log").read_text()


def ended(cluster, job, run_dir):
    state = cluster.wait(job, *slurm.ENDED, seconds=400)
    told = "\n".join(path.read_text()[-3000:] for path in (run_dir / "logs").glob("*"))
    assert state == "COMPLETED", told


def test_a_training_on_two_nodes_is_followed_continued_and_not_confused(cluster, start, overrides, tmp_path):
    run_dir = tmp_path / "runs" / "a=1"
    command = [*overrides, *TWO_NODES, f"run_dir={run_dir}", "trainer.max_steps=5"]
    said = start(*command)
    (job,) = jobs_of(run_dir)
    assert f"job {job} submitted: runs/a=1/slurm/train.sh" in said and "lvm logs runs/a=1" in said
    again = start(*command)
    assert f"nothing is submitted: job {job} is " in again and jobs_of(run_dir) == [job]
    ended(cluster, job, run_dir)

    assert "finished at step 5" in log(run_dir) and "MEMBER: 2/2" in log(run_dir, "rank-1")
    checked = json.loads((run_dir / "self_test.json").read_text())
    assert checked["passed"] and [rank["node"] for rank in checked["ranks"]] == ["n1", "n2"]
    written = json.loads((run_dir / "slurm" / "config.json").read_text())
    assert written == json.loads((run_dir / "config.json").read_text()), "what was composed here is what ran"
    assert written["trainer"]["num_nodes"] == 2 and written["trainer"]["devices"] == 1
    assert len(json.loads((run_dir / "slurm" / "launch.json").read_text())["commit"]) >= 7

    assert "nothing is submitted" in start(*command)
    before = {path: path.read_bytes() for path in (run_dir / "slurm").rglob("*")}
    with pytest.raises(UserError, match=r"optim\.lr is 0\.5 and was 0\.002"):
        start(*command, "optim.lr=0.5", "trainer.max_steps=7")
    with pytest.raises(UserError, match="sbatch failed: "):
        start(*command, "trainer.max_steps=7", "launcher.sbatch=--begin=never")
    assert before == {path: path.read_bytes() for path in (run_dir / "slurm").rglob("*")}

    start(*command, "trainer.max_steps=7")
    ended(cluster, jobs_of(run_dir)[1], run_dir)
    assert "continuing " in log(run_dir) and "finished at step 5" in log(run_dir), "logs are appended to"
    assert [record["step"] for record in read_metrics(run_dir / "metrics")] == list(range(1, 8))


def test_a_signalled_job_saves_and_comes_back_by_itself(cluster, start, overrides, tmp_path):
    run_dir = tmp_path / "run"
    start(*overrides, *ON_THE_CPU, f"run_dir={run_dir}", "trainer.max_steps=400", "trainer.save_every_steps=200")
    (job,) = jobs_of(run_dir)
    deadline = time.monotonic() + 600
    while not list(run_dir.glob("metrics/*")):
        assert time.monotonic() < deadline, cluster.state(job)
        time.sleep(0.2)
    cluster.run("scancel", "--signal=USR2", job)
    ended_once = lambda: cluster.field(job, "Restarts") == "1"
    while not ended_once():
        assert time.monotonic() < deadline, log(run_dir)
        time.sleep(0.2)
    ended(cluster, job, run_dir)
    assert f"job {job} is requeued" in log(run_dir) and "finished at step 400" in log(run_dir)
    assert log(run_dir, "job").count(f" job {job}, start ") == 2


def test_links_of_a_chain_after_the_end_end_at_once(cluster, start, overrides, tmp_path):
    run_dir = tmp_path / "run"
    said = start(*overrides, *ON_THE_CPU, "chain=2", f"run_dir={run_dir}", "trainer.max_steps=2")
    first, second = jobs_of(run_dir)
    assert f"job {first} -> {second} submitted" in said and cluster.field(first, "Requeue") == "0"
    ended(cluster, second, run_dir)
    assert log(run_dir).count("finished at step 2") == 2 and log(run_dir).count("self-test: ") == 1
    assert "link 0" in log(run_dir, "job") and "link 1" in log(run_dir, "job")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["partition=moon"], "partition 'moon' is unknown; this cluster has high, main"),
        (["gpus=3"], r"gpus=3 is more than a node of partition main has \(2\)"),
        (["nodes=3"], r"nodes=3 is more than partition main has of that size \(2\)"),
        (["tasks_per_node=3", "gpus=0"], "3 CPUs a node are more than partition main has"),
        (["container=nvcr.io#nvidia/pytorch:25.06-py3"], "this Slurm has no pyxis"),
        (["time=1:2:3:4"], "time is '1:2:3:4'"),
        (["launcher.sbatch=--begin=never"], "sbatch failed: "),
        (["launcher.sbatch=--begin=never", "chain=2"], "sbatch failed: "),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(start, cluster, overrides, tmp_path, words, message):
    queue = cluster.run("squeue", "-h")
    with pytest.raises(UserError, match=message) as told:
        start(*overrides, "time=10", "gpus=1", "run_dir=runs/x", *words)
    assert "\n" not in str(told.value) and not list(tmp_path.iterdir()) and cluster.run("squeue", "-h") == queue


def test_an_array_makes_one_store(cluster, start, tokenizer, tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(24):
        picture = Image.new("RGB", (16, 16), (number * 10, 0, 0))
        picture.paste((0, 255, number), (0, 0, 8, 8))
        picture.save(tmp_path / "pictures" / f"{number:02}.png")
    words = ["pictures", "store", "--tokenizer", tokenizer, "--shard-size=4", "--workers=0"]
    start("kind=tokenize", "tasks=2", *ON_THE_CPU, *words)
    run_dir = tmp_path / "runs" / "tokenize-store"
    (job,) = jobs_of(run_dir)
    for task in (0, 1):
        ended(cluster, f"{job}_{task}", run_dir)
    assert sum("complete" in log(run_dir, f"task-{task}") for task in (0, 1)) >= 1
    store = TokenStore(tmp_path / "store")
    assert len(list(store.path.glob("shards/*.tar"))) == 6 and len(store) >= 24


def test_members_of_a_sweep_are_an_array(cluster, start, overrides, tmp_path):
    (tmp_path / "grid.txt").write_text("optim.lr=1e-3\noptim.lr=3e-3 seed=1\n")
    start("kind=sweep", "members=grid.txt", *overrides, "trainer.max_steps=2", *ON_THE_CPU)
    run_dir = tmp_path / "runs" / "sweep-grid"
    (job,) = jobs_of(run_dir)
    for member in (0, 1):
        ended(cluster, f"{job}_{member}", run_dir)
    folders = sorted(path.parent for path in run_dir.glob("*/result.json"))
    assert [folder.name for folder in folders] == ["optim.lr=1e-3", "optim.lr=3e-3-seed=1"]
    configs = [json.loads((folder / "config.json").read_text()) for folder in folders]
    assert [(config["optim"]["lr"], config["seed"]) for config in configs] == [(0.001, 0), (0.003, 1)]


def test_a_container_runs_what_the_job_would(cluster, start, overrides, tmp_path, monkeypatch):
    """With a stand-in for apptainer, which is not here: it notes what it was given and runs the command outside."""
    tools = tmp_path / "tools"
    tools.mkdir()
    program = tools / "apptainer"
    lines = [
        "#!/bin/bash",
        f'echo "$@" > {tmp_path}/given',
        'while [[ "$1" != *.sif ]]; do shift; done',
        'exec "${@:2}"',
    ]
    program.write_text("\n".join(lines) + "\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tools}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    (tmp_path / "image.sif").touch()
    run_dir = tmp_path / "run"
    start(*overrides, *ON_THE_CPU, "container=image.sif", f"run_dir={run_dir}", "trainer.max_steps=1")
    ended(cluster, jobs_of(run_dir)[0], run_dir)
    given = (tmp_path / "given").read_text()
    assert given.startswith("exec --bind ") and f"--pwd {tmp_path} {tmp_path}/image.sif python -m lvm train" in given
    assert "finished at step 1" in log(run_dir)
