"""Worlds of before there were objects, turntables and puzzles: their bytes and names are what they were."""

import hashlib
import json

import pytest

from lvm.sources.world import WorldConfig, WorldSource


def digest(items):
    found = hashlib.sha256()
    for item in items:
        for name, pictures in item.channels.items():
            found.update(f"{item.id} {item.view} {item.label} {name} {pictures.shape} ".encode())
            found.update(pictures.tobytes())
        found.update(json.dumps(item.meta, sort_keys=True).encode())
    return found.hexdigest()[:16]


@pytest.mark.parametrize("more", [{}, {"num_objects": 5, "num_turntables": 2, "num_puzzles": 3}])
def test_scenes_and_clips_are_drawn_as_ever(more):
    channels = ("image", "depth", "normal", "gray", "segmentation", "edge", "box", "relit", "masked", "noisy", "dark")
    plain = WorldSource(WorldConfig(num_scenes=20, num_clips=3, channels=channels, **more))
    assert [digest(plain.read(i, size)) for i, size in ((0, 48), (7, 48), (20, 48), (22, 32), (1, 256))] == [
        "facf9791330e971b",
        "7c79974131be1555",
        "f0b081ea36e74d57",
        "a156e83712315c98",
        "97913389f2a0a0e5",
    ]
    people = WorldSource(WorldConfig(num_scenes=20, num_clips=3, num_figures=(1, 3), split="test", **more))
    assert digest(people.read(3, 48)) == "7323fcbe3030276d"


def test_fingerprints_are_what_they_were_where_nothing_new_is_asked_for():
    assert (
        WorldSource(WorldConfig()).fingerprint() == "8aaebbaf4d95188f26280bf3a85ad094b0ec4410ba86b11eb6f842508bedfc8c"
    )
    people = WorldConfig(num_figures=(1, 3), channels=("image", "pose", "segmentation"), num_clips=0)
    assert WorldSource(people).fingerprint() == "ea61d3eeb8e383cb72d4c7bdf460bfb241ded98fe14d975077609ee68f410cc4"


@pytest.mark.parametrize(
    "changes",
    [{"num_objects": 1}, {"num_turntables": 1}, {"num_puzzles": 1}, {"clip_channels": ("image", "depth")}],
)
def test_every_new_option_changes_the_fingerprint(changes):
    assert WorldSource(WorldConfig(**changes)).fingerprint() != WorldSource(WorldConfig()).fingerprint()


def test_channels_that_no_unit_has_do_not_change_the_fingerprint():
    some = WorldSource(WorldConfig(channels=("image", "mask"))).fingerprint()
    assert some == WorldSource(WorldConfig(channels=("image",))).fingerprint()
    turned = [WorldConfig(channels=names, num_turntables=1) for names in (("image", "mask"), ("image",))]
    assert len({WorldSource(config).fingerprint() for config in turned}) == 2
