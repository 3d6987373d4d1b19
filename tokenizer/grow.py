"""A net that starts from one of fewer levels: its inner levels have learned on small pictures what a code may say.

At 256 px most of a step is spent in the outer levels, while colour and codes are learned in the inner ones. So a net of
f=4 learns on pictures of 64 px first, for a fifth of the time, and the net of f=16 takes its levels over (progressive
growing, arXiv 1710.10196). Only what touches pixels starts anew: the first and the last convolution, and the encoder's
block in which the widths meet.
"""

import re

import torch
from torch import Tensor

from tokenizer.model import VQGAN, TokenizerError

_OF_THE_PIXELS = ("encoder.conv_in.", "decoder.norm_out.", "decoder.conv_out.")
_LEVEL = re.compile(r"(encoder\.down|decoder\.up)\.(\d+)\.(.*)")


@torch.no_grad()
def start_inner_levels(net: VQGAN, inner: VQGAN) -> list[str]:
    """Copy the weights of `inner` into the innermost levels of `net`; returns the names of `net` that start anew.

    Raises TokenizerError naming the first tensor of `inner` that has no place of its shape in `net`.
    """
    outer = len(net.config.channel_mult) - len(inner.config.channel_mult)
    if outer < 1:
        raise TokenizerError(
            f"grow_from has {len(inner.config.channel_mult)} levels and the net {len(net.config.channel_mult)}; "
            "it must have fewer (init_from takes a net as it is)"
        )
    meeting = re.compile(rf"encoder\.down\.{outer}\.block\.0\.(norm1|conv1|nin_shortcut)\.")
    mine: dict[str, Tensor] = net.state_dict()
    fresh = set(mine)
    for name, tensor in inner.state_dict().items():
        if name.startswith(_OF_THE_PIXELS):
            continue
        place = _LEVEL.sub(lambda found: f"{found[1]}.{int(found[2]) + outer}.{found[3]}", name)
        if place in mine and mine[place].shape == tensor.shape:
            mine[place].copy_(tensor)
            fresh.discard(place)
        elif not meeting.match(place):
            found = list(mine[place].shape) if place in mine else "no such tensor"
            raise TokenizerError(
                f"grow_from: {name} {list(tensor.shape)} belongs at {place}, where the net has {found}; "
                "its widths, blocks and codebook must be those of the net's inner levels"
            )
    return sorted(fresh)
