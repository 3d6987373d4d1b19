"""An evaluation on a real Slurm: an array by `lvm launch`, and the tasks of srun, report what one process does."""

import json
import subprocess
import sys

import pytest
from tiny_prompter import small_model, small_vqgan

from lvm.cluster import slurm
from lvm.commands import evaluate, launch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TIMES = ("seconds", "machine", "commit")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The words of a command, but --out: 72 cases, three blocks."""
    folder, vq = tmp_path_factory.mktemp("evaluated"), small_vqgan()
    small_model(vq).save_pretrained(folder / "model")
    vq.save_pretrained(folder / "tokenizer")
    names = [str(folder / "model"), "--tokenizer", str(folder / "tokenizer"), "--suite", "depth"]
    return [*names, "--targets", "72", "pairs=1"]


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    evaluate.main([*words, "--out", str(out)])
    return report(out)


def report(out):
    """Likelihoods may differ in the last bits between numbers of threads; what was painted and judged may not."""
    found = json.loads((out / "report.json").read_text())
    task = found["tasks"]["depth"]
    likelihoods = [value for of in task["conditions"].values() for value in (of["perplexity"], of["first_token"])]
    scores = {name: of["abs_rel"] for name, of in (task["conditions"] | task["baselines"]).items()}
    return (found["items"], found["settings"], scores), likelihoods


def agree(one, other):
    assert one[0] == other[0] and one[1] == pytest.approx(other[1], rel=1e-4)


def ended(cluster, job, log):
    assert cluster.wait(job, *slurm.ENDED, seconds=400) == "COMPLETED", log.read_text()[-3000:]


def test_an_array_reports_what_one_process_does(cluster, words, whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["kind=evaluate", "tasks=2", "gpus=0", "cpus_per_task=1", "time=10"]
    assert launch.main([*options, *words, "--out", str(tmp_path / "out")]) == 0
    assert "slurm/evaluate.sh" in capsys.readouterr().out
    run_dir = tmp_path / "runs" / "evaluate-out"
    (line,) = (run_dir / "slurm" / "jobs.jsonl").read_text().splitlines()
    for task in range(2):
        ended(cluster, f"{json.loads(line)['id']}_{task}", run_dir / "logs" / f"task-{task}.log")
    assert {path.name for path in (tmp_path / "out").glob(".shard-*")} == {f".shard-{n}-of-2.json" for n in range(2)}
    agree(report(tmp_path / "out"), whole)


def test_the_tasks_of_srun_share_the_cases_by_themselves(cluster, words, whole, tmp_path):
    command = " ".join([sys.executable, "-m", "lvm", "evaluate", *words, "--out", str(tmp_path / "out")])
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/bash\n#SBATCH --ntasks=3 --output={tmp_path}/log.txt\nexec srun {command}\n")
    ended(cluster, slurm.submit(script), tmp_path / "log.txt")
    assert {path.name for path in (tmp_path / "out").glob(".shard-*")} == {f".shard-{n}-of-3.json" for n in range(3)}
    agree(report(tmp_path / "out"), whole)
    again = subprocess.run(command.split(), capture_output=True, text=True)  # alone: nothing is left to do
    assert again.returncode == 0 and "report.html" in again.stdout
