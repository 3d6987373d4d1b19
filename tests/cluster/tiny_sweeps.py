"""Sweeps whose members train for seconds: a random tokenizer of 4 tokens a picture, 60 scenes, 8 steps."""

import json

import torch

from lvm.cluster.sweeps import sweep_config
from tokenizer import VQGAN, VQGANConfig


def tiny_overrides(folder):
    """Of every member; the tokenizer is written into `folder`."""
    config = VQGANConfig(
        hidden_channels=8,
        channel_mult=(1, 1, 1, 1),
        num_res_blocks=1,
        z_channels=4,
        quantized_embed_dim=4,
        num_embeddings=32,
        resolution=16,
        norm_groups=2,
    )
    torch.manual_seed(4)
    VQGAN(config).save_pretrained(folder / "tokenizer")
    model = ["model.num_codes=32", "model.tokens_per_picture=4", "model.hidden_size=32", "model.intermediate_size=48"]
    data = ["world.num_scenes=120", "world.num_clips=12", "data.seq_len=16", "data.period=32"]
    data.append("data.held_out_per_mille=150")
    steps = ["trainer.max_steps=8", "trainer.save_every_steps=4", "trainer.validate_every_steps=4"]
    trainer = ["trainer.validation_windows=8", "trainer.accelerator=cpu", "trainer.num_threads=1"]
    trainer.append("trainer.keep_every_steps=4")
    return ["experiment=debug", f"tokenizer={folder / 'tokenizer'}", *model, *data, *steps, *trainer]


def write_sweep(folder, overrides, stages):
    """A sweep file; JSON is YAML."""
    path = folder / "tiny.yaml"
    content = {"overrides": overrides, "stages": stages}
    sweep_config(content, "tiny")
    path.write_text(json.dumps(content))
    return path
