"""The codebook: nearest code, the quantizers of training behind one function, and what tends the codes between steps.

Looking a code up is plain nearest neighbour, always: whatever quantizer trained a net, code that knows nothing of it
reads the files. In training

    fed, codes, loss = quantize(latents, codebook, commitment_cost, config)     # pure; each micro-batch
    keeper.observe(codes, latents)                                              # each micro-batch, on every rank
    optimizer.step()
    moved = keeper.tend(step, generator, latents, progress)                     # each step, on every rank

`QuantizerConfig.kind` chooses how codes learn: by gradient (plain), as running means of their latents (ema), or by the
gradient of all of them at once (ibq).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

ROWS_AT_ONCE = 2**25  # distances in memory at a time (128 MB)
FORGOTTEN = 1e-12  # a running count below this holds no mean any more


@dataclass(frozen=True)
class QuantizerConfig:
    kind: Literal["plain", "ema", "ibq"] = (
        "plain"  # codes learn by gradient, as running means, by index backpropagation
    )
    normalize: bool = True  # latents and codes on the unit sphere while training; the files stay as published
    beta_on: Literal["encoder", "codebook"] = "encoder"  # the term commitment_cost weighs; LVM's and taming's: codebook
    ema_decay: float = 0.99  # ema: of the running counts and sums of each code
    temperature: float = (
        1.0  # ibq: of the softmax that gradients pass; lower on the sphere, where scores lie in [-1, 1]
    )
    entropy_weight: float = 0.0  # ibq: of its entropy penalty, in nats; 0 leaves it out
    entropy_temperature: float = 0.01  # ibq: of the softmax in that penalty
    continuous_steps: int = 150  # before there is a codebook
    restart_every_steps: int = 50  # codes that none of the latents of these steps chose move onto latents; 0: never
    restart_until: float = 0.8  # share of the schedule after which codes are left alone

    def __post_init__(self) -> None:
        from tokenizer.model import TokenizerError  # which imports this file

        if not 0 <= self.ema_decay < 1:
            raise TokenizerError(f"quantizer.ema_decay is {self.ema_decay}; it must be in [0, 1), e.g. 0.99")
        for name in ("temperature", "entropy_temperature"):
            if not getattr(self, name) > 0:
                raise TokenizerError(f"quantizer.{name} is {getattr(self, name)}; it must be above 0")


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


def quantize(
    latents: "Float[Tensor, 'n d']", codebook: "Float[Tensor, 'k d']", commitment_cost: float, config: QuantizerConfig
) -> "tuple[Float[Tensor, 'n d'], Int64[Tensor, 'n'], Float[Tensor, '']]":
    """Codes as the decoder is fed them with the gradient of training, their ids, and the quantizer's loss.

    plain: straight-through; |sg(z) - e|^2 + beta |z - sg(e)|^2 (van den Oord et al. 2017, arXiv 1711.00937) with
    beta = `commitment_cost`, or beta on the first term (`beta_on: codebook`), as the published tokenizers have it.
    ema: straight-through; beta |z - sg(e)|^2 alone, since the codes follow their latents by `CodebookKeeper`.
    ibq: see `index_backpropagation`; n x k scores are kept for the backward.
    With `normalize` latents and codes enter with length one (Yu et al. 2021, ViT-VQGAN, arXiv 2110.04627).
    Means are over numbers, not over latents. All in float32 whatever the surrounding autocast.
    """
    with torch.autocast(latents.device.type, enabled=False):
        latents, codebook = latents.float(), codebook.float()
        if config.normalize:
            latents, codebook = F.normalize(latents, dim=1), F.normalize(codebook, dim=1)
        if config.kind == "ibq":
            return index_backpropagation(latents, codebook, commitment_cost, config)
        codes = nearest(latents, codebook)
        if config.kind == "ema":
            chosen = F.embedding(codes, codebook.detach())
            loss = commitment_cost * F.mse_loss(latents, chosen)
        else:
            chosen = F.embedding(codes, codebook)
            loss = pull_together(latents, chosen, commitment_cost, config)
        return latents + (chosen - latents).detach(), codes, loss


def pull_together(
    latents: "Float[Tensor, 'n d']", chosen: "Float[Tensor, 'n d']", commitment_cost: float, config: QuantizerConfig
) -> "Float[Tensor, '']":
    """Codes towards latents and latents towards codes, `commitment_cost` on the term that `beta_on` names."""
    of_encoder, of_codebook = F.mse_loss(latents, chosen.detach()), F.mse_loss(chosen, latents.detach())
    if config.beta_on == "codebook":
        return of_encoder + commitment_cost * of_codebook
    return commitment_cost * of_encoder + of_codebook


def index_backpropagation(
    latents: "Float[Tensor, 'n d']", codebook: "Float[Tensor, 'k d']", commitment_cost: float, config: QuantizerConfig
) -> "tuple[Float[Tensor, 'n d'], Int64[Tensor, 'n'], Float[Tensor, '']]":
    """Index Backpropagation Quantization (Shi et al. 2024, arXiv 2412.02692): straight-through on the one-hot index.

    Forward is the hard code; backward goes through softmax(score / temperature), so every code gets a gradient at each
    step. The loss is their double quantization loss: |z - e|^2 with both gradients, and the two terms of plain
    quantization (published: `beta_on: codebook`), plus `entropy_weight` times the entropy penalty.
    The score is z.e - |e|^2 / 2 where the paper has z.e: the best code is then the nearest, the rule by which every
    tokenizer is read; for codes of one length both are the same softmax.

    Memory: autograd keeps n x k float32 and its backward needs two more (with the penalty four and four); chunks would
    be kept as well. 2,048 latents and 8,192 codes: 64 MiB each; 32,768 latents: 1 GiB each.
    """
    scores = latents @ codebook.T - 0.5 * codebook.square().sum(1)
    codes = scores.detach().argmax(1)
    chosen = F.embedding(codes, codebook)
    soft = torch.softmax(scores / config.temperature, dim=1) @ codebook.detach()
    fed = chosen + (soft - soft.detach())
    loss = F.mse_loss(fed, latents) + pull_together(latents, chosen, commitment_cost, config)
    if config.entropy_weight:
        loss = loss + config.entropy_weight * entropy_penalty(scores / config.entropy_temperature)
    return fed, codes, loss


def entropy_penalty(logits: "Float[Tensor, 'n k']") -> "Float[Tensor, '']":
    """Mean entropy of each choice minus the entropy of the mean choice, in nats: sure of each, even over all.

    In [-ln k, 0] for sure choices (Yu et al. 2023, MAGVIT-v2, arXiv 2310.05737).
    """
    log_shares = torch.log_softmax(logits, dim=1)
    shares = log_shares.exp()
    mean = shares.mean(0)
    return torch.special.entr(mean).sum().neg() - (shares * log_shares).sum(1).mean()


class CodebookKeeper:
    """What happens to a codebook outside the gradient: k-means start, running means, codes of length one, revival.

    Counts and sums are summed over ranks (the default process group) and new codes come from rank 0, so that codebooks
    that were equal on all ranks stay equal to the bit. Every method is called on every rank at the same place.
    Make it before the optimiser and before DDP: for kind ema it takes the codebook's gradient away.
    """

    def __init__(self, config: QuantizerConfig, codebook: nn.Parameter):
        self.config, self.codebook = config, codebook
        self.counts = torch.zeros(len(codebook), dtype=torch.int64, device=codebook.device)
        self.running_counts = torch.ones(len(codebook), device=codebook.device)
        self.running_sums = codebook.detach().float().clone()
        self._step_counts = torch.zeros_like(self.running_counts)
        self._step_sums = torch.zeros_like(self.running_sums)
        if config.kind == "ema":
            codebook.requires_grad_(False)

    @torch.no_grad()
    def start(self, latents: "Float[Tensor, 'n d']", generator: torch.Generator) -> None:
        """K-means of rank 0's latents; the counts start again."""
        if _rank() == 0:
            self.codebook.copy_(kmeans(latents, len(self.codebook), self.config.normalize, generator))
        _from_rank_0(self.codebook)
        self.counts.zero_()
        self.running_counts.fill_(1.0)
        self.running_sums.copy_(self.codebook)

    @torch.no_grad()
    def observe(self, codes: "Int64[Tensor, 'n']", latents: "Float[Tensor, 'n d']") -> "Int64[Tensor, 'k']":
        """Take a micro-batch into account; returns how often each code was chosen in it, over all ranks."""
        ones, none = torch.ones_like(codes), codes.new_zeros(len(self.codebook))
        used = _summed(none.index_add_(0, codes, ones))  # bincount waits for the device
        self.counts += used
        if self.config.kind == "ema":
            latents = latents.float()
            if self.config.normalize:
                latents = F.normalize(latents, dim=1)
            self._step_counts += used
            self._step_sums += _summed(torch.zeros_like(self._step_sums).index_add_(0, codes, latents))
        return used

    @torch.no_grad()
    def tend(
        self, step: int, generator: torch.Generator, latents: "Float[Tensor, 'n d']", progress: float = 0.0
    ) -> "Int64[Tensor, 'm']":
        """After the optimiser's step number `step` (the first is 1), at `progress` in [0,1] of the schedule.

        Running means, codes of length one, and at every `restart_every_steps` the revival of codes that none of the
        latents observed since then chose: they move onto random latents of rank 0. Returns the revived codes, whose
        optimiser moments and averaged copies are the caller's to reset. `generator` is a CPU one.
        """
        if self.config.kind == "ema":
            self._follow()
        if self.config.normalize:
            self.codebook.copy_(F.normalize(self.codebook, dim=1))
        if not self.config.restart_every_steps or step % self.config.restart_every_steps:
            return self.counts.new_empty(0)
        dead = torch.nonzero(self.counts == 0).squeeze(1)
        self.counts.zero_()
        if progress >= self.config.restart_until or not len(dead):
            return self.counts.new_empty(0)
        fresh = latents[_draw(len(latents), len(dead), generator)].float()
        if self.config.normalize:
            fresh = F.normalize(fresh, dim=1)
        fresh = _from_rank_0(fresh.to(self.codebook.dtype).contiguous())
        self.codebook[dead] = fresh
        self.running_counts[dead] = 1.0
        self.running_sums[dead] = fresh.float()
        return dead

    def _follow(self) -> None:
        """N <- g N + (1-g) n, m <- g m + (1-g) sum(z), e = m / N (van den Oord et al. 2017, appendix A.1)."""
        share = 1 - self.config.ema_decay
        self.running_counts.lerp_(self._step_counts, share)
        self.running_sums.lerp_(self._step_sums, share)
        means = self.running_sums / self.running_counts.clamp(min=FORGOTTEN)[:, None]
        alive = self.running_counts > FORGOTTEN
        self.codebook.copy_(torch.where(alive[:, None], means, self.codebook))
        self._step_counts.zero_()
        self._step_sums.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """Between two steps; the same on every rank. The codebook itself is the model's."""
        state = {"counts": self.counts}
        if self.config.kind == "ema":
            state |= {"running_counts": self.running_counts, "running_sums": self.running_sums}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if _world_size() > 1 else 0


def _summed(tensor: Tensor) -> Tensor:
    """The sum over ranks, in place; equal to the bit on all of them."""
    if _world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def _from_rank_0(tensor: Tensor) -> Tensor:
    if _world_size() > 1:
        dist.broadcast(tensor.detach(), 0)
    return tensor


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


def _draw(n: int, size: int, generator: torch.Generator) -> "Int64[Tensor, 'size']":
    """`size` of n, without repetition while that is possible. The generator is a CPU one on every device."""
    if size <= n:
        return torch.randperm(n, generator=generator)[:size]
    return torch.randint(n, (size,), generator=generator)
