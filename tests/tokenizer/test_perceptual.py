"""LPIPS equals a plain recomputation from files of the public layout; the filters see what pixel errors do not."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from tokenizer import TokenizerError
from tokenizer.perceptual import FilterBank, gabor_filters, perceptual_term

WIDTHS = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256, 17: 512, 19: 512, 21: 512, 24: 512, 26: 512, 28: 512}


@pytest.fixture(scope="module")
def weights():
    """VGG16 features as torchvision names them, with a piece of the classifier, and the heads as lpips does."""
    generator = torch.Generator().manual_seed(0)
    features, before = {}, 3
    for i, width in WIDTHS.items():
        deviation = (2 / (9 * before)) ** 0.5
        features[f"features.{i}.weight"] = deviation * torch.randn(width, before, 3, 3, generator=generator)
        features[f"features.{i}.bias"] = 0.1 * torch.randn(width, generator=generator)
        before = width
    widths = (64, 128, 256, 512, 512)
    heads = {f"lin{i}.model.1.weight": torch.rand(1, w, 1, 1, generator=generator) for i, w in enumerate(widths)}
    return features | {"classifier.0.bias": torch.zeros(3)}, heads


@pytest.fixture(scope="module")
def files(weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lpips")
    torch.save(weights[0], folder / "vgg16.pth")
    save_file(weights[1], folder / "heads.safetensors")
    return [folder / "vgg16.pth", folder / "heads.safetensors"]


def plain_lpips(features, heads, x, y):
    """Torchvision's list of layers, read behind relu1_2, 2_2, 3_3, 4_3 and 5_3."""

    def levels(h):
        h = 2 * h - 1
        h = (h - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor([0.458, 0.448, 0.450])[
            :, None, None
        ]
        found = []
        for i in range(30):
            if f"features.{i}.weight" in features:
                h = F.conv2d(h, features[f"features.{i}.weight"], features[f"features.{i}.bias"], padding=1)
            elif i in (4, 9, 16, 23):
                h = F.max_pool2d(h, 2)
            else:
                h = F.relu(h)
            if i in (3, 8, 15, 22, 29):
                found.append(h / h.norm(dim=1, keepdim=True))
        return found

    distances = [((a - b) ** 2 * heads[f"lin{i}.model.1.weight"]).sum(1).mean((1, 2)) for i, (a, b) in
                 enumerate(zip(levels(x), levels(y)))]  # fmt: skip
    return sum(distances)


def test_lpips_equals_a_plain_recomputation(weights, files):
    lpips = perceptual_term("lpips", files)
    x, y = torch.rand(2, 2, 3, 32, 48)
    torch.testing.assert_close(lpips(x, y), plain_lpips(*weights, x, y), rtol=1e-4, atol=1e-5)
    assert (lpips(x, x) == 0).all() and not any(p.requires_grad for p in lpips.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lpips(x, y), lpips(x.float(), y))
        assert lpips(x, y).dtype == torch.float32


def test_lpips_of_one_file_is_that_of_two(weights, files, tmp_path):
    torch.save(weights[0] | weights[1], tmp_path / "both.pth")
    x, y = torch.rand(2, 1, 3, 16, 16)
    assert torch.equal(perceptual_term("lpips", [tmp_path / "both.pth"])(x, y), perceptual_term("lpips", files)(x, y))


def test_weights_that_are_not_those_of_lpips_are_named(weights, files, tmp_path):
    def refused(files, message):
        with pytest.raises(TokenizerError, match=message):
            perceptual_term("lpips", files)

    heads = weights[1]
    refused([], r"loss\.perceptual_files=")
    refused([tmp_path / "nowhere.pth"], "nowhere.pth is missing")
    refused(files[:1], r"lin0\.model\.1\.weight is missing from .*vgg16\.pth")
    refused(files[1:], r"features\.0\.weight is missing")
    save_file(heads | {"lin5.model.1.weight": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    refused(
        [files[0], tmp_path / "foreign.safetensors"], r"foreign\.safetensors: unknown tensor lin5\.model\.1\.weight"
    )
    save_file(heads | {"lin2.model.1.weight": torch.zeros(1, 128, 1, 1)}, tmp_path / "other.safetensors")
    refused([files[0], tmp_path / "other.safetensors"], r"lin2.* has shape \[1, 128, 1, 1\] .* needs \[1, 256, 1, 1\]")
    (tmp_path / "text.safetensors").write_text("hello")
    refused([tmp_path / "text.safetensors"], r"text\.safetensors cannot be read as weights")
    with pytest.raises(TokenizerError, match="'vgg'; use filters or lpips"):
        perceptual_term("vgg")


def texture(seed, side=48):
    generator = torch.Generator().manual_seed(seed)
    return F.avg_pool2d(torch.rand(2, 3, side + 1, side + 1, generator=generator), 2, 1)


def test_filters_are_balanced_and_turn():
    filters = gabor_filters()
    torch.testing.assert_close(filters.sum((1, 2, 3)), torch.zeros(8), atol=1e-6, rtol=0)
    torch.testing.assert_close(filters.abs().sum((1, 2, 3)), torch.ones(8))
    even, odd = filters[:4, 0], filters[4:, 0]
    torch.testing.assert_close(even[2], even[0].T)
    torch.testing.assert_close(even, even.flip(1, 2))
    torch.testing.assert_close(odd, -odd.flip(1, 2), atol=1e-6, rtol=0)


def test_a_blur_costs_more_than_a_shift_of_the_same_pixel_error():
    term, x = FilterBank(), texture(0)
    shifted = x.roll(1, 3)
    error = (shifted - x).abs().mean()
    blurred = F.avg_pool2d(F.pad(x, (3, 3, 3, 3), mode="reflect"), 7, 1)
    assert (blurred - x).abs().mean() < error
    brighter = x + error
    assert (term(blurred, x) > term(shifted, x)).all()
    assert (term(brighter, x) < 0.01 * term(shifted, x)).all()
    assert (term(x, x) == 0).all()


def test_an_error_on_calm_ground_costs_more_than_in_a_thicket():
    term, line = FilterBank(), torch.zeros(1, 3, 48, 48)
    line[:, :, :, 24] = 0.1
    calm, thicket = torch.full((1, 3, 48, 48), 0.5), texture(1)[:1]
    assert term(calm + line, calm) > 2 * term(thicket + line, thicket)


def test_the_filters_gradient_brings_a_texture_back():
    term, target = FilterBank(), texture(2)
    x = target.mean((2, 3), keepdim=True).expand_as(target).clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.02)
    first = term(x, target).mean().item()
    for _ in range(30):
        loss = term(x, target).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.isfinite(x).all() and loss < 0.5 * first


def test_filters_have_no_state_and_give_each_picture_its_own_number():
    term, (x, y) = FilterBank(), (texture(3), texture(4))
    assert not term.state_dict() and not list(term.parameters())
    assert torch.equal(term(x, y), FilterBank()(x, y))
    torch.testing.assert_close(term(x, y)[1:], term(x[1:], y[1:]))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(term(x, y), FilterBank()(x, y))
