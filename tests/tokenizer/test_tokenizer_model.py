"""The net has the published shape, gives the reference's codes, and refuses what it cannot take."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tokenizer import VQGAN, BulkEncoder, TokenizerError, VQGANConfig

PARITY = Path(__file__).parents[2].parent / "shared" / "parity"
SMALL = VQGANConfig(
    hidden_channels=8,
    channel_mult=(1, 2),
    num_res_blocks=1,
    z_channels=4,
    quantized_embed_dim=4,
    num_embeddings=32,
    resolution=16,
    norm_groups=2,
)


@pytest.fixture
def small() -> VQGAN:
    torch.manual_seed(0)
    vq = VQGAN(SMALL).eval()
    torch.nn.init.normal_(vq.quantize.embedding.weight, std=0.3)
    return vq


def pictures(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)


def test_the_published_config_gives_277_tensors_and_146244675_parameters():
    with torch.device("meta"):
        vq = VQGAN(VQGANConfig())
    assert len(vq.state_dict()) == 277
    assert sum(p.numel() for p in vq.parameters()) == 146_244_675
    keys = vq.state_dict()
    assert {"encoder.down.3.block.0.nin_shortcut.weight", "decoder.up.4.upsample.conv.bias"} <= keys.keys()
    assert vq.tokens_per_picture == 256


@pytest.mark.parametrize("name", ["vqgan_conv_only", "vqgan_with_attention"])
def test_codes_and_reconstruction_equal_the_reference(name):
    if not PARITY.is_dir():
        pytest.skip(f"{PARITY} is not here")
    vq, expected = VQGAN.from_pretrained(PARITY / name), load_file(PARITY / name / "expected.safetensors")
    codes = vq.encode(expected["pixels"])
    assert codes.dtype == torch.int64 and torch.equal(codes, expected["codes"].long())
    assert (vq.decode(codes) - expected["reconstruction"].clamp(0, 1)).abs().max() < 1e-4


@pytest.mark.parametrize("attention", [False, True])
def test_the_network_equals_the_original_of_taming(attention):
    original = pytest.importorskip("taming.modules.diffusionmodules.model")
    config = dataclasses.replace(
        SMALL, attn_resolutions=(8,) if attention else (), no_attn_mid_block=False, norm_groups=32, hidden_channels=32
    )
    net = dict(ch=32, out_ch=3, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=config.attn_resolutions)
    net |= dict(in_channels=3, resolution=16, z_channels=4, double_z=False)
    ours, encoder, decoder = VQGAN(config), original.Encoder(**net), original.Decoder(**net)
    ours.encoder.load_state_dict(encoder.state_dict())
    ours.decoder.load_state_dict(decoder.state_dict())
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(ours.encoder(x), encoder(x), atol=1e-4, rtol=1e-4)
    z = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(ours.decoder(z), decoder(z), atol=1e-4, rtol=1e-4)


def flat(latents: torch.Tensor) -> torch.Tensor:
    return latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])


def test_the_input_range_is_handled_inside(small):
    other = VQGAN(dataclasses.replace(SMALL, input_range=(-1.0, 1.0)))
    other.load_state_dict(small.state_dict())
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(other.encode(x), small.quantize.nearest(flat(small.latents(2 * x - 1))).view(2, 64))
    assert other.fingerprint != small.fingerprint


def test_a_picture_that_is_not_square_keeps_its_grid(small):
    codes = small.encode(torch.rand(1, 3, 8, 32))
    assert codes.shape == (1, 64)
    assert small.decode(codes, grid=(4, 16)).shape == (1, 3, 8, 32)
    wide = VQGAN(dataclasses.replace(SMALL, grid=(4, 16)))
    assert wide.tokens_per_picture == 64 and wide.decode(codes).shape == (1, 3, 8, 32)


@pytest.mark.parametrize(
    "pixels, message",
    [
        (torch.full((1, 3, 16, 16), 1.5), "must be in"),
        (torch.full((1, 3, 16, 16), float("nan")), "NaN"),
        (torch.rand(1, 3, 15, 16), "15 x 16"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "divide by 255"),
        (torch.rand(3, 16, 16), "shape"),
    ],
)
def test_pixels_it_cannot_take_are_refused_by_value(small, pixels, message):
    with pytest.raises(TokenizerError, match=message):
        small.encode(pixels)


def test_codes_out_of_range_or_of_no_grid_are_refused(small):
    with pytest.raises(TokenizerError, match=r"code 32 is outside 0\.\.31"):
        small.decode(torch.full((1, 64), 32))
    with pytest.raises(TokenizerError, match="code -1"):
        BulkEncoder(small).decode(np.full((1, 64), -1))
    with pytest.raises(TokenizerError, match="63 codes"):
        small.decode(torch.zeros(1, 63, dtype=torch.int64))
    with pytest.raises(TokenizerError, match=r"uint8 \[n, 16, 16, 3\]"):
        BulkEncoder(small).encode(pictures(2)[:, :8])


def test_a_configuration_that_cannot_be_built_says_which_value():
    with pytest.raises(TokenizerError, match="resolution 50"):
        VQGANConfig(resolution=50)
    with pytest.raises(TokenizerError, match="norm_groups 32"):
        VQGANConfig(hidden_channels=24)


def test_bulk_codes_equal_encode_and_do_not_depend_on_the_neighbours(small):
    many = pictures(11)
    bulk = BulkEncoder(small, batch_size=4, precision="exact")
    codes = bulk.encode(many)
    assert codes.dtype == np.uint16
    x = torch.from_numpy(many).permute(0, 3, 1, 2).float() / 255
    assert (codes == small.encode(x).numpy()).mean() > 0.99
    fast = BulkEncoder(small, batch_size=4)
    assert np.array_equal(fast.encode(many)[8:], fast.encode(many[8:]))
    again = bulk.decode(codes)
    assert again.dtype == np.uint8 and again.shape == many.shape
    expected = small.decode(torch.from_numpy(codes.astype(np.int64))).permute(0, 2, 3, 1) * 255
    assert np.abs(again.astype(float) - expected.numpy()).max() <= 0.51


def test_upsampling_has_the_gradient_of_nearest_interpolation():
    from tokenizer.model import Upsample

    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    (ours,) = torch.autograd.grad(Upsample(4, False)(x).square().sum(), x)
    (theirs,) = torch.autograd.grad(torch.nn.functional.interpolate(x, scale_factor=2.0).square().sum(), x)
    torch.testing.assert_close(ours, theirs)
