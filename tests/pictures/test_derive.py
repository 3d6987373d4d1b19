"""Derived channels: keyed by the seed, uint8 of the picture's shape, worse with strength; known ones unchanged."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvm.evaluation.measures import psnr
from lvm.pictures import derive
from lvm.runtime import UserError

KEYED = ("masked", "noisy", "inpaint", "rain")
STRONG = ("masked", "noisy", "dark", "rain", "blur", "jpeg")


def photo(seed=0, height=64, width=64):
    """Blobs of colour, gray steps and some grain."""
    random = np.random.default_rng(seed)
    coarse = random.integers(20, 220, (-(-height // 8), -(-width // 8), 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
    return (coarse + random.integers(-12, 13, (height, width, 3))).astype(np.uint8)


@pytest.mark.parametrize("name", derive.DEGRADATIONS)
@given(seed=st.integers(0, 2**63 - 1), strength=st.floats(0, 1), height=st.integers(8, 70), width=st.integers(8, 70))
@settings(max_examples=15, deadline=None)
def test_the_same_key_gives_the_same_picture_and_the_input_stays(name, seed, strength, height, width):
    picture = photo(1, height, width)
    before = picture.copy()
    found = derive.derive(name, picture, strength, seed)
    np.testing.assert_array_equal(found, derive.derive(name, picture, strength, seed))
    np.testing.assert_array_equal(picture, before)
    assert found.shape == picture.shape and found.dtype == np.uint8


@pytest.mark.parametrize("name", derive.DEGRADATIONS)
def test_the_seed_matters_where_there_is_chance_and_nowhere_else(name):
    pictures = {derive.derive(name, photo(), 0.5, seed).tobytes() for seed in range(8)}
    assert len(pictures) > 5 if name in KEYED else len(pictures) == 1


@pytest.mark.parametrize("name", STRONG)
@pytest.mark.parametrize("size", [48, 256])
def test_psnr_falls_with_strength(name, size):
    picture = photo(2, size, size)
    values = [psnr(derive.derive(name, picture, strength, 3), picture) for strength in (0.0, 0.33, 0.67, 1.0)]
    assert values == sorted(values, reverse=True) and values[0] > values[-1] + 2 and values[0] < 45, values


def test_channels_that_shipped_weights_know_have_not_changed():
    picture = np.random.default_rng(7).integers(0, 256, (48, 40, 3)).astype(np.uint8)
    wanted = {
        "gray": "de794cd422abe18a", "masked": "0bd409d04470e479",
        "noisy": "fffc28622c460d73", "dark": "abaf55473e2b385b",
    }  # fmt: skip
    for name, digest in wanted.items():
        drawn = [derive.derive(name, picture, *key).tobytes() for key in ((0.0, 0), (0.5, 3), (1.0, 2**62))]
        assert hashlib.sha256(b"".join(drawn)).hexdigest()[:16] == digest, name
    assert tuple(wanted) == derive.DERIVED


def test_three_in_ten_inpainting_pictures_have_a_square_hole_of_a_tenth_to_a_half():
    white = np.full((80, 80, 3), 255, np.uint8)
    sides, kept = [], []
    for seed in range(600):
        black = ~derive.inpaint(white, seed).any(-1)
        patches = black.reshape(8, 10, 8, 10).transpose(0, 2, 1, 3).reshape(64, 100)
        if patches.any(1).tolist() == patches.all(1).tolist() and black.sum() != 100:
            kept.append(1 - patches.all(1).mean())
        else:
            ys, xs = np.nonzero(black)
            sides.append(ys.max() - ys.min() + 1)
            assert xs.max() - xs.min() + 1 == sides[-1] and black.sum() == sides[-1] ** 2
    assert abs(len(sides) / 600 - 0.3) < 0.05
    assert min(sides) >= 8 and max(sides) <= 40 and 21 < np.mean(sides) < 27
    assert 0.45 < np.mean(kept) < 0.55 and np.percentile(kept, 10) < 0.15 and np.percentile(kept, 90) > 0.85


def test_rain_covers_its_share_and_blur_keeps_flat_pictures():
    gray = np.full((256, 256, 3), 60, np.uint8)
    for strength, low, high in ((0.0, 0.03, 0.05), (1.0, 0.15, 0.21)):
        assert low < (derive.rain(gray, strength, 4) != gray).any(-1).mean() < high
    np.testing.assert_array_equal(derive.blur(gray, 1.0), gray)
    square = gray.copy()
    square[120:137, 120:137] = 240
    spread = derive.blur(square, 0.5)[..., 0].astype(int) - 60
    assert (spread == spread.T).all() and spread[128, 128] == spread.max() < 180
    assert abs(spread.sum() / (17 * 17 * 180) - 1) < 0.01


def test_an_unknown_name_is_told_what_there_is():
    with pytest.raises(UserError, match=r"sepia.*gray.*inpaint.*jpeg"):
        derive.derive("sepia", photo())
