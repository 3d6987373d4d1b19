"""The adversarial part of training: a patch discriminator, its hinge losses, and how strong the generator feels it.

As in Esser, Rombach, Ommer 2021 (taming-transformers): a PatchGAN (Isola et al. 2017, pix2pix), hinge losses (Lim and
Ye 2017), a weight that makes the adversarial gradient as long as the others' at the decoder's last layer.

    weight = ramp(step, start, length) * adversarial * adaptive_weight(nll, g, vq.decoder.conv_out.weight)
"""

import itertools
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.model import TokenizerError

if TYPE_CHECKING:
    from jaxtyping import Float

CHANNELS_PER_GROUP = 16


class PatchDiscriminator(nn.Module):
    """Pictures in [0,1] -> one logit for each overlapping patch (70 pixels a side with 3 layers): real above 0.

    Widths double from `width` up to eight times it; `num_layers` convolutions halve the picture, two keep its size.
    GroupNorm where pix2pix has BatchNorm: the statistics of a batch tie a picture's logit to its neighbours', differ
    between ranks and between the real and the other half, and are noise at a few pictures a rank; and BatchNorm's
    buffers would be one more thing that DDP and a resumed run have to keep equal.
    Weights are N(0, 0.02), those of norms N(1, 0.02), biases 0, as in pix2pix, from torch's global generator.
    """

    def __init__(self, num_channels: int = 3, width: int = 64, num_layers: int = 3):
        super().__init__()
        if num_layers < 1 or width < 1:
            raise TokenizerError(f"a discriminator of num_layers {num_layers}, width {width}; both must be at least 1")
        self.num_layers = num_layers
        widths = [width * min(2**i, 8) for i in range(num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(num_channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i, (width_in, width_out) in enumerate(itertools.pairwise(widths)):
            stride = 2 if i + 1 < num_layers else 1
            layers += [
                nn.Conv2d(width_in, width_out, 4, stride, padding=1, bias=False),
                nn.GroupNorm(max(1, width_out // CHANNELS_PER_GROUP), width_out),
                nn.LeakyReLU(0.2),
            ]
        layers.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.GroupNorm)):
                nn.init.normal_(module.weight, float(isinstance(module, nn.GroupNorm)), 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, pixels: "Float[Tensor, 'n c y x']") -> "Float[Tensor, 'n 1 h w']":
        """Raises TokenizerError for pictures too small for one logit."""
        least = 3 * 2**self.num_layers
        if min(pixels.shape[2:]) < least:
            y, x = pixels.shape[2:]
            raise TokenizerError(
                f"pictures of {y} x {x} pixels are too small for a discriminator of {self.num_layers} layers, "
                f"which takes {least} and more; use fewer layers"
            )
        return self.layers(2 * pixels - 1)


def hinge_d(real: "Float[Tensor, '...']", fake: "Float[Tensor, '...']") -> "Float[Tensor, '']":
    """The discriminator's loss on logits: real ones above 1, others below -1 cost nothing. 1 for a blind one."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def hinge_g(fake: "Float[Tensor, '...']") -> "Float[Tensor, '']":
    """The generator's loss on the logits of its pictures."""
    return -fake.float().mean()


def adaptive_weight(
    nll: "Float[Tensor, '']", g: "Float[Tensor, '']", last_layer: Tensor, maximum: float = 1e4
) -> "Float[Tensor, '']":
    """|d nll / d last_layer| / |d g / d last_layer|, at most `maximum`; detached, float32, epsilon 1e-4.

    Keeps the graph for the backward that follows. A net compiled by torch.compile then needs
    `torch._functorch.config.donated_buffer = False`. Under DDP each rank has the ratio of its own pictures.
    """
    of_nll, of_g = (torch.autograd.grad(loss, last_layer, retain_graph=True)[0] for loss in (nll, g))
    return (of_nll.float().norm() / (of_g.float().norm() + 1e-4)).clamp(0.0, maximum).detach()


def ramp(step: int, start: int, length: int) -> float:
    """0 before `start`, then linearly up to 1 at `start + length`; length 0 is a switch."""
    return float(step >= start) if length <= 0 else min(1.0, max(0.0, (step - start) / length))
