"""`lvm runs`, `lvm logs` and `lvm cancel` on runs of this machine: what they say is so, whatever is damaged."""

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tiny_runs import tiny_run, tiny_tokenizer

from lvm.cluster.runs import (
    as_json,
    describe,
    duration,
    find_runs,
    large,
    list_runs,
    open_run,
    read_facts,
    seconds_per_step,
    state_of,
)
from lvm.cluster.slurm import Job
from lvm.commands import cancel, logs, runs, train
from lvm.runtime import UserError
from lvm.runtime.checkpoint import list_checkpoints
from lvm.runtime.lease import RunLease
from lvm.runtime.metrics import read_metrics

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def overrides(tmp_path_factory):
    steps = ["trainer.max_steps=8", "trainer.save_every_steps=4", "trainer.validate_every_steps=4"]
    small = ["trainer.validation_windows=8", "trainer.accelerator=cpu", "data.held_out_per_mille=150"]
    return [*tiny_run(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))), *steps, *small]


@pytest.fixture(scope="module")
def finished(overrides, tmp_path_factory):
    """A run of 8 steps."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert train.main([*overrides, f"run_dir={run}", "trainer.log_every_steps=2"]) == 0
    return run


def start(overrides, run):
    """A training of its own process that does not end by itself, once it has logged; its log is a rank's."""
    (run / "logs").mkdir(parents=True)
    command = [sys.executable, str(ROOT / "train.py"), *overrides, f"run_dir={run}", "trainer.max_steps=1000000"]
    with open(run / "logs" / "rank-0.log", "wb") as log:
        process = subprocess.Popen([*command, "trainer.log_every_steps=1"], stdout=log, stderr=log)
    deadline = time.monotonic() + 240
    while len(read_metrics(run / "metrics")) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    assert process.poll() is None, (run / "logs" / "rank-0.log").read_text()
    return process


def only(folder):
    (run,) = list_runs(folder)
    return run


def test_a_finished_run(finished):
    run = only(finished.parent)
    last = [record for record in read_metrics(finished / "metrics") if "loss" in record][-1]
    assert (run.name, run.state, run.reason) == ("finished", "finished", "")
    assert (run.step, run.max_steps, run.checkpoint_step, run.restarts) == (8, 8, 8, 0)
    assert (run.loss, run.tokens) == (last["loss"], last["tokens"])
    assert run.tokens_per_second == pytest.approx(last["tokens_per_second"])
    assert run.validation_loss == json.loads((finished / "result.json").read_text())["validation_loss"]
    assert 0 <= run.checkpoint_age < 3600 and run.seconds_left == 0 and run.limit_left is None


def test_a_working_run_is_cancelled_saves_and_is_no_longer_at_work(overrides, tmp_path, capsys):
    process = start(overrides, tmp_path / "sweep" / "one")
    try:
        run = only(tmp_path)
        assert (run.name, run.state, run.max_steps) == ("sweep/one", "running", 1000000)
        assert run.step >= 2 and run.seconds_left > 0 and run.tokens_per_second > 0
        assert cancel.main([str(tmp_path / "sweep" / "one")]) == 0
        assert f"process {process.pid} was asked to save" in capsys.readouterr().out
        assert process.wait(120) == 128 + 15
    finally:
        process.kill()
    run = only(tmp_path)
    assert (run.state, run.reason) == ("stopped", "by SIGTERM")
    assert run.checkpoint_step == run.step
    with pytest.raises(UserError, match=r"is not at work \(stopped\)"):
        cancel.main([str(tmp_path / "sweep" / "one")])


def test_a_killed_run_is_interrupted_and_counts_its_restart(overrides, tmp_path, capsys):
    process = start(overrides, tmp_path / "run")
    assert cancel.main([str(tmp_path / "run"), "--now"]) == 0
    assert process.wait(120) == -9
    assert only(tmp_path).state == "interrupted"
    assert train.main([*overrides, f"run_dir={tmp_path / 'run'}", "trainer.max_steps=8"]) == 0
    assert only(tmp_path).restarts == 1


def test_a_failed_run_tells_the_last_error_of_its_logs(finished, tmp_path):
    with RunLease(tmp_path / "run"):
        assert only(tmp_path).state == "running"
    (tmp_path / "run" / "logs").mkdir()
    (tmp_path / "run" / "logs" / "job.log").write_text("srun: error: n1: task 0: Exited with exit code 2\n")
    (tmp_path / "run" / "logs" / "rank-0.log").write_text(
        "step 1\nerror: the disk is full\nerror: no space left\nbye\n"
    )
    run = only(tmp_path)
    assert (run.state, run.reason) == ("failed", "error: no space left")


def test_a_run_of_another_host_is_unknown_and_cannot_be_cancelled_from_here(tmp_path):
    lease = RunLease(tmp_path / "run")
    owner = json.loads(lease.path.read_text()) | {"host": "elsewhere"}
    lease.path.write_text(json.dumps(owner))
    assert only(tmp_path).state == "unknown"
    with pytest.raises(UserError, match=r"on elsewhere since .*cancel it there"):
        cancel.main([str(tmp_path / "run")])


def test_an_array_is_finished_when_slurm_says_so_and_its_members_are_listed(finished, tmp_path):
    (tmp_path / "sweep" / "slurm" / "members").mkdir(parents=True)
    (tmp_path / "sweep" / "slurm" / "jobs.jsonl").write_text('{"id": "12", "kind": "sweep"}\n')
    (tmp_path / "sweep" / "slurm" / "launch.json").write_text('{"kind": "sweep"}')
    shutil.copytree(finished, tmp_path / "sweep" / "lr=1")
    assert [path.relative_to(tmp_path).as_posix() for path in find_runs(tmp_path)] == ["sweep", "sweep/lr=1"]
    facts = read_facts(tmp_path / "sweep")
    assert state_of(facts, {"12": Job("12", "COMPLETED")}) == ("finished", "")
    assert state_of(facts, {"12": Job("12", "FAILED")}) == ("failed", "FAILED")


def test_where_slurm_does_not_answer_nobody_says_that_a_job_is_not_at_work(tmp_path, monkeypatch):
    (tmp_path / "run" / "slurm").mkdir(parents=True)
    (tmp_path / "run" / "slurm" / "jobs.jsonl").write_text('{"id": "12"}\n')
    monkeypatch.setenv("SLURM_CONF", "/nowhere/slurm.conf")
    with pytest.raises(UserError, match="does not answer here"):
        cancel.main([str(tmp_path / "run")])


def test_the_last_task_of_an_array_is_not_taken_for_all_of_it(tmp_path, monkeypatch):
    for key, value in {"JOB_ID": "12", "ARRAY_JOB_ID": "12", "ARRAY_TASK_ID": "3"}.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    with RunLease(tmp_path / "run"):
        assert read_facts(tmp_path / "run").job_ids == ("12_3",)


def test_nothing_damaged_or_half_written_breaks_the_list(finished, tmp_path):
    chance = random.Random(0)
    files = [
        path.relative_to(finished) for path in finished.rglob("*") if path.is_file() and "tensors" not in str(path)
    ]
    assert len(files) > 6
    spoil = {
        "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "empty": lambda path: path.write_bytes(b""),
        "list": lambda path: path.write_text("[1, 2]"),
        "noise": lambda path: path.write_bytes(chance.randbytes(200)),
        "gone": lambda path: path.unlink(),
        "folder": lambda path: (path.unlink(), path.mkdir()),
    }
    shutil.copytree(finished, tmp_path / "whole")
    for how, change in spoil.items():
        for number, file in enumerate(files):
            shutil.copytree(finished, tmp_path / how / str(number))
            change(tmp_path / how / str(number) / file)
    strange = tmp_path / "strange"
    shutil.copytree(finished, strange)
    (strange / "slurm").mkdir()
    (strange / "slurm" / "jobs.jsonl").write_text('{"id": null}\n[]\n{"id": "12", "kin')
    (strange / "lease.json").write_text('{"host": 3, "attempt": "x", "pid": {}}')
    (strange / "config.json").write_text('{"trainer": [1]}')
    (strange / "checkpoints" / "step-00000099").mkdir()
    found = {run.name: run for run in list_runs(tmp_path)}
    assert found["whole"].state == "finished" and found["strange"].checkpoint_step == 8
    assert len(found) >= len(spoil) * len(files)  # all of them are still runs
    json.loads(as_json(list(found.values())))


def test_hundreds_of_runs_are_listed_without_torch_in_little_time(finished, tmp_path):
    long = (finished / "metrics" / "attempt-0000.jsonl").read_bytes() * 2000
    for number in range(300):
        shutil.copytree(finished, tmp_path / f"sweep-{number % 3}" / f"member-{number}")
    (tmp_path / "sweep-0" / "member-0" / "metrics" / "attempt-0000.jsonl").write_bytes(long)
    code = (
        "import sys\nfrom lvm.commands import cancel, logs, run\n"
        f"run(['runs', {str(tmp_path)!r}])\n"
        "assert not {'torch', 'numpy', 'hydra'} & set(sys.modules), sorted(sys.modules)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert len(done.stdout.splitlines()) == 301
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_the_list_as_text_and_a_folder_without_runs(finished, tmp_path, capsys):
    assert runs.main([str(finished.parent)]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["run", "state", "step"] and line.split()[:3] == ["finished", "finished", "8/8"]
    assert runs.main([str(tmp_path)]) == 0
    assert "no runs below" in capsys.readouterr().out
    assert runs.main([str(tmp_path), "--json"]) == 0 and json.loads(capsys.readouterr().out) == []
    for wrong in ([str(tmp_path / "none")], [str(tmp_path), "--watch", "0"]):
        with pytest.raises(UserError):
            runs.main(wrong)
    with pytest.raises(UserError, match=r"is no run folder; name one of the runs in it \(finished"):
        open_run(finished.parent)


def test_time_left_is_of_this_attempt_alone():
    former = [{"step": step, "loss": 1.0, "seconds": 100.0 + step} for step in (10, 20, 30)]
    assert seconds_per_step([*former, {"step": 31, "loss": 1.0, "seconds": 2.0}]) is None
    now = [{"step": 31, "loss": 1.0, "seconds": 2.0}, {"step": 33, "validation_loss": 1.0}]
    assert seconds_per_step([*former, *now, {"step": 35, "loss": 1.0, "seconds": 4.0}]) == 0.5


def test_a_loss_that_is_not_finite_is_shown(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "result.json").unlink()
    with open(run / "metrics" / "attempt-0000.jsonl", "a") as file:
        file.write('{"step": 9, "loss": "nan"}\n')
    facts = read_facts(run)
    assert describe(facts, tmp_path, {}).loss == "nan"
    json.loads(as_json(list_runs(tmp_path)))


def test_numbers_are_short():
    assert [large(value) for value in (None, 0, 12, 1234, 5_600_000, 7.8e9, 9e15)] == [
        "-", "0", "12", "1.23k", "5.6M", "7.8B", "9e+03T",
    ]  # fmt: skip
    assert [duration(s) for s in (None, 5, 125, 3 * 3600 + 300, 200_000)] == ["-", "5s", "2m", "3h05m", "2d07h"]


@pytest.mark.parametrize("block", [1, 7, 65536])
def test_the_end_of_a_log_is_its_last_lines(tmp_path, block):
    path = tmp_path / "log"
    for text in ("", "one", "one\n", "one\ntwo\n\nthree", "\n\n\n", "".join(f"line {i}\n" for i in range(50))):
        path.write_text(text)
        for lines in (0, 1, 2, 5, 100):
            wanted = (
                b"".join(
                    text.encode().splitlines(keepends=True)[
                        len(text.splitlines()) - lines if lines < len(text.splitlines()) else 0 :
                    ]
                )
                if lines
                else b""
            )
            assert logs.end_of(path, lines, block) == (wanted, len(text)), (text, lines)


def test_logs_by_rank(tmp_path, capsys):
    run = tmp_path / "run"
    RunLease(run).release()
    with pytest.raises(UserError, match=r"has no logs: .*`lvm launch` writes them"):
        logs.main([str(run)])
    (run / "logs").mkdir()
    for name in ("job", "rank-0", "rank-1", "rank-10"):
        (run / "logs" / f"{name}.log").write_text("".join(f"{name} says {i}\n" for i in range(30)))
    assert logs.main([str(run), "--lines", "2"]) == 0
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if "says" in line] == [
        f"{name} says {i}" for name in ("job", "rank-0") for i in (28, 29)
    ]
    assert logs.main([str(run), "--rank", "10", "--lines", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["rank-10 says 29"]
    with pytest.raises(UserError, match="no rank 3"):
        logs.main([str(run), "--rank", "3"])


def test_following_shows_what_is_added_until_the_run_ends(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logs, "ASK_SECONDS", 0.3)
    run = tmp_path / "run"
    lease = RunLease(run)
    (run / "logs").mkdir()
    log = run / "logs" / "rank-0.log"
    log.write_text("first\n")

    def work():
        for number in range(3):
            time.sleep(0.3)
            with open(log, "a") as file:
                file.write(f"more {number}\n")
        (run / "logs" / "job.log").write_text("a log that came late\n")
        time.sleep(0.5)
        lease.release()

    worker = threading.Thread(target=work)
    worker.start()
    assert logs.main([str(run), "--follow"]) == 0
    worker.join()
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.startswith(("first", "more"))] == ["first", "more 0", "more 1", "more 2"]
    assert "a log that came late" in said


def test_checkpoints_count_only_when_they_are_complete(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / ".tmp-step-00000012.0-ab").mkdir()
    assert only(tmp_path).checkpoint_step == 8 == int(list_checkpoints(finished / "checkpoints")[-1].name[5:])
    os.utime(tmp_path / "run" / "checkpoints" / "step-00000008" / "manifest.json", (time.time() - 100,) * 2)
    assert only(tmp_path).checkpoint_age == pytest.approx(100, abs=20)
