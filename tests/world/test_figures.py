"""The people of the world: bodies that hold together, and poses that lie on them."""

import numpy as np
import pytest

from lvm.pictures import skeletons
from lvm.runtime import UserError
from lvm.sources.world import WorldConfig, WorldSource
from lvm.world import figures
from lvm.world.annotate import class_map, visible_joints
from lvm.world.render import _capsule, cast
from lvm.world.scene import CLASSES, generator


def crowd(**changes):
    return WorldSource(WorldConfig(**{"num_scenes": 30, "num_clips": 0, "num_figures": (1, 3), **changes}))


def sample(count=50):
    return [figures.sample_figure(generator(0, "test", k)) for k in range(count)]


def test_limbs_keep_their_length_and_a_foot_stands_on_the_ground():
    for figure in sample():
        joints = figure.joints() / figure.height
        lengths = [np.linalg.norm(joints[a] - joints[b]) for a, b in figures.LIMBS]
        wanted = [figures.SHIN, figures.THIGH, 2 * figures.HALF_HIPS, figures.THIGH, figures.SHIN]
        np.testing.assert_allclose(lengths[:5], wanted, rtol=1e-4)
        np.testing.assert_allclose(
            [lengths[5], lengths[6], lengths[9], lengths[10]], [0.15, 0.16, 0.16, 0.15], rtol=1e-4
        )
        assert min(joints[0, 2], joints[5, 2]) == pytest.approx(figures.LIMB_RADIUS, abs=1e-4)


def test_the_right_hand_is_on_the_right():
    """Somebody who faces the camera has their right on the picture's left."""
    still = figures.Side(0, 0.1, 0, 0, 0.4, 0)
    joints = figures.Figure(0, 0, 2.0, 0.0, 0.0, still, still, 1.0).joints()
    assert joints[6, 0] < joints[11, 0] and joints[0, 0] < joints[5, 0]
    assert joints[13, 2] > joints[12, 2] > joints[2, 2] > joints[1, 2]
    forward = figures.Figure(0, 0, 2.0, 0.0, 0.0, figures.Side(1.0, 0, 0, 0, 0, 0), still, 1.0).joints()
    assert forward[1, 1] < joints[1, 1]  # the knee comes towards the camera


def test_rays_meet_a_capsule_on_its_surface():
    a, b, r = np.array([0.2, 0, 0.5], np.float32), np.array([1.0, 0.6, 1.4], np.float32), np.float32(0.3)
    position = np.array([0.5, -5, 1], np.float32)
    across = np.linspace(-0.35, 0.35, 81, dtype=np.float32)
    rays = np.stack(np.broadcast_arrays(across[None], np.float32(1), across[:, None]), -1).astype(np.float32)
    t, normal = _capsule(a, b, r, position, rays)
    hit = np.isfinite(t)
    points = position + rays[hit] * t[hit, None]
    along = np.clip((points - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
    np.testing.assert_allclose(np.linalg.norm(points - (a + along[:, None] * (b - a)), axis=1), r, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(normal[hit], axis=1), 1, atol=1e-2)
    assert ((normal[hit] * rays[hit]).sum(1) < 1e-3).all()  # the near side
    # a ray misses exactly if it passes the axis at more than the radius
    steps = np.linspace(3, 8, 400, dtype=np.float32)
    beside = position + rays[:, :, None] * steps[:, None]
    share = np.clip((beside - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
    nearest = np.linalg.norm(beside - (a + share[..., None] * (b - a)), axis=-1).min(-1)
    assert hit[nearest < 0.98 * r].all() and not hit[nearest > 1.01 * r].any()


def test_joints_lie_on_their_person():
    world, seen, on_body = crowd(), 0, 0
    for i in range(12):
        scene = world.scene(i)
        surfaces = cast(scene, 128)
        labels = class_map(scene, surfaces)
        for joints in visible_joints(scene, surfaces):
            known = joints[np.isfinite(joints).all(1)].astype(int)
            seen += len(known)
            on_body += int((labels[known[:, 1], known[:, 0]] == len(CLASSES) - 1).sum())
    assert seen > 100 and on_body / seen > 0.9


def test_a_pose_is_drawn_once_and_read_back():
    world = crowd(num_figures=(1, 1), num_things=(1, 1))
    assert world.channels[-1] == "pose"
    errors = []
    for i in range(8):
        items = world.read(i, 256)
        assert "pose" in items[0].channels and "pose" not in items[1].channels
        scene = world.scene(i)
        (true,) = visible_joints(scene, cast(scene, 256))
        read = skeletons.read(items[0].channels["pose"][0], len(figures.JOINTS), len(figures.LIMBS))
        both = np.isfinite(true).all(1) & np.isfinite(read).all(1)
        errors += np.abs(read[both] - true[both]).max(1).tolist()
    assert np.median(errors) < 2


def test_a_world_without_people_has_no_pose():
    assert "pose" not in crowd(num_figures=(0, 0)).channels
    assert "pose" not in crowd(num_figures=(0, 0)).read(0, 32)[0].channels


@pytest.mark.parametrize("people", [(2, 1), (0, 7), (-1, 1)])
def test_an_impossible_crowd_is_refused(people):
    with pytest.raises(UserError, match="num_figures"):
        crowd(num_figures=people)
