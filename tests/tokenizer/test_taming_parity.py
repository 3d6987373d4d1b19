"""The net is the published one: the reference's codes on its own weights, and taming's network, attention included."""

import dataclasses
from pathlib import Path

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file

from tokenizer import VQGAN
from tokenizer.model import PRESETS
from tokenizer.quantizer import VectorQuantizer

PARITY = Path(__file__).parents[2].parent / "shared" / "parity"
INSTALL = "pip install --no-deps taming-transformers==0.0.1"
TIE = 1e-5  # relative difference of two distances below which either code is right


def code_distances(vq: VQGAN, pixels: torch.Tensor) -> torch.Tensor:
    """Squared distances [n, t, k] of each latent to each code, in float64."""
    with torch.no_grad():
        latents = rearrange(vq.latents(pixels), "n d h w -> n (h w) d").double()
    return torch.cdist(latents, vq.quantize.embedding.weight.detach().double()[None]).square()


@pytest.mark.parametrize("name", ["vqgan_conv_only", "vqgan_with_attention"])
def test_codes_and_reconstruction_equal_the_reference(name):
    if not (PARITY / name).is_dir():
        pytest.skip(f"{PARITY / name} is not here")
    vq, expected = VQGAN.from_pretrained(PARITY / name), load_file(PARITY / name / "expected.safetensors")
    codes, theirs = vq.encode(expected["pixels"]), expected["codes"].long()
    assert codes.dtype == torch.int64 and codes.shape == theirs.shape
    distances = code_distances(vq, expected["pixels"])
    ours_at, theirs_at = (distances.gather(2, c[..., None]).squeeze(2) for c in (codes, theirs))
    ties = (codes != theirs) & ((ours_at - theirs_at).abs() <= TIE * theirs_at)
    assert torch.equal(codes[~ties], theirs[~ties])
    assert ties.sum() <= 0.001 * ties.numel()
    assert (vq.decode(theirs) - expected["reconstruction"].clamp(0, 1)).abs().max() < 1e-4


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("taming")])
def test_the_f16_nets_equal_the_original_of_taming(name):
    original = pytest.importorskip("taming.modules.diffusionmodules.model", reason=INSTALL)
    # A quarter of the width and of the side; attention where the map has the same share of the picture.
    config = dataclasses.replace(
        PRESETS[name], hidden_channels=32, z_channels=64, quantized_embed_dim=64, resolution=64, attn_resolutions=(4,)
    )
    net = dict(ch=32, out_ch=3, ch_mult=config.channel_mult, num_res_blocks=2, attn_resolutions=[4], dropout=0.0)
    net |= dict(in_channels=3, resolution=64, z_channels=64, double_z=False)
    torch.manual_seed(0)
    ours, encoder, decoder = VQGAN(config).eval(), original.Encoder(**net).eval(), original.Decoder(**net).eval()
    ours.encoder.load_state_dict(encoder.state_dict())
    ours.decoder.load_state_dict(decoder.state_dict())
    with torch.no_grad():
        pixels, z = torch.rand(1, 3, 64, 64), torch.randn(1, 64, 4, 4)
        theirs = ours.quant_conv(encoder(2 * pixels - 1))
        torch.testing.assert_close(ours.latents(pixels), theirs, atol=1e-4, rtol=1e-4)
        expected = (decoder(ours.post_quant_conv(z)) + 1) / 2
        torch.testing.assert_close(ours.pixels(z), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "num_codes"), [("taming-f16-1024", 1024), ("taming-f16-16384", 16384)])
def test_the_f16_presets_have_the_tensors_of_the_original_of_taming(name, num_codes):
    original = pytest.importorskip("taming.modules.diffusionmodules.model", reason=INSTALL)
    net = dict(ch=128, out_ch=3, ch_mult=(1, 1, 2, 2, 4), num_res_blocks=2, attn_resolutions=[16], dropout=0.0)
    net |= dict(in_channels=3, resolution=256, z_channels=256, double_z=False)
    with torch.device("meta"):
        ours, encoder, decoder = VQGAN(PRESETS[name]), original.Encoder(**net), original.Decoder(**net)
    assert shapes(ours.encoder) == shapes(encoder) and shapes(ours.decoder) == shapes(decoder)
    assert shapes(ours.quantize) == {"embedding.weight": (num_codes, 256)} and ours.tokens_per_picture == 256


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def test_tamings_quantizer_finds_the_same_codes():
    original = pytest.importorskip("taming.modules.vqvae.quantize", reason=INSTALL)
    torch.manual_seed(0)
    theirs, ours = original.VectorQuantizer(64, 8, beta=0.25), VectorQuantizer(64, 8)
    torch.nn.init.normal_(theirs.embedding.weight)
    ours.load_state_dict(theirs.state_dict())
    z = torch.randn(2, 8, 4, 4)
    _, _, (_, _, codes) = theirs(z)
    assert torch.equal(ours.nearest(rearrange(z, "n d h w -> (n h w) d")), codes.squeeze(1))


def test_the_published_net_has_277_tensors_and_146244675_parameters():
    with torch.device("meta"):
        vq = VQGAN(PRESETS["lvm-f16-8192"])
    state = vq.state_dict()
    assert len(state) == 277 and sum(tensor.numel() for tensor in state.values()) == 146_244_675
    assert {"encoder.down.3.block.0.nin_shortcut.weight", "decoder.up.4.upsample.conv.bias"} <= state.keys()
    assert not any("attn" in name for name in state) and vq.tokens_per_picture == 256


def test_the_published_net_is_made_of_the_published_parts():
    with torch.device("meta"):
        vq = VQGAN(PRESETS["lvm-f16-8192"])
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in vq.named_children()}
    assert parts == {
        "encoder": 58_693_568,
        "decoder": 87_018_499,
        "quantize": 524_288,
        "quant_conv": 4_160,
        "post_quant_conv": 4_160,
    }
