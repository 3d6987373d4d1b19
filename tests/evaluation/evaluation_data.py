"""A tokenizer, a decoder and prompts small enough to evaluate in a second."""

import numpy as np
import torch

from lvm.evaluation.prompts import ClipSet, PromptSet, assemble, cut_clips
from lvm.model import LVM, LVMConfig
from lvm.sources import Item
from tokenizer import VQGAN, VQGANConfig

SIZE, TOKENS, CODES = 16, 4, 32
CHANNELS = ("image", "depth", "segmentation", "gray", "noisy")


def tiny_tokenizer() -> VQGAN:
    torch.manual_seed(0)
    config = VQGANConfig(
        hidden_channels=8,
        channel_mult=(1, 1, 1, 1),
        num_res_blocks=1,
        z_channels=4,
        quantized_embed_dim=4,
        num_embeddings=CODES,
        resolution=SIZE,
        norm_groups=2,
    )
    vq = VQGAN(config).eval()
    with torch.no_grad():  # codes that pictures of different colours do not share
        flat = torch.rand(CODES, 3, 1, 1).expand(-1, -1, SIZE, SIZE)
        vq.quantize.embedding.weight.copy_(vq.latents(flat)[:, :, 0, 0])
    return vq


def tiny_model(**changes: object) -> LVM:
    values = {"num_codes": CODES, "hidden_size": 16, "intermediate_size": 32, "num_layers": 2, "num_heads": 2}
    values |= {"max_position": 64, "tokens_per_picture": TOKENS, **changes}
    return LVM(LVMConfig(**values), seed=1).eval()  # type: ignore[arg-type]


def random_channels(item: int, view: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng((item, view))
    tiles = {name: rng.integers(0, 256, (2, 2, 3)).astype(np.uint8) for name in CHANNELS}
    return {name: tile.repeat(SIZE // 2, 0).repeat(SIZE // 2, 1) for name, tile in tiles.items()}


def tiny_prompts(num_targets: int = 6) -> PromptSet:
    sentences = np.arange(6 * num_targets).reshape(num_targets, 6)
    return assemble(sentences, np.ones(num_targets, int), random_channels, lambda i: f"item-{i}", tiny_tokenizer())


def tiny_clips(num_clips: int = 5, num_frames: int = 8) -> ClipSet:
    rng = np.random.default_rng(0)
    frames = lambda: rng.integers(0, 256, (num_frames + 3, SIZE, SIZE, 3)).astype(np.uint8)
    items = [Item(f"clip-{k}", f"clip-{k}", 0, -1, {"image": frames()}) for k in range(num_clips)]
    clips = cut_clips(items, tiny_tokenizer(), num_frames, seed=0)
    assert clips is not None
    return clips
