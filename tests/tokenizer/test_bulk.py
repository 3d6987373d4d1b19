"""Bulk encoding: the codes of the net, whatever the batch, in bfloat16 nearly all of them, on any device."""

import dataclasses

import numpy as np
import pytest
import torch
from einops import rearrange

from tokenizer import VQGAN, BulkEncoder, VQGANConfig, pretrained_names
from tokenizer.bulk import ChannelsLastGroupNorm

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


def net(**changed) -> VQGAN:
    torch.manual_seed(0)
    vq = VQGAN(dataclasses.replace(SMALL, **changed)).eval()
    torch.nn.init.normal_(vq.quantize.embedding.weight, std=0.3)
    return vq


def pictures(n: int, size: tuple[int, int] = (16, 16)) -> np.ndarray:
    """Blocks of four pixels: what a tokenizer meets is smooth."""
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (n, size[0] // 4, size[1] // 4, 3), dtype=np.uint8)
    return blocks.repeat(4, 1).repeat(4, 2)


def as_pixels(many: np.ndarray) -> torch.Tensor:
    return rearrange(torch.from_numpy(many), "n y x c -> n c y x").float() / 255


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(a.astype(float) - b).mean()))


@pytest.mark.parametrize("grid", [None, (4, 16)])
def test_exact_codes_and_pictures_are_those_of_encode_and_decode(grid):
    vq = net(grid=grid)
    bulk = BulkEncoder(vq, batch_size=4, precision="exact")
    many = pictures(11, bulk.size)
    codes = bulk.encode(many)
    assert codes.dtype == np.uint16 and codes.shape == (11, 64)
    assert (codes == vq.encode(as_pixels(many)).numpy()).mean() > 0.99
    again = bulk.decode(codes)
    assert again.dtype == np.uint8 and again.shape == many.shape
    expected = rearrange(vq.decode(torch.from_numpy(codes.astype(np.int64))), "n c y x -> n y x c") * 255
    assert np.abs(again.astype(float) - expected.numpy()).max() <= 0.51


@pytest.mark.parametrize("precision", ["exact", "bf16"])
def test_codes_and_pictures_do_not_depend_on_the_neighbours(precision):
    bulk, many = BulkEncoder(net(), batch_size=4, precision=precision), pictures(11)
    codes = bulk.encode(many)
    assert np.array_equal(codes[8:], bulk.encode(many[8:]))
    assert np.array_equal(codes, bulk.encode(many))
    assert np.array_equal(bulk.decode(codes)[8:], bulk.decode(codes[8:]))


@pytest.mark.parametrize("input_range", [(0.0, 1.0), (-1.0, 1.0)])
def test_bfloat16_gives_nearly_all_of_the_exact_codes(input_range):
    vq = net(input_range=input_range)
    exact, fast = BulkEncoder(vq, precision="exact"), BulkEncoder(vq, precision="bf16")
    many = pictures(8)
    codes = exact.encode(many)
    assert (fast.encode(many) == codes).mean() > 0.9
    assert psnr(fast.decode(codes), exact.decode(codes)) > 35


@pytest.mark.skipif(not pretrained_names(), reason="no tokenizer is shipped")
def test_the_shipped_tokenizer_in_bfloat16_shows_the_same_pictures():
    vq = VQGAN.from_pretrained(pretrained_names()[0])
    exact, fast = (BulkEncoder(vq, batch_size=8, precision=precision) for precision in ("exact", "bf16"))
    many = pictures(8, exact.size)
    codes, near = exact.encode(many), fast.encode(many)
    assert (near == codes).mean() > 0.95
    assert psnr(fast.decode(codes), exact.decode(codes)) > 38


def test_a_net_with_attention_is_encoded_in_bfloat16_too():
    vq = net(attn_resolutions=(8,), no_attn_mid_block=False)
    exact, fast = BulkEncoder(vq, precision="exact"), BulkEncoder(vq, precision="bf16")
    assert (fast.encode(pictures(4)) == exact.encode(pictures(4))).mean() > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_group_norm_from_the_channels_statistics_is_group_norm(dtype):
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(4, 24, eps=1e-6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = (torch.randn(3, 24, 7, 5) * torch.rand(24, 1, 1) + 30 * torch.randn(24, 1, 1)).to(dtype)
    x = x.to(memory_format=torch.channels_last)
    ours = ChannelsLastGroupNorm(norm)(x)
    assert ours.dtype == dtype and ours.is_contiguous(memory_format=torch.channels_last)
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(ours.float(), norm(x.float()), atol=tolerance, rtol=tolerance)


def test_the_net_it_was_given_is_left_alone_and_not_followed():
    vq = net()
    before = {name: tensor.clone() for name, tensor in vq.state_dict().items()}
    bulk = BulkEncoder(vq, precision="bf16")
    codes = bulk.encode(pictures(4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in vq.state_dict().items())
    assert all(parameter.requires_grad for parameter in vq.parameters())
    with torch.no_grad():
        vq.quant_conv.bias += 5
    assert np.array_equal(codes, bulk.encode(pictures(4)))


def test_no_pictures_give_no_codes():
    bulk = BulkEncoder(net())
    assert bulk.encode(pictures(0)).shape == (0, 64)
    assert bulk.decode(np.zeros((0, 64), np.uint16)).shape == (0, 16, 16, 3)


@pytest.mark.slow
def test_compiled_bfloat16_gives_nearly_the_eager_codes():
    from lvm.runtime.machine import compile_problem

    if problem := compile_problem():
        pytest.skip(problem)
    vq, many = net(), pictures(8)
    eager, compiled = (BulkEncoder(vq, batch_size=4, precision="bf16", compile=c) for c in (False, True))
    codes = eager.encode(many)
    assert (compiled.encode(many) == codes).mean() > 0.9
    assert psnr(compiled.decode(codes), eager.decode(codes)) > 35


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")
@pytest.mark.parametrize("compile", [False, True])
def test_a_gpu_gives_the_codes_of_the_cpu(compile):
    vq, many = net(), pictures(40)
    codes = BulkEncoder(vq, "cpu", precision="exact").encode(many)
    exact = BulkEncoder(vq, "cuda", precision="exact", batch_size=4, compile=compile)
    assert (exact.encode(many) == codes).mean() > 0.99
    fast = BulkEncoder(vq, "cuda", precision="bf16", batch_size=4, compile=compile)
    assert (fast.encode(many) == codes).mean() > 0.9
    assert psnr(fast.decode(codes), exact.decode(codes)) > 35
