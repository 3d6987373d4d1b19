"""The codebook: nearest code, the training loss of a vector quantizer, k-means start, restart of dead codes.

Looking a code up is plain nearest neighbour, always. Training may keep latents and codes on the unit sphere
(`normalize=True`: l2-normalised codes, Yu et al. 2021, ViT-VQGAN): with codes of length one the nearest neighbour of a
latent and of its direction are the same, so a net trained that way is read by code that knows nothing of it.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

ROWS_AT_ONCE = 2**25  # distances in memory at a time (128 MB)


class VectorQuantizer(nn.Module):
    """A codebook of `num_embeddings` codes of `width` numbers (key `embedding.weight`, as published)."""

    def __init__(self, num_embeddings: int, width: int):
        super().__init__()
        self.embedding = nn.Embedding(num_embeddings, width)
        nn.init.uniform_(self.embedding.weight, -1.0 / num_embeddings, 1.0 / num_embeddings)

    def nearest(self, latents: "Float[Tensor, 'n d']") -> "Int64[Tensor, 'n']":
        return nearest(latents, self.embedding.weight)

    def lookup(self, codes: "Int64[Tensor, '...']") -> "Float[Tensor, '... d']":
        return self.embedding(codes)


def nearest(latents: "Float[Tensor, 'n d']", codebook: "Float[Tensor, 'k d']") -> "Int64[Tensor, 'n']":
    """The code with the least squared distance, in float32 whatever the surrounding autocast: z^2 is left out."""
    with torch.autocast(latents.device.type, enabled=False):
        codebook = codebook.detach().float()
        half_square = 0.5 * codebook.square().sum(1)
        rows = max(1, ROWS_AT_ONCE // len(codebook))
        pieces = [
            torch.argmin(half_square - piece.float() @ codebook.T, dim=1) for piece in latents.detach().split(rows)
        ]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def quantize_for_training(
    latents: "Float[Tensor, 'n d']", codebook: "Float[Tensor, 'k d']", commitment_cost: float, normalize: bool
) -> "tuple[Float[Tensor, 'n d'], Int64[Tensor, 'n'], Float[Tensor, '']]":
    """Codes with a straight-through gradient, their ids, and the loss |sg(z) - e|^2 + beta |z - sg(e)|^2.

    Beta is on the commitment of the encoder, as in van den Oord et al. 2017 (the published code has it on the other
    term). Means are over numbers, not over latents. All in float32.
    """
    with torch.autocast(latents.device.type, enabled=False):
        latents, codebook = latents.float(), codebook.float()
        if normalize:
            latents, codebook = F.normalize(latents, dim=1), F.normalize(codebook, dim=1)
        codes = nearest(latents, codebook)
        chosen = F.embedding(codes, codebook)
        loss = F.mse_loss(chosen, latents.detach()) + commitment_cost * F.mse_loss(latents, chosen.detach())
        return latents + (chosen - latents).detach(), codes, loss


@torch.no_grad()
def kmeans(
    latents: "Float[Tensor, 'n d']", num_codes: int, normalize: bool, generator: torch.Generator, num_rounds: int = 12
) -> "Float[Tensor, 'k d']":
    """Lloyd's algorithm from random latents; a centre that attracts none moves to a random latent."""
    latents = latents.float()
    if normalize:
        latents = F.normalize(latents, dim=1)
    centres = latents[_draw(len(latents), num_codes, generator)].clone()
    for _ in range(num_rounds):
        codes = nearest(latents, centres)
        counts = torch.bincount(codes, minlength=num_codes)
        sums = torch.zeros_like(centres).index_add_(0, codes, latents)
        centres = sums / counts.clamp(min=1)[:, None]
        empty = counts == 0
        centres[empty] = latents[_draw(len(latents), int(empty.sum()), generator)]
        if normalize:
            centres = F.normalize(centres, dim=1)
    return centres


@torch.no_grad()
def restart_dead_codes(
    codebook: "Float[Tensor, 'k d']",
    counts: "Int64[Tensor, 'k']",
    latents: "Float[Tensor, 'n d']",
    normalize: bool,
    generator: torch.Generator,
    least: float = 1.0,
) -> "Int64[Tensor, 'm']":
    """Move each code drawn fewer than `least` times onto a random latent, in place; returns the moved codes."""
    dead = torch.nonzero(counts < least).squeeze(1)
    if len(dead):
        fresh = latents[_draw(len(latents), len(dead), generator)].float()
        codebook[dead] = (F.normalize(fresh, dim=1) if normalize else fresh).to(codebook.dtype)
    return dead


def _draw(n: int, size: int, generator: torch.Generator) -> "Int64[Tensor, 'size']":
    """`size` of n, without repetition while that is possible. The generator is a CPU one on every device."""
    if size <= n:
        return torch.randperm(n, generator=generator)[:size]
    return torch.randint(n, (size,), generator=generator)
