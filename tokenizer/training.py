"""A step of a tokenizer's training: losses, gradients, and all that survives a restart. The loop is in train.py.

The net is one compiled graph from pictures to reconstruction. Without a judge (perceptual term, discriminator) the
pixel loss is in that graph. With judges their gradients are taken at the reconstruction, weighed there, and the net
goes backward once:

    pictures -> net -> reconstruction -> pixel loss + perceptual term     d/d reconstruction \\
                                      -> discriminator (hinge)            d/d reconstruction  + -> net backward

The adaptive weight (Esser et al. 2021) needs no second pass through the net either: the gradient at the last layer is
that layer's own backward of the gradient at the reconstruction.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lvm.runtime.hashing import seed_from
from tokenizer.adversarial import PatchDiscriminator, adaptive_weight, hinge_d, hinge_g
from tokenizer.bulk import bf16_pays
from tokenizer.grow import start_inner_levels
from tokenizer.losses import LossWeights, reconstruction_loss
from tokenizer.model import VQGAN
from tokenizer.perceptual import perceptual_term
from tokenizer.quantizer import CodebookKeeper, quantize
from tokenizer.settings import TrainConfig

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8


@dataclass
class TrainState:
    """All that survives a restart. Noise is keyed by (seed, step), so there is no generator here."""

    model: VQGAN
    average: VQGAN
    optimizer: torch.optim.AdamW
    keeper: CodebookKeeper
    used: Tensor  # int64 [k]: how often each code was chosen since the last log, over all ranks
    discriminator: nn.Module | None = None
    discriminator_optimizer: torch.optim.AdamW | None = None
    step: int = 0
    seconds: float = 0.0


# The net and its judges.


def autoencode(
    vq: VQGAN, pixels: "Float[Tensor, 'n c y x']", quantized: "Float[Tensor, '']", config: TrainConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(reconstruction, what the last layer was fed, weighted codebook loss, codes [n*t], latents [n*t, d]).

    `quantized` is 0 while there is no codebook, then 1: a tensor, so that both phases are one compiled graph.
    """
    latents = vq.latents(pixels)
    grid = latents.shape[2:]
    flat = rearrange(latents, "n d h w -> (n h w) d").float()
    if config.quantizer.normalize:
        flat = F.normalize(flat, dim=1)
    chosen, codes, codebook_loss = quantize(
        flat, vq.quantize.embedding.weight, config.model.commitment_cost, config.quantizer
    )
    fed = flat + quantized * (chosen - flat)
    features = vq.decoder.features(vq.post_quant_conv(rearrange(fed, "(n h w) d -> n d h w", h=grid[0], w=grid[1])))
    reconstruction = vq.in_unit_range(vq.decoder.conv_out(features))
    return reconstruction, features, config.loss.codebook * quantized * codebook_loss, codes, flat.detach()


def pixels_of(pictures: "UInt8[Tensor, 'n y x c']") -> "Float[Tensor, 'n c y x']":
    return rearrange(pictures, "n y x c -> n c y x").float() / 255


def forward_loss(
    vq: VQGAN, pictures: "UInt8[Tensor, 'n y x c']", quantized: "Float[Tensor, '']", config: TrainConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, mean squared error, codes [n*t], latents [n*t, d]), without a judge: one graph."""
    pixels = pixels_of(pictures)
    reconstruction, _, codebook_loss, codes, latents = autoencode(vq, pixels, quantized, config)
    with torch.autocast(pixels.device.type, enabled=False):
        loss, squared = reconstruction_loss(reconstruction, pixels, config.loss)
        return loss + codebook_loss, squared, codes, latents


def pixel_loss(
    reconstruction: "Float[Tensor, 'n c y x']",
    pixels: "Float[Tensor, 'n c y x']",
    weights: LossWeights,
    perceptual: nn.Module | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, mean squared error, perceptual term), all float32."""
    with torch.autocast(pixels.device.type, enabled=False):
        loss, squared = reconstruction_loss(reconstruction, pixels, weights)
        if perceptual is None:
            return loss, squared, torch.zeros_like(squared)
        distance = perceptual(reconstruction, pixels).mean()
        return loss + weights.perceptual * distance, squared, distance.detach()


class Objective:
    """Forward and backward of one micro-batch: gradients are added to the net's and the discriminator's."""

    def __init__(self, config: TrainConfig, state: TrainState, device: torch.device, compiled: bool):
        self.config, self.state, self.device = config, state, device
        self.bf16 = bf16_pays(device)
        self.perceptual: nn.Module | None = None
        if config.loss.perceptual > 0:
            term = perceptual_term(config.loss.perceptual_name, config.loss.perceptual_files)
            self.perceptual = term.to(device).requires_grad_(False)
        self.judged = self.perceptual is not None or state.discriminator is not None

        def maybe_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
            return torch.compile(function, dynamic=False) if compiled else function

        self._forward_loss = maybe_compiled(forward_loss)
        self._autoencode = maybe_compiled(autoencode)
        self._pixel_loss = maybe_compiled(pixel_loss)

    def backward(
        self,
        pictures: "UInt8[Tensor, 'n y x c']",
        quantized: "Float[Tensor, '']",
        share: float,
        adversarial: float | None,
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """(figures of the log, codes, latents). `share` is this micro-batch's of the step's gradient on this rank;
        `adversarial` the weight of the discriminator's, None before it starts."""
        if not self.judged:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                loss, squared, codes, latents = self._forward_loss(self.state.model, pictures, quantized, self.config)
            (loss * share if share != 1 else loss).backward()
            return {"loss": loss.detach(), "squared_error": squared}, codes, latents
        return self._judged_backward(pictures, quantized, share, adversarial)

    def _judged_backward(
        self, pictures: Tensor, quantized: Tensor, share: float, adversarial: float | None
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        pixels, vq = pixels_of(pictures), self.state.model
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            made, features, codebook_loss, codes, latents = self._autoencode(vq, pixels, quantized, self.config)
        leaf = made.detach().float().requires_grad_()
        loss, squared, distance = self._pixel_loss(leaf, pixels, self.config.loss, self.perceptual)
        (gradient,) = torch.autograd.grad(loss, leaf)
        figures = {"loss": loss.detach() + codebook_loss.detach(), "squared_error": squared}
        if self.perceptual is not None:
            figures["perceptual"] = distance
        if adversarial is not None:
            more, judged = self._discriminator_gradients(leaf, pixels, features, gradient, share)
            gradient = gradient + adversarial * more
            figures |= judged
        torch.autograd.backward(
            [made, codebook_loss], [(share * gradient).to(made.dtype), torch.full_like(codebook_loss, share)]
        )
        return figures, codes, latents

    def _discriminator_gradients(
        self, leaf: Tensor, pixels: Tensor, features: Tensor, gradient: Tensor, share: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The hinge loss's gradient at the reconstruction times its adaptive weight; the discriminator learns too."""
        discriminator, vq = self.state.discriminator, self.state.model
        assert discriminator is not None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16), frozen(discriminator):
            fooled = hinge_g(discriminator(leaf))
        (of_fooled,) = torch.autograd.grad(fooled, leaf)
        with torch.autocast(self.device.type, enabled=False):
            last = vq.decoder.conv_out.weight.detach().float().requires_grad_()
            again = vq.in_unit_range(F.conv2d(features.detach().float(), last, padding=1))
            weight = adaptive_weight(
                (again * gradient).sum(), (again * of_fooled).sum(), last, self.config.discriminator.max_weight
            )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            real, fake = discriminator(pixels), discriminator(leaf.detach())
        judged = hinge_d(real, fake)
        (judged * share).backward()
        figures = {
            "discriminator_loss": judged.detach(),
            "generator_loss": fooled.detach(),
            "adaptive_weight": weight.detach(),
            "logits_real": real.detach().float().mean(),
            "logits_fake": fake.detach().float().mean(),
        }
        return weight.detach() * of_fooled, figures


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Gradients pass through it and none is kept for its own parameters."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


# The state.


def _adamw(groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW whose moments exist from the start, so that a checkpoint of any step has the same tensors."""
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
    for group in optimizer.param_groups:
        for p in group["params"]:
            optimizer.state[p] = {
                "step": torch.zeros((), dtype=torch.float32, device=p.device),
                "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
            }
    return optimizer


def new_state(config: TrainConfig, device: torch.device, fresh: bool = False) -> TrainState:
    """Step 0, the net with random weights and, where it is `fresh`, those it is to start from. Equal on every rank."""
    torch.manual_seed(seed_from("tokenizer", config.seed))
    model = VQGAN(config.model)
    if fresh and config.init_from:
        model.load_state_dict(VQGAN.from_pretrained(config.init_from).state_dict())
    if fresh and config.grow_from:
        start_inner_levels(model, VQGAN.from_pretrained(config.grow_from))
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model).eval().requires_grad_(False)
    keeper = CodebookKeeper(config.quantizer, model.quantize.embedding.weight)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in trained if p.ndim > 1 and not name.startswith("quantize.")]
    others = [p for name, p in trained if p.ndim <= 1 or name.startswith("quantize.")]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    state = TrainState(
        model,
        average,
        _adamw(groups, config.learning_rate, (0.9, 0.95)),
        keeper,
        torch.zeros(config.model.num_embeddings, dtype=torch.int64, device=device),
    )
    if config.loss.adversarial > 0:
        torch.manual_seed(seed_from("discriminator", config.seed))
        settings = config.discriminator
        net = PatchDiscriminator(config.model.num_channels, settings.width, settings.num_layers)
        state.discriminator = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        group = {"params": list(net.parameters()), "weight_decay": 0.0}
        state.discriminator_optimizer = _adamw([group], settings.learning_rate, (0.5, 0.9))
    return state


def state_tensors(state: TrainState) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by name, the same on every rank."""
    tensors = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in state.average.state_dict().items()}
    tensors |= {f"keeper.{name}": value for name, value in state.keeper.state_dict().items()}
    tensors["used"] = state.used
    pairs: list[tuple[str, nn.Module, torch.optim.AdamW]] = [("optim", state.model, state.optimizer)]
    if state.discriminator is not None and state.discriminator_optimizer is not None:
        tensors |= {f"discriminator.{name}": value for name, value in state.discriminator.state_dict().items()}
        pairs.append(("discriminator_optim", state.discriminator, state.discriminator_optimizer))
    for prefix, module, optimizer in pairs:
        for name, p in module.named_parameters():
            for key, value in optimizer.state.get(p, {}).items():
                if key != "step":  # follows from the run's
                    tensors[f"{prefix}.{key}.{name}"] = value
    return tensors


def set_optimizer_steps(state: TrainState, config: TrainConfig) -> None:
    """After a checkpoint was read: how many steps each optimiser has made."""
    made = [(state.optimizer, state.step)]
    if state.discriminator_optimizer is not None:
        made.append((state.discriminator_optimizer, max(0, state.step - config.discriminator.start_step)))
    for optimizer, steps in made:
        for values in optimizer.state.values():
            values["step"].fill_(steps)


def average_over_ranks(parameters: Sequence[nn.Parameter]) -> None:
    """Gradients become their mean over ranks, equal to the bit on all: one all-reduce after the last micro-batch.

    DDP would do it bucket by bucket during the backward; but it wraps `forward`, and the loss here is a compiled
    function of the bare net whose backward starts at the reconstruction.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(mean.view(gradient.shape))


@torch.no_grad()
def update_average(state: TrainState, decay: float) -> None:
    """Towards the weights of `state.step`, which counts the step just made."""
    averages: list[Tensor] = list(state.average.parameters())
    parameters: list[Tensor] = list(state.model.parameters())
    torch._foreach_lerp_(averages, parameters, 1 - min(decay, state.step / (9 + state.step)))


@torch.no_grad()
def reset_revived(state: TrainState, codes: Tensor) -> None:
    """Codes that moved start again: their averages are themselves, their moments zero."""
    weight = state.model.quantize.embedding.weight
    state.average.quantize.embedding.weight[codes] = weight[codes]
    for name, value in state.optimizer.state.get(weight, {}).items():
        if name != "step":
            value[codes] = 0


def finished_tokenizer(state: TrainState, config: TrainConfig) -> VQGAN:
    """The averaged weights as they are saved: codes of length one if training had them so."""
    vq = copy.deepcopy(state.average).eval()
    if config.quantizer.normalize:
        with torch.no_grad():
            vq.quantize.embedding.weight.copy_(F.normalize(vq.quantize.embedding.weight, dim=1))
    return vq
