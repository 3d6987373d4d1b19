"""Pictures whose task only the pairs tell: two kinds of input, each with an answer that the sentence's view decides.

A net that reads its pairs finds the answer of the pair whose input is of the query's kind; `shuffled` pairs answer the
wrong kind. Pictures are flat, of
one code.
"""

from typing import Any

import numpy as np
import torch

from lvm.model import LVM, LVMConfig
from tokenizer import VQGAN, VQGANConfig

SIZE, CODES = 16, 32
KINDS, ANSWERS, VIEWS = 2, 6, 30  # kinds of input; answers that a kind may have; (answer of 0, answer of 1) pairs


def one_code_tokenizer() -> VQGAN:
    """A picture of 16 px is one code; that of a flat one is its colour's."""
    torch.manual_seed(0)
    sizes = {"hidden_channels": 8, "z_channels": 4, "quantized_embed_dim": 4, "norm_groups": 2, "num_res_blocks": 1}
    vq = VQGAN(VQGANConfig(**sizes, channel_mult=(1,) * 5, num_embeddings=CODES, resolution=SIZE)).eval()
    with torch.no_grad():
        vq.quantize.embedding.weight.copy_(
            vq.latents(torch.rand(CODES, 3, 1, 1).expand(-1, -1, SIZE, SIZE))[:, :, 0, 0]
        )
    return vq


def colour_codes(vq: VQGAN) -> tuple[np.ndarray, np.ndarray]:
    """Colours whose codes differ, and these."""
    colours = np.random.default_rng(3).integers(0, 256, (400, 3)).astype(np.uint8)
    flat = torch.from_numpy(colours).float()[:, :, None, None].expand(-1, -1, SIZE, SIZE) / 255
    codes, first = np.unique(vq.encode(flat).numpy()[:, 0], return_index=True)
    kept = slice(KINDS + ANSWERS)
    return colours[first[kept]], codes[kept]


def answers_of(view: int) -> tuple[int, int]:
    """Two different ones."""
    one, other = divmod(view % VIEWS, ANSWERS - 1)
    return one, other + (other >= one)


class ShiftedItems:
    """Item i is of kind i mod 2; its answer under a view is that view's of its kind."""

    name, channels = "shifted", ("image", "out", "gray")

    def __init__(self, vq: VQGAN, number: int = 64):
        self.colours, _ = colour_codes(vq)
        assert len(self.colours) == KINDS + ANSWERS
        self.ids = self.groups = [f"item-{i}" for i in range(number)]
        self.labels = [""] * number

    def __len__(self) -> int:
        return len(self.ids)

    def has(self, i: int, channel: str) -> bool:
        return True

    def may_ask(self, i: int) -> bool:
        return True

    def views(self, i: int) -> range:
        return range(1, 1 + VIEWS)

    def read(self, i: int, view: int, channels=None) -> dict[str, np.ndarray]:
        flat = lambda n: np.broadcast_to(self.colours[n], (SIZE, SIZE, 3)).copy()
        kind = i % KINDS
        return {"image": flat(kind), "out": flat(KINDS + answers_of(view)[kind]), "gray": flat(1 - kind)}

    def fingerprint(self) -> str:
        return "shifted"


def train(vq: VQGAN, mixed_up: bool, steps: int = 600, pairs: int = 4) -> LVM:
    """A net of two layers on sentences of pairs; `mixed_up`: the answers of the pairs before the last change places."""
    _, codes = colour_codes(vq)
    config: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_layers": 2, "num_heads": 4}
    config |= {"max_position": 2 * pairs + 2, "tokens_per_picture": 1, "num_codes": CODES}
    model = LVM(LVMConfig(**config, tokenizer_fingerprint=vq.fingerprint), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0)
    rng = np.random.default_rng(0)
    table = np.array([answers_of(view) for view in range(VIEWS)])
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 30, (steps - step) / 60)
        kinds = rng.integers(0, KINDS, (32, pairs + 1))
        answers = KINDS + table[rng.integers(0, VIEWS, (32, 1)), kinds]
        if mixed_up:
            answers[:, :-1] = rng.permuted(answers[:, :-1], axis=1)
        pictures = np.stack([kinds, answers], 2).reshape(32, -1)  # b p 2 -> b (p 2)
        tokens = torch.from_numpy(codes[pictures])
        tokens = torch.cat([torch.full((32, 1), model.config.bos), tokens], 1)
        loss = model.nll(tokens)[:, 1::2].mean()  # of all answers
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()
