"""`train.py` and `lvm export` as commands: one trains, continues and exports; mistakes are one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lvm.commands import export, train
from lvm.model import LVM
from lvm.runtime import UserError, config_folder
from lvm.runtime.checkpoint import list_checkpoints
from lvm.runtime.config_files import load_config
from lvm.training import model_of_run

ROOT = Path(__file__).parents[2]
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")


def test_one_command_builds_the_store_trains_continues_and_exports(small, tmp_path, capsys):
    overrides, run_dir = small
    assert train.main([*overrides, "trainer.max_steps=2"]) == 0
    assert train.main([*overrides, "trainer.max_steps=4"]) == 0
    assert "step 2 of 4" in capsys.readouterr().out
    assert list_checkpoints(run_dir / "checkpoints")[-1].name == "step-00000004"
    written = json.loads((run_dir / "config.json").read_text())
    assert written["trainer"]["max_steps"] == 4 and written["model"]["hidden_size"] == 32

    assert export.main([str(run_dir), str(tmp_path / "hf")]) == 0
    exported, trained = LVM.from_pretrained(tmp_path / "hf"), model_of_run(run_dir)
    assert exported.config == trained.config and len(exported.config.tokenizer_fingerprint) == 64
    for (name, p), q in zip(exported.named_parameters(), trained.parameters(), strict=True):
        assert torch.equal(p, q), name
    with pytest.raises(UserError, match="exists"):
        export.main([str(run_dir), str(tmp_path / "hf")])
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        export.main([str(tmp_path), str(tmp_path / "other")])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.hiden_size=3", "hidden_size"),
        ("trainer.batch_size=0", r"trainer\.batch_size is 0"),
        ("model.num_codes=1024", r"model\.num_codes=32"),
        ("experiment=nothing", "demo"),
        ("optim.schedule=square", "'cosine', 'wsd'"),
        ("trainer.num_nodes=0", "num_nodes=0: "),
        pytest.param("trainer.accelerator=cuda", "accelerator=cuda devices=1", marks=WITHOUT_GPU),
    ],
)
def test_a_mistake_is_one_line_and_writes_no_run(small, tmp_path, override, message):
    overrides, _ = small
    with pytest.raises(UserError, match=message):
        train.main([*overrides, f"run_dir={tmp_path / 'new'}", override])
    assert not (tmp_path / "new").exists()


def test_train_py_ends_with_exit_code_2_and_one_line():
    command = [sys.executable, str(ROOT / "train.py"), "trainer.max_stepz=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "max_steps" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("group", ["model", "optim", "trainer", "logger", "experiment", "debug"])
def test_every_config_composes_into_its_dataclass_and_starts_with_its_command(group):
    for file in sorted((config_folder() / group).glob("*.yaml")):
        head = [line for line in file.read_text().splitlines() if not line.startswith("# @package")][:2]
        assert " train.py " in head[0] and head[1].startswith("# "), file
        config = load_config("train", [f"{group}={file.stem}"])
        train.build(train.LVMConfig, config["model"], "model")
        train.build(train.OptimConfig, config["optim"], "optim")
        train.build(train.TrainerConfig, config["trainer"], "trainer")


def test_run_folders_are_named_after_the_experiment_and_the_overrides_alone():
    assert train.run_name(["experiment=demo"]) == "demo"
    assert train.run_name(["experiment=demo", "seed=1", "trainer.max_steps=5"]) == "demo-seed=1"
    assert train.run_name(["seed=1", "experiment=demo"]) == train.run_name(["experiment=demo", "seed=1"])
    long = [f"data.entries.e{i}.weight=1" for i in range(20)]
    assert len(train.run_name(long)) <= 80 and train.run_name(long) != train.run_name(long[:-1])
    assert train.run_name(["a=[1,2]"]) != train.run_name(["a=(1,2)"])
