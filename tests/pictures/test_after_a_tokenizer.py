"""Flat colours outlive the shipped tokenizer of 256-px photos, which never saw a drawn map."""

import numpy as np
import torch

from lvm.pictures import segmentation
from tokenizer import VQGAN

SIDE = 256


def interior(labels, distance):
    """Pixels whose neighbours up to `distance` away have their class."""
    inside = np.ones(labels.shape, bool)
    for axis in (0, 1):
        changes = np.nonzero(np.diff(labels, axis=axis))
        for step in range(-distance, distance + 2):
            at = list(changes)
            at[axis] = np.clip(at[axis] + step, 0, SIDE - 1)
            inside[tuple(at)] = False
    return inside


def test_sixteen_classes_read_back_away_from_borders():
    random = np.random.default_rng(0)
    seeds = random.uniform(0, SIDE, (16, 2))
    places = np.stack(np.mgrid[:SIDE, :SIDE], -1).reshape(SIDE, SIDE, 1, 2)
    labels = random.permutation(16)[np.square(places - seeds).sum(-1).argmin(-1)]  # a region about each seed
    palette = segmentation.PALETTE[:16]
    pixels = torch.from_numpy(segmentation.draw(labels, palette)).permute(2, 0, 1)[None].float() / 255
    vq = VQGAN.from_pretrained("photos-256px-f16-8192")
    with torch.inference_mode():
        decoded = vq.decode(vq.encode(pixels))[0].permute(1, 2, 0).mul(255).round().byte().numpy()
    right = segmentation.read(decoded, palette) == labels
    assert right[interior(labels, 4)].mean() >= 0.95
    assert right.mean() >= 0.85
