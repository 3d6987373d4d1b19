"""`lvm launch` without a cluster: templates, times, what is refused, the local launcher. tests/slurm has the rest."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from tiny_runs import tiny_run, tiny_tokenizer

from lvm.cluster.job_script import KINDS, LauncherConfig, fill_in, plan_job, template_folder
from lvm.cluster.launch import read_members, submitted
from lvm.cluster.partitions import Node, Partition, check_request, cpus_for_each, minutes, num_gpus
from lvm.commands import launch
from lvm.runtime import UserError, config_folder
from lvm.runtime.config_files import load_config


@pytest.fixture
def no_slurm(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def everything_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("time", "wanted"),
    [("90", 90), (5, 5), ("24:00:00", 1440), ("2-12", 3600), ("2-12:30", 3630), ("2-00:00:30", 2881), ("1:30", 2)],
)
def test_times_are_read_as_slurm_reads_them(time, wanted):
    assert minutes(time) == wanted


@pytest.mark.parametrize("time", ["24h", "", "1-", "-5", "1:2:3:4", "0", "1-1:1:1:1", "99 hours"])
def test_a_time_that_slurm_does_not_know_is_refused(time):
    with pytest.raises(UserError, match=r"24:00:00|a minute or more"):
        LauncherConfig(time=time)


@pytest.mark.parametrize(
    ("gres", "wanted"),
    [
        ("gpu:h100:8(S:0-1),nvme:1", 8),
        ("gpu:2", 2),
        ("gpu:tesla_t4:4,gpu:a100:4(S:0)", 8),
        ("(null)", 0),
        ("shard:gpu:2", 0),
    ],
)
def test_gpus_of_a_node(gres, wanted):
    assert num_gpus(gres) == wanted


def test_what_no_node_could_run_is_refused_and_cpus_are_shared_among_gpus():
    nodes = [Node("a", 64, 8), Node("b", 64, 8), Node("c", 128, 0)]
    partition = Partition("gpu", True, 120, nodes)
    check_request(partition, 2, 8, 64, "2:00:00")
    assert cpus_for_each(partition, 4, 4) == 8 and cpus_for_each(Partition("cpu", False, None, nodes[2:]), 0, 4) == 32
    for request, message in [
        ((1, 9, 1, 60), r"gpus=9 is more than a node of partition gpu has \(8\)"),
        ((3, 8, 1, 60), r"nodes=3 is more than partition gpu has of that size \(2\)"),
        ((1, 8, 65, 60), "65 CPUs a node"),
        ((1, 8, 8, "3:00:00"), "over the limit of partition gpu, 120 minutes"),
    ]:
        with pytest.raises(UserError, match=message):
            check_request(partition, *request)


# Templates.


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_is_filled_in_and_is_shell(kind, no_slurm, monkeypatch):
    config = LauncherConfig(gpus=1, account="a", qos="q", constraint="c", mem="0", setup=["module load x"], tasks=3)
    script = plan_job(config, kind, no_slurm / "run", ["a=1"], num_members=3, must_fit=False).script
    assert "@{" not in script.replace("@{...}", "")
    for line in ("--account=a", "--qos=q", "--constraint=c", "--mem=0", "--gpus-per-node=1", "--time=24:00:00"):
        assert f"#SBATCH {line}\n" in script
    assert "\nmodule load x\n" in script and sys.executable in script
    assert ("--array=0-2" in script) == (kind in ("tokenize", "evaluate", "generate", "sweep"))
    last = max(n for n, line in enumerate(script.splitlines()) if line.startswith("#SBATCH"))
    first = min(n for n, line in enumerate(script.splitlines()) if line and not line.startswith("#"))
    assert last < first, "sbatch reads no option after the first command"
    subprocess.run(["/bin/bash", "-n"], input=script, text=True, check=True)
    assert not everything_in(no_slurm)


def test_there_is_a_template_for_every_kind_and_no_other():
    assert {path.stem for path in template_folder().glob("*")} == set(KINDS)


def test_a_template_of_ones_own(no_slurm):
    (no_slurm / "own.sh").write_text("#!/bin/bash\n#SBATCH --nodes=@{nodes}\nsrun echo ${x[@]} @{name}\n")
    config = LauncherConfig(gpus=0, nodes=3, template="own.sh")
    script = plan_job(config, "train", no_slurm / "run", [], must_fit=False).script
    assert script == "#!/bin/bash\n#SBATCH --nodes=3\nsrun echo ${x[@]} lvm-run\n"
    with pytest.raises(UserError, match=r"f asks for @\{nods\}, which is unknown; known: nodes"):
        fill_in("@{nods}", {"nodes": "1"}, "f")


def test_an_image_is_apptainers_or_pyxis(no_slurm, monkeypatch):
    monkeypatch.setenv("LVM_CACHE", str(no_slurm / "cache"))
    (no_slurm / "cache").mkdir()
    (no_slurm / "a.sif").touch()
    make = lambda image: plan_job(LauncherConfig(container=image), "train", no_slurm / "run", [], must_fit=False).script
    inside = f"apptainer exec --nv --bind {no_slurm}:{no_slurm} --pwd {no_slurm} {no_slurm}/a.sif python -m lvm train"
    assert inside in make("a.sif"), "the run and the cache lie in the working folder, which is mounted"
    image = "nvcr.io#nvidia/pytorch:25.06-py3"
    pyxis = f"--container-image={image}' --container-mounts={no_slurm}:{no_slurm} --container-workdir={no_slurm}"
    assert pyxis in make(image) and "\\\n    python -m lvm train" in make(image)
    with pytest.raises(UserError, match=r"container=b\.sif does not exist"):
        make("b.sif")


@pytest.mark.parametrize("name", sorted(path.stem for path in (config_folder() / "launcher").glob("*.yaml")))
def test_the_configs_of_launchers_build(name):
    assert launch.read_command([f"launcher={name}"]).launcher.type == name
    if name == "slurm":
        assert set(load_config("launcher/slurm")) == set(vars(LauncherConfig())) - {"background"}, "the file says all"


def test_words_are_the_launchers_or_the_trainings():
    words = ["experiment=demo", "time=90", "qos=7", "launcher.setup=module load x", "trainer.max_steps=3", "--dry-run"]
    command = launch.read_command([*words, 'launcher.sbatch=["--a", "--b"]', "partition=null"])
    config = command.launcher
    assert (config.time, config.qos, config.setup, config.sbatch) == ("90", "7", ["module load x"], ["--a", "--b"])
    assert config.partition is None and command.dry_run
    assert command.arguments == ["experiment=demo", "trainer.max_steps=3"]


# What is refused.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["experiment=debug"], "no Slurm on this machine"),
        (["experiment=debug", "time=24h"], "time is '24h'"),
        (["experiment=debug", "launcher=moon"], "launcher/moon"),
        (["experiment=debug", "launcher.nods=2"], "did you mean 'nodes'"),
        (["experiment=debug", "gpus=-1"], "gpus is -1"),
        (["experiment=debug", "gpus=4", "tasks_per_node=2"], "one task has one GPU"),
        (["experiment=debug", "kind=dream"], "train, tokenize, evaluate, generate, sweep"),
        (["experiment=debug", "trainer.max_stepz=1"], "max_steps"),
        (["experiment=debug", "gpus=3", "--dry-run"], r"batch_size 4 is no multiple of 3 ranks x 1 windows; use 3"),
        (["experiment=debug", "run_dir=a b", "--dry-run"], "holds ' '"),
        (["experiment=debug", "kind=sweep"], "members=FILE"),
        (["kind=tokenize", "A", "B", "--tokenizer=t", "--shard=1"], "give tasks=N"),
        (["kind=generate", "A", "--tokenizer=t", "--prompts=p", "--out=o", "--shard=1/2"], "give tasks=N"),
        (["kind=generate", "A", "--tokenizer=t", "--sequence=a.png", "--out=o", "tasks=2"], "tasks=2 for one prompt"),
        (["kind=generate", "A", "--tokenizer=t", "--prompts=none.json", "--out=o"], "none.json cannot be read"),
        (["kind=evaluate", "A", "--tokenizer=t", "--suite=demo", "--out=o", "gpus=2", "--dry-run"], "nodes=1 gpus=1"),
        (["kind=evaluate", "A", "--tokenizer=t", "--suite=demo", "--out=o", "tasks=2"], "tasks=2 for --suite demo"),
        (["kind=evaluate", "A", "--tokenizer=t", "--suite=depth", "--out=o", "--shard=0/2"], "give tasks=N"),
        (["experiment=debug", "launcher=local", "gpus=99", "trainer.batch_size=99"], "gpus=99 is more than"),
        (["experiment=debug", "launcher=local", "nodes=2"], "one machine"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(words, message, no_slurm):
    with pytest.raises(UserError, match=message) as told:
        launch.main(words)
    assert "\n" not in str(told.value) and not everything_in(no_slurm)


def test_a_torn_line_hides_no_other_job(tmp_path):
    assert submitted(tmp_path) == []
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "jobs.jsonl").write_text('{"id": "7"}\n{"id": "8"}\n{"id')
    assert submitted(tmp_path) == ["7", "8"]


def test_members_are_lines_of_overrides(tmp_path):
    file = tmp_path / "members.txt"
    file.write_text("# a grid\noptim.lr=1e-3 'data.stages=[1, 2]'\n\nseed=1 # again\n")
    assert read_members(str(file)) == [["optim.lr=1e-3", "data.stages=[1, 2]"], ["seed=1"]]
    for text, message in [("# none\n", "has no members"), ("a='b\n", "could not split")]:
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            read_members(str(file))
    with pytest.raises(UserError, match="cannot be read"):
        read_members(str(tmp_path / "none"))


def test_a_folder_of_another_run_is_refused_with_the_difference(tmp_path):
    words = ["experiment=debug", "optim=trunk"]
    config = launch.compose([*words, "trainer.max_steps=50"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    launch.refuse_other_run(tmp_path, config)
    longer = ["trainer.max_steps=90", "trainer.devices=2", "trainer.save_every_steps=5", "logger=tensorboard"]
    launch.refuse_other_run(tmp_path, launch.compose([*words, *longer]))
    launch.refuse_other_run(tmp_path, launch.compose([*words, "optim.decay_from_step=50", "optim.decay_steps=5"]))
    with pytest.raises(UserError, match=r"model\.num_layers is 9 and was 2; optim\.lr is 0\.5 and was 0\.002;") as told:
        launch.refuse_other_run(tmp_path, launch.compose([*words, "optim.lr=0.5", "model.num_layers=9"]))
    assert "another run_dir" in str(told.value)
    other_data = [*words, "data.seed=7"]
    with pytest.raises(UserError, match=r"data\.seed is 7"):
        launch.refuse_other_run(tmp_path, launch.compose(other_data))
    launch.refuse_other_run(tmp_path, launch.compose([*other_data, "data.new_plan=true"]))


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds something else than a run"):
        launch.refuse_other_run(tmp_path, launch.compose(["experiment=debug"]))


# This machine.


def test_the_local_launcher_trains_here_and_knows_when_it_is_done(tmp_path, capsys):
    run_dir = tmp_path / "run=1"
    overrides = [*tiny_run(tiny_tokenizer(tmp_path / "tokenizer")), f"run_dir='{run_dir}'", "launcher=local"]
    command = [sys.executable, "-m", "lvm", "launch", *overrides, "trainer.max_steps=2"]
    first = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert first.returncode == 0 and "finished at step 2" in first.stdout, first.stderr
    assert json.loads((run_dir / "result.json").read_text())["finished"]
    note = json.loads((run_dir / "slurm" / "launch.json").read_text())
    assert note["launcher"]["type"] == "local" and note["commit"] and "launcher=local" in note["command"]
    assert json.loads((run_dir / "slurm" / "config.json").read_text())["trainer"]["max_steps"] == 2

    assert launch.main([*overrides, "trainer.max_steps=2"]) == 0
    assert "nothing is submitted" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"optim\.lr is 0\.5 and was 0\.002"):
        launch.main([*overrides, "optim.lr=0.5"])


def test_a_local_run_in_the_background_saves_when_it_is_ended(tmp_path, capsys):
    run_dir, log = tmp_path / "run", tmp_path / "run" / "logs" / "job.log"
    overrides = [*tiny_run(tiny_tokenizer(tmp_path / "tokenizer")), f"run_dir={run_dir}", "trainer.log_every_steps=1"]
    assert launch.main([*overrides, "launcher=local", "background=true", "trainer.max_steps=100000"]) == 0
    pid = int(capsys.readouterr().out.split()[1])
    deadline = time.monotonic() + 250
    while not list(run_dir.glob("metrics/*")):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    os.kill(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGTERM
    assert "stopped at step" in log.read_text() and list(run_dir.glob("checkpoints/step-*"))
