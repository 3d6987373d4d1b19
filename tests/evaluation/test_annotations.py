"""Annotations read back: untouched ones score perfectly, known damage gives the known number."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lvm.evaluation import annotations
from lvm.evaluation.annotations import (
    AnnotationJudge,
    box_iou,
    depth_errors,
    dot_errors,
    iou,
    joint_errors,
    normal_degrees,
)
from lvm.pictures import boxes, depth, keypoints, normals, segmentation, skeletons

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(90, 130, (48, 48, 3), dtype=np.uint8)
RED = (255, 0, 0)


def test_an_untouched_annotation_scores_perfectly_and_other_channels_are_not_judged():
    judge = AnnotationJudge((1.0, 8.0))
    labels = RNG.integers(0, 5, (6, 6)).repeat(8, 0).repeat(8, 1)
    vectors = RNG.normal(size=(48, 48, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    line = np.zeros((48, 48, 3), np.uint8)
    line[20] = 255
    for channel, picture, wanted in (
        ("segmentation", segmentation.draw(labels), {"miou": 1.0}),
        ("instance", segmentation.draw(labels), {"miou": 1.0}),
        ("depth", depth.draw(RNG.uniform(1, 7.9, (48, 48)), 1, 8), {"depth_mae": 0.0, "abs_rel": 0.0}),
        ("normal", normals.draw(vectors), {"normal_degrees": 0.0}),
        ("edge", line, {"edge_f1": 1.0}),
        ("box", boxes.draw(PHOTO, [(5, 5, 30, 40)], RED, 2), {"box_f1": 1.0, "box_iou": 1.0}),
        ("pose", skeleton(JOINTS), {"keypoint_error": 0.0, "keypoints_found": 1.0}),
        ("keypoints", keypoints.draw(PHOTO, DOTS), {"keypoint_error": 0.0, "keypoints_found": 1.0}),
        ("image", PHOTO, {}),
        ("gray", PHOTO, {}),
    ):
        assert judge(channel, picture, picture, PHOTO) == pytest.approx(wanted, abs=0.05), channel
    assert judge("box", PHOTO, PHOTO, None) == judge("keypoints", PHOTO, PHOTO, None) == {}


def test_a_class_is_told_from_those_of_earlier_pictures_too():
    red, orange = np.full((8, 8, 3), (255, 0, 0), np.uint8), np.full((8, 8, 3), (255, 128, 0), np.uint8)
    judge = AnnotationJudge()
    two = red.copy()
    two[:4] = (0, 0, 255)
    decoded = two.copy()
    decoded[4:] = orange[4:]
    assert judge("segmentation", two, decoded)["miou"] == 1.0  # red is the nearest of the two
    judge("segmentation", orange, orange)
    assert judge("segmentation", two, decoded)["miou"] == 0.5
    assert judge("instance", two, decoded)["miou"] == 1.0


def test_depth_errors_of_a_known_shift_leave_black_out():
    picture = np.full((4, 4, 3), 100, np.uint8)
    picture[0] = 0
    decoded = np.full((4, 4, 3), 151, np.uint8)
    found = depth_errors(picture, decoded, (2.0, 10.0))
    true, read = (1 / (0.1 + 0.4 * value / 255) for value in (100, 151))
    assert found["depth_mae"] == pytest.approx(0.2) and found["abs_rel"] == pytest.approx(1 - read / true)
    assert np.isnan(depth_errors(np.zeros_like(picture), decoded)["depth_mae"])


def test_normals_turned_by_thirty_degrees_err_by_thirty_degrees():
    def facing(angle):
        vector = np.array([np.sin(np.radians(angle)), 0, np.cos(np.radians(angle))])
        return normals.draw(np.broadcast_to(vector, (4, 4, 3)))

    assert normal_degrees(facing(0), facing(30)) == pytest.approx(30, abs=1)
    black = np.zeros((4, 4, 3), np.uint8)
    assert normal_degrees(facing(0), black) == pytest.approx(90) and np.isnan(normal_degrees(black, facing(0)))


def test_iou_of_boxes_and_pieces_of_a_mask_with_a_small_gap():
    assert iou((0, 0, 4, 4), (2, 0, 6, 4)) == pytest.approx(1 / 3) and iou((0, 0, 2, 2), (2, 2, 4, 4)) == 0
    mask = np.zeros((30, 30), bool)
    mask[2, 2:20] = mask[20:25, 25] = True
    mask[2, 10:12] = False
    assert annotations.pieces(mask) == [(2, 2, 20, 3), (25, 20, 26, 25)]
    assert annotations.pieces(np.zeros((5, 5), bool)) == []


def test_a_box_that_moved_overlaps_less_and_a_lost_or_invented_one_counts():
    true = boxes.draw(PHOTO, [(4, 4, 20, 20), (28, 28, 44, 44)], RED, 2)
    moved = boxes.draw(PHOTO, [(8, 4, 24, 20), (28, 28, 44, 44)], RED, 2)
    assert box_iou(moved, true, PHOTO) == pytest.approx((12 / 20 + 1) / 2)
    assert box_iou(boxes.draw(PHOTO, [(4, 4, 20, 20)], RED, 2), true, PHOTO) == pytest.approx(0.5)
    assert box_iou(PHOTO, true, PHOTO) == 0 and np.isnan(box_iou(true, PHOTO, PHOTO))


JOINTS = [(12, 10), (30, 12), (20, 30), (36, 40)]
DOTS = [(12.5, 10.5), (30.5, 12.5), (20.5, 30.5), (36.5, 40.5)]
BLACK = np.zeros((48, 48, 3), np.uint8)


def skeleton(*people):
    return skeletons.draw(np.array(people, np.float64), [(0, 1), (1, 2), (2, 3)], BLACK)


def blurred(picture, by=1.5):
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(by)))


def test_joints_that_moved_err_by_their_distance_and_lost_ones_are_missed():
    found = joint_errors(skeleton(JOINTS), skeleton([(13, 11), *JOINTS[1:]]))
    assert found == pytest.approx({"keypoint_error": 2**0.5 / 4, "keypoints_found": 1.0}, abs=0.01)
    assert joint_errors(skeleton(JOINTS), skeleton([(20, 14), *JOINTS[1:]]))["keypoints_found"] == 0.75
    assert joint_errors(skeleton(JOINTS), skeleton([*JOINTS[:3], (np.nan, np.nan)]))["keypoints_found"] == 0.75
    assert np.isnan(joint_errors(BLACK, BLACK)["keypoint_error"])


def test_joints_of_two_people_are_found_in_a_blurred_picture():
    two = skeleton(JOINTS, [(x + 8, 46 - y) for x, y in JOINTS])
    found = joint_errors(two, blurred(two))
    assert found["keypoints_found"] == 1 and found["keypoint_error"] < 1
    assert joint_errors(two, skeleton(JOINTS))["keypoints_found"] == 0.5


def test_an_untouched_crowd_scores_perfectly_whatever_covers_what():
    for number in range(1, 9):
        people = RNG.uniform(2, 46, (number, 14, 2))
        crowd = skeletons.draw(people, [(k, k + 1) for k in range(13)], BLACK)
        found = joint_errors(crowd, crowd)
        assert found["keypoints_found"] == 1 and found["keypoint_error"] < 1.5
        assert joint_errors(crowd, BLACK)["keypoints_found"] < 0.5
    many = skeletons.draw(RNG.uniform(5, 250, (1, 133, 2)), [(0, 1)], np.zeros((256, 256, 3), np.uint8))
    half = many.copy()
    half[:, 128:] = 0
    assert 0.2 < joint_errors(many, half)["keypoints_found"] < 0.8


def test_dots_on_a_photo_stand_for_each_other_and_a_lost_one_is_missed():
    drawn = keypoints.draw(PHOTO, DOTS)
    assert dot_errors(drawn, blurred(drawn, 1), blurred(PHOTO, 1)) == pytest.approx(
        {"keypoint_error": 0, "keypoints_found": 1}, abs=0.1
    )
    assert dot_errors(drawn, keypoints.draw(PHOTO, DOTS[:3]), PHOTO)["keypoints_found"] == 0.75
    assert dot_errors(drawn, PHOTO, PHOTO)["keypoints_found"] == 0
    assert np.isnan(dot_errors(PHOTO, PHOTO, PHOTO)["keypoints_found"])


def test_class_maps_and_instances_are_compared_by_overlap():
    true = np.array([[0, 0, 1, 1], [2, 2, 2, 2]])
    found = np.array([[0, 0, 1, 0], [2, 2, 2, 2]])
    assert annotations.class_miou(true, true) == 1
    assert annotations.class_miou(found, true) == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert annotations.instance_miou(3 * true, true) == 1, "numbers do not count"
    assert annotations.instance_miou(found, true) == pytest.approx((1 / 2 + 1) / 2)
    assert annotations.instance_miou(0 * true, true) == 0 and np.isnan(annotations.instance_miou(true, 0 * true))


def test_depth_scores_leave_unknown_depth_out():
    true, found = np.array([[2.0, 4.0, np.inf, np.nan]]), np.array([[2.2, 8.0, 1.0, 1.0]])
    assert annotations.depth_scores(found, true) == pytest.approx({"abs_rel": 0.55, "d1": 0.5})
    assert np.isnan(annotations.depth_scores(found, np.full_like(found, np.nan))["d1"])


def test_a_joint_counts_within_reach_and_a_missing_one_is_wrong():
    true = np.array([[10.0, 10], [20, 20], [30, 30], [np.nan, np.nan]])
    found = np.array([[13.0, 14], [20, 26], [np.nan, np.nan], [1, 1]])
    assert annotations.pck(found, true, 5) == pytest.approx(1 / 3)
    assert np.isnan(annotations.pck(found, np.full((4, 2), np.nan), 5))


@pytest.mark.skipif(
    not (Path(__file__).parents[2].parent / "shared" / "data" / "camvid").is_dir(), reason="shared/data is not there"
)
def test_real_annotations_through_a_strong_blur_lose_some_but_not_all():
    from tokenizer.evaluate import PictureStream

    data = Path(__file__).parents[2].parent / "shared" / "data"
    for name, channel, metric in (
        ("camvid", "segmentation", "miou"),
        ("bsds500", "edge", "edge_f1"),
        ("rgbd_room", "normal", "normal_degrees"),
    ):
        judge, values = AnnotationJudge(), []
        for picture in PictureStream(str(data / name), 64, 12):
            if picture.channel == channel:
                small = Image.fromarray(picture.pixels).resize((16, 16), Image.Resampling.BOX).resize((64, 64))
                values.append(judge(channel, picture.pixels, np.asarray(small), picture.photo)[metric])
        low, high = (2, 60) if metric == "normal_degrees" else (0.05, 0.95)
        assert low < np.mean(values) < high, name
