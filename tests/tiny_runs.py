"""Overrides of a training of seconds: a random tokenizer of 4 tokens a picture, a world of 120 scenes."""

import torch

from tokenizer import VQGAN, VQGANConfig


def tiny_tokenizer(folder):
    """Written there; the folder."""
    config = VQGANConfig(
        hidden_channels=8,
        channel_mult=(1, 1, 1, 1),
        num_res_blocks=1,
        z_channels=4,
        quantized_embed_dim=4,
        norm_groups=2,
        num_embeddings=32,
        resolution=16,
    )
    torch.manual_seed(4)  # of a random net most draws give nearly all pictures the same codes
    VQGAN(config).save_pretrained(folder)
    return folder


def tiny_run(tokenizer):
    model = ["model.num_codes=32", "model.tokens_per_picture=4", "model.hidden_size=32", "model.intermediate_size=48"]
    data = ["world.num_scenes=120", "world.num_clips=12", "data.seq_len=16", "data.period=32"]
    return ["experiment=debug", f"tokenizer={tokenizer}", "trainer.num_threads=1", *model, *data]
