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


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.uint32, torch.int64])
def test_codes_of_every_integer_type_are_decoded_alike(small, dtype):
    codes = torch.arange(64)[None] % 32
    assert torch.equal(small.decode(codes.to(dtype)), small.decode(codes))
    with pytest.raises(TokenizerError, match=r"code 32 is outside 0\.\.31"):
        small.decode(torch.full((1, 64), 32).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_codes_that_are_no_integers_are_refused(small, dtype):
    with pytest.raises(TokenizerError, match=f"codes are {dtype}; they must be integers"):
        small.decode(torch.zeros(1, 64).to(dtype))


@pytest.mark.parametrize(
    "grid, message",
    [
        ((-8, -8), r"64 codes do not fill -8 x -8; pass grid=\(rows, columns\)"),
        ((0, 8), "64 codes do not fill 0 x 8"),
        ((8, 9), "64 codes do not fill 8 x 9"),
        ((), r"grid is \(\); it must be \(rows, columns\), e\.g\. \(8, 8\)"),
        ((4, 4, 4), r"grid is \(4, 4, 4\); it must be"),
        ((8.0, 8.0), r"grid is \(8\.0, 8\.0\)"),
        ("88", "grid is '88'"),
        (8, "grid is 8"),
    ],
)
def test_a_grid_that_is_not_rows_and_columns_of_the_codes_is_refused(small, grid, message):
    with pytest.raises(TokenizerError, match=message):
        small.decode(torch.zeros(1, 64, dtype=torch.int64), grid=grid)
    with pytest.raises(TokenizerError, match=message):
        BulkEncoder(small).decode(np.zeros((1, 64), np.uint16), grid=grid)


def test_no_pictures_have_no_codes_and_the_other_way_round(small):
    codes = small.encode(torch.zeros(0, 3, 16, 8))
    assert codes.shape == (0, 32) and codes.dtype == torch.int64
    assert small.decode(codes, grid=(8, 4)).shape == (0, 3, 16, 8)
    assert BulkEncoder(small).encode(pictures(0)).shape == (0, 64)
    assert BulkEncoder(small).decode(np.zeros((0, 64), np.uint16)).shape == (0, 16, 16, 3)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"resolution": 50}, "resolution 50"),
        ({"hidden_channels": 24}, "norm_groups 32"),
        ({"num_channels": 0}, "num_channels is 0"),
        ({"dropout": 5}, r"dropout is 5; it must be in \[0, 1\), e\.g\. 0"),
        ({"commitment_cost": -1}, "commitment_cost is -1; it must be at least 0"),
        ({"input_range": (1.0, 0.0)}, r"input_range \[1\.0, 0\.0\]"),
        ({"input_range": (0.0, float("inf"))}, "input_range"),
        ({"input_range": (0.0,)}, "input_range"),
        ({"grid": (0, 6)}, r"grid is \[0, 6\]; it must be rows and columns of at least 1"),
        ({"grid": (6, 6, 6)}, r"grid is \[6, 6, 6\]"),
    ],
)
def test_a_configuration_that_cannot_be_built_says_which_value(values, message):
    with pytest.raises(TokenizerError, match=message):
        VQGANConfig(**values)


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
