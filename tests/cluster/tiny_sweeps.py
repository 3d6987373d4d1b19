"""Sweeps whose members train for seconds: a random tokenizer of 4 tokens a picture, 8 steps."""

import json

from tiny_runs import tiny_run, tiny_tokenizer

from lvm.cluster.sweeps import sweep_config


def tiny_overrides(folder):
    """Of every member; the tokenizer is written into `folder`."""
    steps = ["trainer.max_steps=8", "trainer.save_every_steps=4", "trainer.validate_every_steps=4"]
    trainer = ["trainer.validation_windows=8", "trainer.accelerator=cpu", "trainer.keep_every_steps=4"]
    return [*tiny_run(tiny_tokenizer(folder / "tokenizer")), "data.held_out_per_mille=150", *steps, *trainer]


def write_sweep(folder, overrides, stages):
    """A sweep file; JSON is YAML."""
    path = folder / "tiny.yaml"
    content = {"overrides": overrides, "stages": stages}
    sweep_config(content, "tiny")
    path.write_text(json.dumps(content))
    return path
