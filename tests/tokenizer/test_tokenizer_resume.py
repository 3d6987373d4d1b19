"""A killed or stopped training goes on as if nothing had been: everything equal to the bit, on one rank and on two."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_training import flat_pictures, small

from lvm.runtime import UserError
from lvm.runtime.checkpoint import list_checkpoints, read_state
from lvm.runtime.metrics import read_metrics
from tokenizer.train import train

CPU = torch.device("cpu")
HEARD = {"start_step": 8, "ramp_steps": 8}
# Kills before, inside and after the ramp of steps 8..16; saves every second step, in the background.
KILLS = (5, 13, 21)
CHANGES = {
    "steps": 26, "log_every_steps": 2, "save_every_minutes": 0, "loss": {"adversarial": 0.5},
    "discriminator": HEARD, "crop": 8, "flip": True, "full_size_share": 0.3, "usage_floor": 0.0,
}  # fmt: skip


def run_ranks(out: Path, world_size: int, kill_at: int = 0, **changes: object) -> list[dict[str, str]]:
    """Digests of all that a checkpoint holds, of every rank; nothing of a run that was killed."""
    out.mkdir(exist_ok=True)
    program = str(Path(__file__).with_name("small_training.py"))
    init_file = out.parent / f"init-{out.name}-{kill_at}-{len(list(out.parent.iterdir()))}"
    arguments = [str(out), json.dumps(CHANGES | changes), str(kill_at), str(init_file)]
    environment = os.environ | {"WORLD_SIZE": str(world_size), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, program, *arguments], env=environment | {"RANK": str(rank)}, stderr=subprocess.PIPE
        )
        for rank in range(world_size)
    ]
    try:
        _, errors = ranks[0].communicate(timeout=240)
        if kill_at:
            assert ranks[0].returncode == -signal.SIGKILL, errors.decode()[-2000:]
            return []
        assert ranks[0].returncode == 0, errors.decode()[-2000:]
        for rank in ranks[1:]:
            assert rank.wait(60) == 0
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    return [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(world_size)]


def killed_and_whole(folder: Path, world_size: int, **changes: object) -> tuple[list[dict[str, str]], ...]:
    """Hashes of all parts of the state, on every rank, of a run killed three times and of an uninterrupted one."""
    whole = run_ranks(folder / "whole", world_size, **changes)
    lost = []
    for kill_at in KILLS:
        run_ranks(folder / "killed", world_size, kill_at, **changes)
        saved = list_checkpoints(folder / "killed" / "checkpoints")
        lost.append(kill_at - (read_state(saved[-1])["step"] if saved else 0))
    killed = run_ranks(folder / "killed", world_size, **changes)
    assert max(lost) <= 4, "a save is complete before the next but one begins"
    parts = {name.split(".")[0] for name in whole[0]}
    assert parts == {"model", "average", "optim", "keeper", "used", "discriminator", "discriminator_optim"}
    histories = [
        [{k: v for k, v in line.items() if k not in ("time", "minutes", "pictures_per_second")} for line in lines]
        for lines in (read_metrics(folder / name / "metrics") for name in ("whole", "killed"))
    ]
    assert histories[0] == histories[1]
    return killed, whole


def test_one_rank_killed_before_in_and_after_the_ramp_ends_as_the_uninterrupted_run(tmp_path):
    killed, whole = killed_and_whole(
        tmp_path, 1, quantizer={"kind": "ema", "continuous_steps": 3, "restart_every_steps": 5}
    )
    assert killed == whole


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "ema"])
def test_two_ranks_killed_before_in_and_after_the_ramp_end_as_the_uninterrupted_run(tmp_path, kind):
    quantizer = {"kind": kind, "continuous_steps": 3, "restart_every_steps": 5}
    killed, whole = killed_and_whole(tmp_path, 2, quantizer=quantizer)
    assert killed == whole and whole[0] == whole[1]


def test_two_ranks_hold_the_same_codebook_and_learn_what_one_learns(tmp_path):
    changes = {"steps": 16, "quantizer": {"continuous_steps": 3, "restart_every_steps": 3}}
    first, second = run_ranks(tmp_path / "two", 2, **changes)
    assert first == second
    lines = read_metrics(tmp_path / "two" / "metrics")
    assert sum(line["revived"] for line in lines) > 0, "a revival is what ranks could drift apart by"
    train(small(**CHANGES | changes), tmp_path / "one", flat_pictures(), lambda line: None, CPU)
    alone = read_metrics(tmp_path / "one" / "metrics")
    assert [line["loss"] for line in lines[:3]] == pytest.approx([line["loss"] for line in alone[:3]], rel=0.05)


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_continues(tmp_path, number):
    config = small(steps=24, log_every_steps=4)

    def interrupt(line: str) -> None:
        if line.startswith("step 12 "):
            os.kill(os.getpid(), number)

    stopped = train(config, tmp_path / "parts", flat_pictures(), interrupt, CPU)
    assert stopped.tokenizer is None and stopped.signal == number and 12 <= stopped.step <= 14
    assert list_checkpoints(tmp_path / "parts" / "checkpoints")[-1].name == f"step-{stopped.step:08d}"
    parts = train(config, tmp_path / "parts", flat_pictures(), lambda line: None, CPU)
    whole = train(config, tmp_path / "whole", flat_pictures(), lambda line: None, CPU)
    assert parts.tokenizer.fingerprint == whole.tokenizer.fingerprint
    again = train(config, tmp_path / "whole", flat_pictures(), lambda line: None, CPU)
    assert again.step == 24 and len(list((tmp_path / "whole" / "metrics").iterdir())) == 1


def test_a_second_incarnation_is_refused(tmp_path):
    refused = []

    def second(line: str) -> None:
        if line.startswith("step 10 "):
            with pytest.raises(UserError, match="in use by pid") as error:
                train(small(steps=20), tmp_path, flat_pictures(), lambda line: None, CPU)
            refused.append(error)

    train(small(steps=20), tmp_path, flat_pictures(), second, CPU)
    assert len(refused) == 1


def command(folder: Path, *overrides: str) -> list[str]:
    import numpy as np
    import yaml
    from small_training import SMALL

    pictures = flat_pictures()
    np.save(folder / "pictures.npy", np.concatenate([pictures.train, pictures.held_out]))
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    given = [f"experiment={folder / 'small.yaml'}", f"out={folder / 'run'}", f"pictures={folder / 'pictures.npy'}"]
    return [sys.executable, "-m", "tokenizer.train", *given, "accelerator=cpu", "steps=14", *overrides]


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["devices=2", "torchrun"])
def test_the_command_trains_on_two_ranks(tmp_path, launch):
    words = command(tmp_path, "devices=2")
    if launch == "torchrun":
        words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", *words[1:]]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "finished" in done.stdout and (tmp_path / "run" / "tokenizer" / "model.safetensors").is_file()


def test_a_mistake_of_the_command_is_one_line_and_exit_code_2(tmp_path):
    done = subprocess.run(
        command(tmp_path, "batch_size=7", "accumulate=2"), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith(
        "error: batch_size 7 is no multiple"
    )
