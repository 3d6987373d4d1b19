"""Run folders as a sweep leaves them: real configs, losses of a law that is known."""

import json
from functools import cache
from pathlib import Path

import numpy as np

from lvm.runtime.config_files import load_config
from lvm.training.outcome import FILE

TOKENS_A_STEP = 3456
LAW = {"E": 2.0, "A": 400.0, "B": 3000.0, "alpha": 0.4, "beta": 0.5}
SIZES = (100_000, 200_000, 500_000, 1_000_000, 2_000_000)
STEPS = (580, 2320, 9280)
BRANCH = ("optim.decay_from_step=400", "optim.decay_steps=100")


def true_loss(n, tokens):
    return LAW["E"] + LAW["A"] / n ** LAW["alpha"] + LAW["B"] / tokens ** LAW["beta"]


@cache
def composed(overrides):
    return json.dumps(load_config("train", ["experiment=scaling", *overrides]))


def write_run(folder, n, steps, loss, lr=0.004, seed=0, overrides=BRANCH, plan="a" * 64, **result):
    """A finished run: its config, result and the manifest of a checkpoint."""
    folder = Path(folder)
    config = json.loads(composed(tuple(overrides))) | {"seed": seed}
    config["trainer"]["max_steps"], config["optim"]["lr"] = steps, lr
    outcome = {
        "finished": True,
        "signal": None,
        "step": steps,
        "max_steps": steps,
        "tokens": steps * TOKENS_A_STEP,
        "validation_loss": loss,
        "validation_step": steps,
        "parameters": n + 65_000,
        "non_embedding_parameters": n,
        "flops_per_token": 6 * n + 400_000,
    }
    (folder / "checkpoints/step-00000001").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / FILE).write_text(json.dumps(outcome | result))
    manifest = {"fingerprints": {"plan": plan, "tokenizer": "b" * 64}}
    (folder / "checkpoints/step-00000001/manifest.json").write_text(json.dumps(manifest))
    return folder


def write_grid(root, noise=0.003, seed=0, sizes=SIZES, all_steps=STEPS, best_lr=0.004):
    """Sizes x tokens at one rate, losses of LAW with noise."""
    rng = np.random.default_rng(seed)
    for n in sizes:
        for steps in all_steps:
            loss = true_loss(n, steps * TOKENS_A_STEP) * np.exp(noise * rng.standard_normal())
            write_run(root / f"branch/model={n},steps={steps}", n, steps, float(loss), best_lr)
    return root


def write_rates(root, sizes=SIZES, lrs=(0.002, 0.004, 0.008, 0.016), best=lambda n: 0.006 * (n / 500_000) ** -0.25):
    """Rates at the smallest budget, a parabola in log lr around `best`."""
    for n in sizes:
        for lr in lrs:
            loss = true_loss(n, STEPS[0] * TOKENS_A_STEP) + 0.05 * np.log(lr / best(n)) ** 2
            write_run(root / f"lr/model={n},lr={lr}", n, STEPS[0], float(loss), lr)
    return root
