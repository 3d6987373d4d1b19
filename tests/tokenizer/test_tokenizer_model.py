"""The net has the published shape, handles sizes and ranges itself, and refuses what it cannot take."""

import dataclasses

import numpy as np
import pytest
import torch

from tokenizer import VQGAN, BulkEncoder, TokenizerError, VQGANConfig

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


def test_upsampling_has_the_gradient_of_nearest_interpolation():
    from tokenizer.model import Upsample

    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    (ours,) = torch.autograd.grad(Upsample(4, False)(x).square().sum(), x)
    (theirs,) = torch.autograd.grad(torch.nn.functional.interpolate(x, scale_factor=2.0).square().sum(), x)
    torch.testing.assert_close(ours, theirs)


def test_a_gpus_shortened_float32_is_off_while_codes_are_computed_and_as_before_after_an_error(small, monkeypatch):
    def fail(*_):
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
        raise ArithmeticError

    monkeypatch.setattr(VQGAN, "latents", fail)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with pytest.raises(ArithmeticError):
        small.encode(torch.rand(1, 3, 16, 16))
    assert before == (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) and before[0]
