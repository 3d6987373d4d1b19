"""A tokenizer of 16-px pictures whose random encoder uses many codes, and a source drawn from counters."""

import pytest
import torch
from toy_source import ToySource

from tokenizer import VQGAN, VQGANConfig


@pytest.fixture(scope="session")
def vqgan() -> VQGAN:
    torch.manual_seed(0)
    config = VQGANConfig(
        hidden_channels=8,
        channel_mult=(1, 1, 1),
        num_res_blocks=1,
        z_channels=4,
        quantized_embed_dim=4,
        num_embeddings=64,
        resolution=16,
        norm_groups=1,
    )
    vqgan = VQGAN(config).eval()
    with torch.no_grad():  # codes are latents of random pictures, so that pictures differ in their codes
        latents = vqgan.latents(torch.rand(64, 3, 16, 16)).permute(0, 2, 3, 1).reshape(-1, 4)
        vqgan.quantize.embedding.weight.copy_(latents[torch.randperm(len(latents))[:64]])
    return vqgan


@pytest.fixture(scope="session")
def tokenizer_folder(vqgan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    vqgan.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def toy_store(vqgan, tmp_path_factory):
    """90 pictures with two views each and 10 clips, in 4 shards."""
    from lvm.store import build_store

    return build_store(ToySource(), tmp_path_factory.mktemp("toy") / "store", vqgan, shard_size=25, workers=0)
