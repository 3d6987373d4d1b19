"""Sweeps: what a file comes to, what is done is left alone, what failed is told and started again, real small runs."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_sweeps import tiny_overrides, write_sweep

from lvm.cluster.sweep_launchers import last_line, shares
from lvm.cluster.sweep_state import border, config_differences, decide
from lvm.cluster.sweeps import compose, hydra_text, make_sweep, read_sweep, steps_for, sweep_config, sweep_names
from lvm.commands import sweep as command
from lvm.model import LVMConfig
from lvm.runtime import UserError, build, read_json, write_json

VARIED = ("model", "optim", "data", "trainer", "seed")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_overrides(tmp_path_factory.mktemp("tiny"))


def table(folder):
    return {row["member"]: row for row in read_json(folder / "table.json")}


def finished_at(folder):
    """When each member's result was written."""
    return {str(path.parent.name): path.stat().st_mtime_ns for path in folder.glob("*/*/result.json")}


# What a file comes to.


@pytest.mark.parametrize("name", sweep_names())
def test_every_sweep_composes_and_its_members_differ(name, tmp_path):
    sweep = make_sweep(name, tmp_path, read_sweep(name))
    configs = []
    for member in sweep.all_members():
        command.check_config(member.overrides)
        configs.append(json.dumps({key: compose(member.overrides)[key] for key in VARIED}))
        if member.best is None and member.branch_from is None:
            assert configs.count(configs[-1]) == 1, f"{member.id} is another member over again"
    assert len(sweep.all_members()) >= 3


def test_the_scaling_sweep_has_the_members_of_the_law():
    sweep = make_sweep("scaling", Path("runs/scaling"), read_sweep("scaling"))
    assert {stage: len(members) for stage, members in sweep.members.items()} == {"lr": 25, "trunk": 5, "branch": 10}
    first = sweep.members["lr"][2]
    assert str(first.folder) == "runs/scaling/lr/model=ladder_0.1m,optim.lr=0.004"
    by_hand = (
        "experiment=scaling model=ladder_0.1m optim.lr=0.004 optim.decay_from_step=464 optim.decay_steps=116 "
        "trainer.max_steps=580 trainer.num_threads=1"
    )
    assert compose(first.overrides) == compose(by_hand.split())
    branch = sweep.members["branch"][1]
    assert str(branch.folder) == "runs/scaling/branch/model=ladder_0.1m,trainer.max_steps=9280"
    assert branch.value("optim.decay_from_step") == "7424" and branch.value("optim.decay_steps") == "1856"


def test_a_budget_in_flops_pays_for_the_steps():
    overrides = ["experiment=scaling", "model=ladder_1m"]
    steps = int(steps_for(1e14, overrides)[0].partition("=")[2])
    config = compose(overrides)
    a_token = build(LVMConfig, config["model"], "model").flops_per_token(432)
    assert steps * a_token * 432 * config["trainer"]["batch_size"] == pytest.approx(1e14, rel=0.01)
    with pytest.raises(UserError, match="less than one step"):
        steps_for(1e6, overrides)


@pytest.mark.parametrize(
    "value", [0.002, 1e-7, 580, True, None, "muon", "a b=c,'d'", "null", "1", [1, [2, 3]], {"a": 1}]
)
def test_a_value_survives_hydra(value):
    assert compose([f"+extra={hydra_text(value)}"])["extra"] == value


def test_keys_that_change_nothing_may_differ_and_new_keys_count_at_their_default():
    saved, now, default = {"optim": {"lr": 1}}, {"optim": {"lr": 1, "new": 2}}, {"optim": {"lr": 3, "new": 2}}
    assert config_differences(saved, now, default) == []
    assert config_differences(saved, {"optim": {"lr": 1, "new": 5}}, default) == ["optim.new is 5 and was 2"]
    assert config_differences(saved, {"optim": {"lr": 2}}, default) == ["optim.lr is 2 and was 1"]
    free = {"run_dir": "a", "trainer": {"num_threads": 1, "parallel": {"shard": 2}}}
    assert config_differences(free, {"run_dir": "b", "trainer": {"num_threads": 2}}, {}) == []


def test_the_border_of_a_grid():
    assert border("0.002", ["0.002", "0.004", "0.008"]) == "lowest"
    assert border("0.008", ["0.002", "0.004", "0.008"]) == "highest"
    assert border("0.004", ["0.002", "0.004", "0.008"]) is None
    assert border("muon", ["adamw", "muon"]) is None


def test_a_loss_that_is_not_finite_is_never_the_best(tmp_path):
    last = {"stage": "a", "key": "optim.lr"}
    stages = {"a": {"grid": {"optim.lr": [1, 2, 3]}}, "b": {"grid": {"seed": [0]}, "best": last}}
    sweep = make_sweep("s", tmp_path, sweep_config({"stages": stages}, "s"))
    for member, loss in zip(sweep.members["a"], ("nan", 2.0, 1.5)):
        result = {"finished": True, "step": 4, "validation_step": 4, "validation_loss": loss}
        write_json(member.folder / "result.json", result)
    decision = decide(sweep, sweep.members["b"][0])
    assert "optim.lr=3" in decision.overrides and "incomplete grid: 1 came to no loss" in decision.notes[0]


def test_workers_share_the_cores():
    assert shares([0, 1, 2, 3, 4], 2) == [[0, 1], [2, 3, 4]]
    assert shares([4, 7], 3) == [[4], [7], [4]]


def test_the_line_that_says_what_went_wrong(tmp_path):
    log = tmp_path / "log"
    log.write_text("error: of an earlier attempt\nstep 1\nTraceback (most recent call last):\nKeyError: 'a'\nbye\n")
    assert last_line(log) == "KeyError: 'a'"
    assert last_line(log, log.stat().st_size) == ""


# Bad input: one line, nothing started.


def fine(**changes):
    stage = {"grid": {"model": ["ladder_1m"], "optim.lr": [0.1, 0.2]}}
    return {"overrides": ["experiment=scaling"], "stages": {"a": stage, **changes}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"stages": {}}, "has no members"),
        (fine(b={"grid": {}}), "stage b has no members"),
        (fine(b={"grid": {"seed": []}}), "its seed has no values"),
        (fine(b={"grid": {"seed": 3}}), "seed is 3; give a list"),
        (fine(b={"gird": {"seed": [1]}}), "did you mean 'grid'"),
        (fine(b={"grid": {"seed": [1]}, "best": {"stage": "c", "key": "optim.lr"}}), "no earlier one; earlier: a"),
        (fine(b={"grid": {"seed": [1]}, "best": {"stage": "a", "key": "optim.lrr"}}), "needs the key 'optim.lrr'"),
        (fine(b={"grid": {"seed": [1]}, "best": {"stage": "a", "key": "optim.lr", "by": "model"}}), "key 'model'"),
        (fine(b={"grid": {"seed": [1]}, "best": {"stage": "a", "key": "variant"}}), "'variant', which is no override"),
        (fine(b={"grid": {"seed": [1, 1]}}), "two members named seed=1"),
        (fine(b={"grid": {"optim.lrr": [1]}}), r"unknown config key 'optim\.lrr'"),
        (fine(b={"grid": {"optim.lr": [-1]}}), r"optim\.lr is -1"),
        (fine(b={"grid": {"variant": ["muon"]}}), "variants are names with overrides"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_anything_is_started(tmp_path, content, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        command.main(["run", str(path), f"out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "scalling"], "did you mean 'scaling'"),
        (["rum", "scaling"], "use run, list, table, fit"),
        (["run"], "needs the name of a sweep; known: .*scaling"),
        (["run", "scaling", "stage=lrs"], "has no stage 'lrs'; it has lr, trunk, branch"),
        (["run", "scaling", "stage=trunk"], "every member .* run it first"),
        (["run", "scaling", "optim.lr=1"], "stage lr varies optim.lr"),
        (["run", "scaling", "run_dir=a"], "its own run_dir"),
        (["run", "scaling", "partition=a"], "is for launcher=slurm"),
        (["run", "scaling", "launcher=sloorm"], "'local', 'slurm'"),
        (["run", "scaling", "workers=0"], "workers is 0"),
        (["run", "scaling", "gpus=99"], "this machine shows 0"),
        (["table", "/nowhere/at/all"], "sweep.json is missing"),
    ],
)
def test_a_wrong_command_is_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        command.main(arguments)
    assert not list(tmp_path.iterdir())


# Real runs on this machine: half a minute each, several where many share its cores.

patient = pytest.mark.timeout(1200)


@patient
@pytest.mark.slow
def test_one_of_four_fails_is_told_and_the_next_call_runs_it_alone(tiny, tmp_path, capsys):
    store = tmp_path / "store"
    grid = {"variant": {"a": None, "b": {"seed": 1}, "c": {"seed": 2}, "d": {"data.sources.world.store": str(store)}}}
    sweep, out = write_sweep(tmp_path, tiny, {"first": {"grid": grid}}), tmp_path / "out"
    arguments = ["run", str(sweep), f"out={out}", "workers=2"]
    assert command.main(arguments) == 1
    said = capsys.readouterr()
    assert "first/variant=d (failed)" in said.err and "variant=a" not in said.err
    rows = table(out)
    assert [row["state"] for row in rows.values()] == ["finished"] * 3 + ["failed"]
    why = rows["first/variant=d"]["why"]
    assert re.match(r"exit code 2; error: ", why) and str(store) in why
    assert rows["first/variant=a"]["flops"] > 0 and rows["first/variant=a"]["validation_loss"] > 0
    assert why in (out / "table.md").read_text()

    world = next(Path(os.environ["LVM_CACHE"], "stores").glob("world-*/store.json")).parent
    shutil.copytree(world, store)
    before = finished_at(out)
    assert command.main(arguments) == 0
    after = finished_at(out)
    assert set(after) - set(before) == {"variant=d"} and before.items() <= after.items()
    assert {row["state"] for row in table(out).values()} == {"finished"}
    assert "3 done, 0 running already, 1 to run" in capsys.readouterr().out

    assert command.main(["table", str(out)]) == 0
    assert "first/variant=d" in capsys.readouterr().out
    assert command.main(["table", str(out), "--csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5

    with pytest.raises(UserError, match=r"another config: optim\.weight_decay is 0\.5 and was 0\.1"):
        command.main([*arguments, "optim.weight_decay=0.5"])
    assert finished_at(out) == after


@patient
def test_the_best_rate_is_carried_on_and_a_trunk_branched(tiny, tmp_path, capsys):
    stages = {
        "lr": {"grid": {"optim.lr": [1e-6, 3e-3]}, "overrides": ["optim=trunk"]},
        "trunk": {
            "grid": {"seed": [0, 1]},
            "overrides": ["optim=trunk"],
            "best": {"stage": "lr", "key": "optim.lr"},
        },
        "branch": {
            "grid": {
                "seed": [0, 1],
                "trainer.max_steps": {"6": {"optim.decay_from_step": 4, "optim.decay_steps": 2}},
            },
            "overrides": ["optim=trunk"],
            "best": {"stage": "lr", "key": "optim.lr"},
            "branch_from": {"stage": "trunk", "by": "seed", "step": "optim.decay_from_step"},
        },
    }
    overrides = [o for o in tiny if not o.startswith("trainer.validate_every_steps")]
    sweep = write_sweep(tmp_path, [*overrides, "trainer.validate_every_steps=2"], stages)
    out = tmp_path / "out"
    assert command.main(["run", str(sweep), f"out={out}"]) == 0
    said = capsys.readouterr().out
    assert "best optim.lr for all is 0.003, the highest of the grid: a better one may lie above" in said
    rows = table(out)
    assert len(rows) == 6 and {row["state"] for row in rows.values()} == {"finished"}
    losses = {name: row["validation_loss"] for name, row in rows.items()}
    assert losses["lr/optim.lr=0.003"] < losses["lr/optim.lr=1e-06"]
    branch = out / "branch" / "seed=1,trainer.max_steps=6"
    config = read_json(branch / "config.json")
    assert config["optim"]["lr"] == 0.003 and config["branch_from"].endswith("trunk/seed=1/checkpoints/step-00000004")
    assert read_json(branch / "result.json")["step"] == 6
    assert "step 4 of 6" in (branch / "logs" / "rank-0.log").read_text()


@patient
@pytest.mark.slow
def test_a_branch_whose_trunk_failed_is_told_and_the_others_go_on(tiny, tmp_path, capsys):
    fails = {"data.sources.world.store": str(tmp_path / "missing")}
    stages = {
        "trunk": {"grid": {"variant": {"good": None, "bad": fails}}},
        "branch": {
            "grid": {"variant": {"good": None, "bad": fails}},
            "overrides": ["optim=trunk", "optim.decay_from_step=8", "optim.decay_steps=2", "trainer.max_steps=10"],
            "branch_from": {"stage": "trunk", "by": "variant", "step": 8},
        },
    }
    sweep, out = write_sweep(tmp_path, [*tiny, "optim=trunk"], stages), tmp_path / "out"
    assert command.main(["run", str(sweep), f"out={out}"]) == 1
    rows = table(out)
    assert {name: row["state"] for name, row in rows.items()} == {
        "trunk/variant=good": "finished",
        "trunk/variant=bad": "failed",
        "branch/variant=good": "finished",
        "branch/variant=bad": "blocked",
    }
    assert "step-00000008, which is not there" in rows["branch/variant=bad"]["why"]


@patient
def test_a_sweep_that_is_stopped_saves_its_members_and_goes_on(tiny, tmp_path):
    grid = {"seed": [0, 1]}
    long = [o for o in tiny if "max_steps" not in o]
    sweep, out = write_sweep(tmp_path, [*long, "trainer.max_steps=4000"], {"s": {"grid": grid}}), tmp_path / "out"
    arguments = [sys.executable, "-m", "lvm", "sweep", "run", str(sweep), f"out={out}"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log = out / "s" / "seed=0" / "metrics" / "attempt-0000.jsonl"
    try:
        deadline = time.monotonic() + 600
        while not (log.is_file() and log.read_text().count("\n") > 2):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, said
    result = read_json(out / "s" / "seed=0" / "result.json")
    assert not result["finished"] and result["step"] > 0
    assert not (out / "s" / "seed=1").exists()
    states = [row["state"] for row in read_json(out / "table.json")]
    assert states[0] == "stopped" and states[1] in ("new", "queued")
