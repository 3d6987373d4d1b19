"""Many prompts on a real Slurm: an array by `lvm launch`, and the tasks of srun, answer as one process does."""

import json
import subprocess
import sys

import numpy as np
import pytest
from tiny_prompter import TOKENS, small_model, small_vqgan

from lvm.cluster import slurm
from lvm.commands import generate, launch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PROMPTS = 40


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The words of a command for prompts of codes, but --out."""
    folder, vq = tmp_path_factory.mktemp("prompting"), small_vqgan()
    small_model(vq).save_pretrained(folder / "model")
    vq.save_pretrained(folder / "tokenizer")
    codes = np.random.default_rng(0).integers(0, 32, (PROMPTS, 1, TOKENS)).tolist()
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"tokens": prompt}) + "\n" for prompt in codes))
    names = [folder / "model", "--tokenizer", folder / "tokenizer", "--prompts", folder / "prompts.jsonl"]
    return [*map(str, names), "--candidates", "2"]


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """What one process writes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    generate.main([*words, "--out", str(out)])
    return answers(out)


def answers(out):
    """Tokens and files of every prompt; scores may differ in the last bit between numbers of threads."""
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert all((out / file).is_file() for row in rows for files in row["files"] for file in files)
    return [(row["id"], row["tokens"], row["files"]) for row in rows]


def ended(cluster, job, log):
    assert cluster.wait(job, *slurm.ENDED, seconds=400) == "COMPLETED", log.read_text()[-3000:]


def test_an_array_answers_as_one_process(cluster, words, whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["kind=generate", "tasks=2", "gpus=0", "cpus_per_task=1", "time=10"]
    assert launch.main([*options, *words, "--out", str(tmp_path / "out")]) == 0
    assert "slurm/generate.sh" in capsys.readouterr().out
    run_dir = tmp_path / "runs" / "generate-out"
    (line,) = (run_dir / "slurm" / "jobs.jsonl").read_text().splitlines()
    for task in range(2):
        ended(cluster, f"{json.loads(line)['id']}_{task}", run_dir / "logs" / f"task-{task}.log")
    assert {path.name for path in (tmp_path / "out").glob(".shard-*")} == {f".shard-{n}-of-2.json" for n in range(2)}
    assert answers(tmp_path / "out") == whole


def test_the_tasks_of_srun_share_the_prompts_by_themselves(cluster, words, whole, tmp_path):
    command = " ".join([sys.executable, "-m", "lvm", "generate", *words, "--out", str(tmp_path / "out")])
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/bash\n#SBATCH --ntasks=3 --output={tmp_path}/log.txt\nexec srun {command}\n")
    ended(cluster, slurm.submit(script), tmp_path / "log.txt")
    assert {path.name for path in (tmp_path / "out").glob(".shard-*")} == {f".shard-{n}-of-3.json" for n in range(3)}
    assert answers(tmp_path / "out") == whole
    again = subprocess.run(command.split(), capture_output=True, text=True)  # alone: nothing is left to do
    assert again.returncode == 0 and f"{PROMPTS} answers" in again.stdout
