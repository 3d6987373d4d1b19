"""Small models of every kind that is exported, lively enough that a mistake shows, and prompts for them."""

import torch

from lvm.commands.export import export
from lvm.model import LVM, LVMConfig

SMALL = LVMConfig(
    num_codes=120,
    hidden_size=40,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    max_position=128,
    tokens_per_picture=4,
)
KINDS = {
    "llama": {},
    "without BOS": {"prompt_bos": False},
    "grouped": {"num_kv_heads": 2},
    "tied": {"tie_embeddings": True},
    "qk_norm": {"qk_norm": True, "num_kv_heads": 2},
    "biases": {"attention_bias": True},
}


def lively(config, seed=3, scale=8.0):
    """A model whose predictions are far from uniform, so that a mistake shows; biases and norms count."""
    model, generator = LVM(config, seed=seed), torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(scale)
        else:
            low = -0.5 if name.endswith("bias") else 0.5
            parameter.data.uniform_(low, low + 1, generator=generator)
    return model.eval()


def exported(model, folder, **options):
    model.save_pretrained(folder / "saved")
    export(folder / "saved", folder / "hf", **options)
    return folder / "hf"


def prompts(config, count=4, length=24):
    codes = torch.randint(config.num_codes, (count, length), generator=torch.Generator().manual_seed(5))
    begin = torch.full((count, 1 if config.prompt_bos else 0), config.num_codes)
    return codes, torch.cat([begin, codes], dim=1)
