"""The discriminator is pix2pix's but for its norms; hinge losses, adaptive weight and ramp are their formulas."""

import pytest
import torch

from tokenizer import TokenizerError
from tokenizer.adversarial import PatchDiscriminator, adaptive_weight, hinge_d, hinge_g, ramp


def test_the_discriminator_has_pix2pix_layers_and_one_logit_a_patch():
    net = PatchDiscriminator()
    convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    shapes = [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0]) for c in convolutions]
    assert shapes == [(3, 64, 4, 2), (64, 128, 4, 2), (128, 256, 4, 2), (256, 512, 4, 1), (512, 1, 4, 1)]
    assert sum(c.weight.numel() for c in convolutions) == 2_763_776
    assert net(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)
    assert net(torch.zeros(2, 3, 48, 24)).shape == (2, 1, 4, 1)
    for convolution in convolutions[1:4]:
        assert abs(float(convolution.weight.detach().std()) - 0.02) < 0.001


def test_a_logit_sees_seventy_pixels():
    net = PatchDiscriminator(width=2)
    for i, module in enumerate(net.layers):  # norms look at the whole picture
        if isinstance(module, torch.nn.GroupNorm):
            net.layers[i] = torch.nn.Identity()
    x = torch.rand(1, 3, 256, 256, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(x)[0, 0, 15, 15], x)
    rows = torch.nonzero(gradient.abs().sum((0, 1, 3))).squeeze(1)
    assert int(rows[-1] - rows[0]) + 1 == 70


def test_a_pictures_logits_do_not_depend_on_its_neighbours():
    net, x = PatchDiscriminator(width=16).train(), torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(net(x)[:1], net(x[:1]))
    assert not list(net.buffers())


def test_pictures_too_small_for_a_logit_name_the_remedy():
    with pytest.raises(TokenizerError, match=r"16 x 32 pixels are too small for a discriminator of 3 layers.*24"):
        PatchDiscriminator(width=4)(torch.zeros(1, 3, 16, 32))
    assert PatchDiscriminator(width=4, num_layers=2)(torch.zeros(1, 3, 16, 32)).shape == (1, 1, 2, 6)
    with pytest.raises(TokenizerError, match="at least 1"):
        PatchDiscriminator(num_layers=0)


def test_hinge_losses_of_known_logits():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    torch.testing.assert_close(hinge_d(real, fake), torch.tensor(0.5 * (0.25 + 0.5)))
    torch.testing.assert_close(hinge_g(fake), torch.tensor(1.5))
    assert hinge_d(torch.zeros(3), torch.zeros(3)) == 1
    assert hinge_g(fake.bfloat16()).dtype == torch.float32


def test_the_adaptive_weight_is_the_ratio_of_gradient_norms_at_the_last_layer():
    layer = torch.nn.Conv2d(4, 3, 3, padding=1)
    out = layer(torch.rand(2, 4, 8, 8))
    nll, g = out.square().mean(), (0.01 * out).mean()
    weight = adaptive_weight(nll, g, layer.weight)
    of_nll, of_g = (torch.autograd.grad(loss, layer.weight, retain_graph=True)[0].norm() for loss in (nll, g))
    torch.testing.assert_close(weight, of_nll / (of_g + 1e-4))
    assert not weight.requires_grad
    assert adaptive_weight(nll, 1e-9 * g, layer.weight, maximum=3.0) == 3.0
    assert adaptive_weight(0 * nll, g, layer.weight) == 0.0
    (nll + weight * g).backward()  # the graph is still there


def test_the_ramp_starts_at_its_step_and_ends_at_one():
    assert [ramp(step, 10, 4) for step in (0, 10, 11, 13, 14, 99)] == [0, 0, 0.25, 0.75, 1, 1]
    assert [ramp(step, 10, 0) for step in (9, 10, 11)] == [0, 1, 1]


def test_a_discriminator_learns_to_tell_sharp_from_flat():
    torch.manual_seed(0)
    net = PatchDiscriminator(width=8, num_layers=2)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.5, 0.9))
    for _ in range(25):
        sharp = torch.rand(8, 3, 16, 16)
        flat = sharp.mean((2, 3), keepdim=True).expand_as(sharp)
        loss = hinge_d(net(sharp), net(flat))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5
