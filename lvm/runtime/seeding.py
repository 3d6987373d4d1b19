"""One generator per name: what is drawn for one parameter does not depend on the others, nor on the mesh."""

import torch

from lvm.runtime.hashing import seed_from


def generator_for(seed: int, name: str, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator keyed by (seed, name), equal in every process. Draw on the CPU for equal bits on all machines."""
    return torch.Generator(device).manual_seed(seed_from(seed, name))
