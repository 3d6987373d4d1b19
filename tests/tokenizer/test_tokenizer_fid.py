"""The Frechet distance is the closed form, moments in pieces are those of the whole, Inception has its known shape."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tokenizer.fid import FEATURES, Inception, Moments, frechet_distance, load_inception
from tokenizer.model import TokenizerError

RNG = np.random.default_rng(0)


def test_the_distance_of_gaussians_with_diagonal_covariances_is_the_closed_form():
    mean_a, mean_b = RNG.normal(size=5), RNG.normal(size=5)
    a, b = RNG.uniform(0.1, 4, 5), RNG.uniform(0.1, 4, 5)
    expected = np.square(mean_a - mean_b).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    assert frechet_distance(mean_a, np.diag(a), mean_b, np.diag(b)) == pytest.approx(expected, abs=1e-10)


def test_the_distance_of_two_by_two_covariances_is_the_closed_form():
    # The root of a 2 x 2 matrix has the trace sqrt(trace + 2 sqrt(det)).
    for _ in range(5):
        a, b = (m @ m.T for m in RNG.normal(size=(2, 2, 2)))
        product = a @ b
        root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
        expected = np.trace(a) + np.trace(b) - 2 * root
        assert frechet_distance(np.zeros(2), a, np.zeros(2), b) == pytest.approx(expected, abs=1e-9)


def test_the_distance_is_symmetric_turns_with_the_axes_and_is_zero_for_equal_sets_even_singular_ones():
    a, b = (np.cov(RNG.normal(size=(4, 9)), rowvar=False) for _ in range(2))  # rank 3 of 9
    mean = RNG.normal(size=9)
    assert frechet_distance(mean, a, mean, a) == pytest.approx(0, abs=1e-6)
    one, other = frechet_distance(mean, a, -mean, b), frechet_distance(-mean, b, mean, a)
    assert one == pytest.approx(other, rel=1e-9)
    turn, _ = np.linalg.qr(RNG.normal(size=(9, 9)))
    turned = frechet_distance(turn @ mean, turn @ a @ turn.T, -turn @ mean, turn @ b @ turn.T)
    assert turned == pytest.approx(one, rel=1e-6)


def test_moments_of_pieces_are_numpys_of_the_whole_far_from_zero_too():
    rows = RNG.normal(size=(101, 6)) @ RNG.normal(size=(6, 6)) + 1000
    moments = Moments()
    for start, stop in ((0, 1), (1, 1), (1, 40), (40, 101)):
        moments.add(torch.from_numpy(rows[start:stop]))
    assert moments.count == 101
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(rows, rowvar=False), rtol=1e-9, atol=1e-9)
    with pytest.raises(TokenizerError, match="at least 2 pictures; there are 0"):
        _ = Moments().covariance


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = Inception().eval()
    for name, buffer in net.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return net


def test_inception_has_94_convolutions_and_21_785_568_parameters_without_its_classifier(net):
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert sum(name.endswith("conv.weight") for name in shapes) == 94
    assert sum(parameter.numel() for parameter in net.parameters()) == 21_785_568
    assert shapes["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert shapes["Mixed_5b.branch5x5_2.bn.running_var"] == (64,)
    assert shapes["Mixed_6c.branch7x7dbl_5.conv.weight"] == (192, 160, 1, 7)
    assert shapes["Mixed_7a.branch7x7x3_4.conv.weight"] == (192, 192, 3, 3)
    assert shapes["Mixed_7c.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1)


def test_features_are_2048_numbers_of_the_picture_resized_to_299_in_minus_one_to_one(net):
    small, seen = torch.rand(2, 3, 48, 48), []
    hook = net.Conv2d_1a_3x3.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        found = net(small)
    hook.remove()
    assert found.shape == (2, FEATURES) and found.isfinite().all() and (found[0] - found[1]).abs().max() > 0
    wanted = F.interpolate(small, size=(299, 299), mode="bilinear", align_corners=False) * 2 - 1
    torch.testing.assert_close(seen[0], wanted)


def test_averages_leave_the_border_out_and_the_last_block_takes_the_maximum(net):
    """The three ways in which FID's net differs from the published one."""

    def pooled(block, channels):
        seen = []
        hook = block.branch_pool.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        x = torch.ones(1, channels, 8, 8)
        x[:, :, 4, 4] = 10.0
        with torch.inference_mode():
            block(x)
        hook.remove()
        return seen[0][0, 0]

    for block, channels in ((net.Mixed_5b, 192), (net.Mixed_6e, 768), (net.Mixed_7b, 1280)):
        values = pooled(block, channels)
        assert values[0, 0] == 1 and values[4, 4] == 2
    assert pooled(net.Mixed_7c, 2048)[4, 4] == 10


def test_weights_load_from_the_public_layout_and_foreign_files_name_their_first_key(net, tmp_path):
    state = {name: tensor for name, tensor in net.state_dict().items() if "num_batches" not in name}
    classifier = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    torch.save({**state, **classifier}, tmp_path / "inception.pth")
    again = load_inception(tmp_path / "inception.pth").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    first = "Conv2d_1a_3x3.conv.weight"
    for change, message in (
        ({first: None}, rf"{first} \[32, 3, 3, 3\] is missing"),
        ({first: torch.zeros(2, 2)}, rf"{first} has shape \[2, 2\], FID's Inception has \[32, 3, 3, 3\]"),
        ({"layer1.weight": torch.zeros(1)}, "layer1.weight is foreign"),
    ):
        torch.save({k: v for k, v in {**state, **change}.items() if v is not None}, tmp_path / "other.pth")
        with pytest.raises(TokenizerError, match=message):
            load_inception(tmp_path / "other.pth")
    with pytest.raises(TokenizerError, match=r"none.pth does not exist"):
        load_inception(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(TokenizerError, match=r"text.pth cannot be read as a state dict"):
        load_inception(tmp_path / "text.pth")
