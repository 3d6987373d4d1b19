"""A net takes the weights of one of fewer levels into its inner levels; all else of it starts anew."""

import pytest
import torch
from small_training import flat_pictures, small

from tokenizer import VQGAN, TokenizerError, VQGANConfig
from tokenizer.grow import start_inner_levels
from tokenizer.train import train

WIDTHS = {"num_res_blocks": 1, "z_channels": 4, "quantized_embed_dim": 4, "num_embeddings": 16, "norm_groups": 2}
INNER = VQGANConfig(hidden_channels=8, channel_mult=(1, 2), resolution=16, **WIDTHS)
OUTER = VQGANConfig(hidden_channels=4, channel_mult=(1, 1, 2, 4), resolution=64, **WIDTHS)


def test_grown_levels_compute_what_the_inner_ones_did():
    torch.manual_seed(0)
    inner, net = VQGAN(INNER).eval(), VQGAN(OUTER).eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    fresh = start_inner_levels(net, inner)
    features = torch.randn(2, 8, 8, 8)
    mine, theirs = net.encoder, inner.encoder
    torch.testing.assert_close(mine.down[3](features), theirs.down[1](features))
    torch.testing.assert_close(net.quantize.embedding.weight, inner.quantize.embedding.weight)
    latents = torch.randn(2, 4, 8, 8)
    deep = lambda vq: vq.decoder.mid(vq.decoder.conv_in(vq.post_quant_conv(latents)))
    torch.testing.assert_close(deep(net), deep(inner))
    assert all(torch.equal(before[name], net.state_dict()[name]) for name in fresh)
    assert {name.split(".")[2] for name in fresh if ".down." in name or ".up." in name} == {"0", "1", "2"}
    assert not any("mid" in name or "quant" in name for name in fresh)


def test_a_run_starts_from_the_net_it_grows_from(tmp_path):
    train(small(steps=12), tmp_path / "inner", flat_pictures(), print, torch.device("cpu"))
    config = small(
        model={"hidden_channels": 4, "channel_mult": [1, 2, 4]},
        grow_from=str(tmp_path / "inner" / "tokenizer"),
        quantizer={"continuous_steps": 2},
        steps=4,
        learning_rate=0.0,
        weight_decay=0.0,
        ema_decay=0.0,
    )
    grown = train(config, tmp_path / "outer", flat_pictures(), print, torch.device("cpu")).tokenizer
    inner = VQGAN.from_pretrained(tmp_path / "inner" / "tokenizer")
    weights = grown.state_dict()
    for name in ("encoder.conv_out.weight", "decoder.conv_in.weight", "decoder.mid.block_1.conv1.weight"):
        torch.testing.assert_close(weights[name], inner.state_dict()[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channel_mult": (1, 1, 2, 3)}, r"grow_from: encoder.down.1.block.0.conv1.weight \[16, 8, 3, 3\] belongs at"),
        ({"channel_mult": (2, 4)}, "grow_from has 2 levels and the net 2; it must have fewer"),
        ({"num_embeddings": 32}, r"grow_from: quantize.embedding.weight \[16, 4\]"),
    ],
)
def test_a_net_that_does_not_fit_is_named(changes, message):
    config = VQGANConfig(**{**vars(OUTER), **changes})
    with pytest.raises(TokenizerError, match=message):
        start_inner_levels(VQGAN(config), VQGAN(INNER))


def test_init_and_grow_exclude_each_other():
    with pytest.raises(TokenizerError, match="exclude each other"):
        small(init_from="a", grow_from="b")
