"""Jointed people of the world: joints by angle, drawn at random; their bodies as capsules.

Joints and limbs are those of the Leeds Sports Pose data, in its order. Right and left are the person's own.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float32

JOINTS = ("right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "right_wrist", "right_elbow",
          "right_shoulder", "left_shoulder", "left_elbow", "left_wrist", "neck", "head_top")  # fmt: skip
LIMBS = ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 12), (12, 9), (9, 10), (10, 11), (12, 13), (8, 2),
         (9, 3))  # fmt: skip
NECK, HEAD_TOP = 12, 13

# Lengths and radii as shares of the height.
SHIN, THIGH, TORSO, HEAD, UPPER_ARM, FOREARM = 0.24, 0.25, 0.28, 0.18, 0.16, 0.15
HALF_HIPS, HALF_SHOULDERS = 0.07, 0.11
LIMB_RADIUS, TORSO_RADIUS, HEAD_RADIUS = 0.035, 0.085, 0.07


@dataclass(frozen=True)
class Side:
    """Angles of one leg and one arm in radians: swing is forward, spread outward, bend at the knee or elbow."""

    thigh_swing: float
    thigh_spread: float
    knee_bend: float
    arm_swing: float
    arm_spread: float
    elbow_bend: float


@dataclass(frozen=True)
class Figure:
    x: float  # below the hips
    y: float
    height: float  # standing upright
    yaw: float  # 0: faces -y, towards the camera of azimuth 0
    lean: float  # of the torso, forward
    right: Side
    left: Side
    lightness: float

    def joints(self) -> "Float32[np.ndarray, '14 3']":
        """Where the joints are; the lower ankle stands on the ground."""
        found: list[Any] = [None] * len(JOINTS)
        up = np.array([0.0, -np.sin(self.lean), np.cos(self.lean)])
        neck = TORSO * up
        found[NECK], found[HEAD_TOP] = neck, neck + HEAD * up
        for side, sign, (ankle, knee, hip), (wrist, elbow, shoulder) in (
            (self.right, -1.0, (0, 1, 2), (6, 7, 8)),
            (self.left, 1.0, (5, 4, 3), (11, 10, 9)),
        ):
            found[hip] = np.array([sign * HALF_HIPS, 0.0, 0.0])
            found[knee] = found[hip] + THIGH * _hanging(side.thigh_swing, side.thigh_spread, sign)
            found[ankle] = found[knee] + SHIN * _hanging(side.thigh_swing - side.knee_bend, side.thigh_spread, sign)
            found[shoulder] = neck + np.array([sign * HALF_SHOULDERS, 0.0, 0.0]) - 0.02 * up
            found[elbow] = found[shoulder] + UPPER_ARM * _hanging(side.arm_swing, side.arm_spread, sign)
            found[wrist] = found[elbow] + FOREARM * _hanging(side.arm_swing + side.elbow_bend, side.arm_spread, sign)
        joints = np.stack(found)
        joints[:, 2] += LIMB_RADIUS - min(joints[0, 2], joints[5, 2])
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        turned = joints @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
        return (self.height * turned + np.array([self.x, self.y, 0.0])).astype(np.float32)

    def capsules(self) -> "list[tuple[Float32[np.ndarray, '3'], Float32[np.ndarray, '3'], float]]":
        """The body: both ends and the radius of each part."""
        joints = self.joints()
        parts = [(joints[a], joints[b], LIMB_RADIUS) for a, b in LIMBS if HEAD_TOP not in (a, b)]
        hips, neck, top = (joints[2] + joints[3]) / 2, joints[NECK], joints[HEAD_TOP]
        along = (top - neck) / np.linalg.norm(top - neck) * self.height
        parts.append((hips + 0.3 * TORSO_RADIUS * along, neck - TORSO_RADIUS * along, TORSO_RADIUS))
        parts.append((top - HEAD_RADIUS * along, top - 1.3 * HEAD_RADIUS * along, HEAD_RADIUS))
        return [(a, b, radius * self.height) for a, b, radius in parts]


def _hanging(swing: float, spread: float, sign: float) -> Any:
    """The direction of a limb that hangs down at 0, 0."""
    return np.array([sign * np.sin(spread), -np.sin(swing) * np.cos(spread), -np.cos(swing) * np.cos(spread)])


def sample_figure(rng: np.random.Generator) -> Figure:
    """Anything from standing to running, jumping jacks and sitting on air, turned any way."""

    def side() -> Side:
        return Side(
            thigh_swing=float(rng.normal(0.15, 0.5)),
            thigh_spread=float(abs(rng.normal(0.08, 0.22))),
            knee_bend=float(abs(rng.normal(0.2, 0.6))),
            arm_swing=float(rng.uniform(-0.7, 2.2)),
            arm_spread=float(abs(rng.normal(0.3, 0.6))),
            elbow_bend=float(abs(rng.normal(0.5, 0.6))),
        )

    return Figure(
        x=float(rng.uniform(-1.3, 1.3)),
        y=float(rng.uniform(-0.9, 1.2)),
        height=float(rng.uniform(1.7, 2.5)),
        yaw=float(rng.uniform(-np.pi, np.pi)),
        lean=float(rng.normal(0.1, 0.2)),
        right=side(),
        left=side(),
        lightness=float(rng.uniform(0.75, 1.15)),
    )
