"""A tokenizer of 16 px and a net of two layers and six pictures: prompts answered in a moment."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lvm.commands.generate import main
from lvm.model import LVM, LVMConfig
from tokenizer import VQGAN, VQGANConfig

NET = VQGANConfig(
    hidden_channels=8,
    channel_mult=(1, 1, 1),
    num_res_blocks=1,
    z_channels=8,
    quantized_embed_dim=8,
    num_embeddings=32,
    resolution=16,
    norm_groups=1,
)
SIZE, TOKENS = 16, 16


def small_vqgan() -> VQGAN:
    torch.manual_seed(0)
    return VQGAN(NET).eval()


def small_model(vq: VQGAN, **change) -> LVM:
    config = LVMConfig(
        num_codes=32,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=2,
        max_position=96,  # BOS and six pictures of 16, of which the last code is never fed
        tokens_per_picture=TOKENS,
        tokenizer_fingerprint=vq.fingerprint,
    )
    model = LVM(replace(config, **change), seed=1)
    for parameter in model.parameters():
        parameter.data.mul_(6.0 if parameter.ndim > 1 else 1.0)
    return model


def pictures(number: int, size: int = SIZE, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (number, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(size // 4, 1).repeat(size // 4, 2)


def command(folder: Path, *rest: str) -> int | None:
    """`lvm generate` on the model and tokenizer of `folder`, where the pictures among the words lie."""
    paths = [str(folder / word) if word.endswith(".png") else word for word in rest]
    return main([str(folder / "model"), "--tokenizer", str(folder / "tokenizer"), *paths])


def write_lines(file: Path, rows: list) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
