"""keypoints: matching and PCK against plain arithmetic, planted answers, lines of boxes and keypoints, whole runs."""

import itertools
import json
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from suite_runs import evaluate
from tiny_prompter import SIZE, write_lines

from lvm.evaluation import point_measures as pm
from lvm.evaluation.annotated import HeldOut
from lvm.evaluation.cases import CONTROLS, RIGHT
from lvm.evaluation.datasets.keypoint_lines import MARGIN, KeypointLines
from lvm.evaluation.suites.base import Context
from lvm.evaluation.suites.keypoints import KeypointSuite, pooled
from lvm.evaluation.suites.opening import open_suite
from lvm.pictures import keypoints, skeletons
from lvm.runtime import UserError
from lvm.sources.base import BrokenItem
from lvm.world.figures import JOINTS, LIMBS

run = partial(evaluate, "keypoints")


def suite_of(data: Path | str | None, *options: str, **changes) -> KeypointSuite:
    given = {"data": None if data is None else str(data), "size": 64, "room": 6, "num_cases": 8, **changes}
    suite = open_suite("keypoints", Context(**given), options)
    assert isinstance(suite, KeypointSuite)
    return suite


@pytest.fixture
def cars(tmp_path) -> Path:
    """Eight pictures of a gray car on blue noise, three wheels known, as a converted Pascal3D+ is laid out."""
    folder = tmp_path / "pascal3d"
    (folder / "Images/car_pascal").mkdir(parents=True)
    rng, lines = np.random.default_rng(0), []
    for k in range(8):
        photo = rng.integers(0, 60, (120, 160, 3), dtype=np.uint8)
        photo[..., 2] += 100
        photo[40:80, 30 + k : 110 + k] = 128
        name = f"Images/car_pascal/2008_{k:06d}.png"
        Image.fromarray(photo).save(folder / name)
        points = [[40 + k, 75], None, [100 + k, 75], [70 + k, 45]]
        lines.append({"image": name, "box": [30 + k, 40, 110 + k, 80], "label": "car", "keypoints": points})
    write_lines(folder / "val.jsonl", lines)
    return folder / "val.jsonl"


# Measures.


def test_the_assignment_is_the_cheapest_of_all():
    rng = np.random.default_rng(0)
    for trial in range(200):
        n, m = (int(k) for k in rng.integers(0, 6, 2))
        cost = rng.random((n, m)) if trial % 3 else rng.integers(0, 3, (n, m)).astype(float)
        rows, columns = pm.assign(cost)
        assert len(set(rows)) == len(set(columns)) == len(rows) == min(n, m)
        few, many = sorted((n, m))
        wide = cost if n <= m else cost.T
        ways = itertools.permutations(range(many), few)
        assert cost[rows, columns].sum() == pytest.approx(min(sum(wide[i, p[i]] for i in range(few)) for p in ways))


def test_pck_equals_the_published_arithmetic():
    """As MMPose's keypoint_pck_accuracy: distances over a normaliser for each case, unseen ones masked, a mean."""
    rng = np.random.default_rng(1)
    for _ in range(50):
        answer, truth = rng.random((2, 14, 2)) * 20
        seen = rng.random(14) > 0.3
        reach = 20 + 30 * rng.random()
        published, counted = 0.0, 0
        for k in range(14):
            if seen[k]:
                away = (((answer[k] - truth[k]) / reach) ** 2).sum() ** 0.5
                published, counted = published + (away <= 0.1), counted + 1
        distances = pm.named(answer, np.where(seen[:, None], truth, np.nan))
        assert pm.pck(distances, reach, 0.1) == pytest.approx(published / counted, abs=1e-9)


def test_a_missed_point_is_wrong_and_its_distance_is_the_whole_side():
    truth = np.array([[10.0, 10], [30, 30]])
    distances = pm.matched(np.array([[12.0, 10]]), truth)
    assert distances.tolist() == [2.0, np.inf]
    assert pm.pck(distances, 40, 0.1) == 0.5 and pm.mean_distance(distances, 40) == pytest.approx((0.05 + 1) / 2)
    assert np.isnan(pm.pck(pm.matched(truth, truth[:0]), 40, 0.1)) and np.isnan(pm.precision(distances, 0, 40, 0.1))
    named = pm.named(np.array([[np.nan, np.nan], [30, 33]]), truth)
    assert named.tolist() == [np.inf, 3.0]


def test_the_box_is_of_what_differs_from_a_plain_rim():
    photo = np.full((40, 40, 3), 200, np.uint8)
    assert pm.box_of(pm.off_ground(photo)) is None
    photo[10:15, 4:30] = 90
    assert pm.box_of(pm.off_ground(photo)) == (4, 10, 30, 15) and pm.larger_side((4, 10, 30, 15)) == 26


# The world.


def test_the_truth_scores_all_and_points_a_little_or_far_off_as_they_should():
    suite = suite_of(None, "only=[keypoints]")
    seen = 0
    for n in range(len(suite)):
        case = suite.case(n)
        truth, photo = case.facts["truth"], case.facts["query"]["image"]
        perfect = suite.judge(case, case.truth)
        assert perfect["pck_0.1"] == 1 and perfect["precision"] == 1 and perfect["points"] == len(truth.points)
        left, top, right, bottom = pm.box_of(case.facts["query"]["mask"].max(-1) > 127)
        assert truth.reach == max(right - left, bottom - top)
        off = 0.15 * truth.reach + 0.5
        moved = suite.judge(case, [keypoints.draw(photo, truth.points[:1] + [off, 0])])
        if len(truth.points) == 1 and truth.points[0, 0] + off < 60:
            assert (moved["pck_0.1"], moved["pck_0.2"]) == (0, 1)
            seen += 1
        missed = suite.judge(case, [photo])
        assert missed["pck_0.1"] == 0 and missed["distance"] == 1 and np.isnan(missed["precision"])
    assert seen


def test_points_too_many_cost_precision_and_never_add_to_pck():
    suite = suite_of(None, "only=[keypoints]")
    case = next(c for c in map(suite.case, range(8)) if len(c.facts["truth"].points) >= 2)
    photo, points = case.facts["query"]["image"], case.facts["truth"].points
    rim = np.array([[4.5, 4.5], [59.5, 4.5], [4.5, 59.5]])
    faint = (0.5 * keypoints.draw(photo, rim).astype(float) + 0.5 * photo).astype(np.uint8)
    found = suite.judge(case, [keypoints.draw(faint, points)])
    assert found["pck_0.1"] == 1 and found["precision"] == pytest.approx(len(points) / (len(points) + 3))
    grid = np.stack(np.meshgrid(np.arange(4.5, 64, 8), np.arange(4.5, 64, 8)), -1).reshape(-1, 2)
    everywhere = suite.judge(case, [keypoints.draw(photo, grid)])
    assert everywhere["pck_0.1"] < 1 and everywhere["precision"] < 0.5


def test_people_are_judged_joint_by_joint():
    suite = suite_of(None, "only=[pose]", size=128)
    shares = []
    for n in range(len(suite)):
        case = suite.case(n)
        assert case.label == "person" and case.task == "pose" and len(case.facts["truth"].points) == len(JOINTS)
        shares.append(suite.judge(case, case.truth)["pck_0.1"])
        turned = case.facts["truth"].points[::-1]  # right places, wrong joints
        black = np.zeros_like(case.truth[0])
        assert suite.judge(case, [skeletons.draw([turned], LIMBS, black)])["pck_0.1"] < 0.5
    assert np.mean(shares) > 0.9


def test_points_are_pooled_over_cases():
    row = lambda share, points: {"conditions": {RIGHT: {"scores": {"pck_0.1": share, "points": points}}}}
    unseen = {"conditions": {RIGHT: {"scores": {"pck_0.1": None, "points": 0.0}}}, "baselines": {}}
    rows = [{**row(1.0, 1.0), "baselines": {}}, {**row(0.25, 4.0), "baselines": {}}, unseen]
    assert pooled(rows) == {RIGHT: pytest.approx(2 / 5)}


# Lines of boxes and keypoints.


def test_objects_are_cut_out_and_their_points_follow(cars):
    data = KeypointLines(cars, 64, HeldOut())
    assert len(data) == 8 and set(data.labels) == {"car"} and data.groups[0].endswith("2008_000000.png")
    side = 80 * (1 + 2 * MARGIN)
    for k in range(8):
        left, top = 30 + k - 80 * MARGIN, 60 - side / 2
        wanted = (np.array([[40 + k, 75], [100 + k, 75], [70 + k, 45]]) - [left, top]) / side * 64
        np.testing.assert_allclose(data.points(k), wanted, atol=64 / side)
        shown = data.read(k, 0)
        (a, b, c, d) = data.box(k)
        assert (shown["image"][b + 2 : d - 2, a + 2 : c - 2] == 128).mean() > 0.98
        np.testing.assert_allclose(
            np.array(sorted(keypoints.read(shown["keypoints"], photo=shown["image"]).tolist())),
            np.array(sorted(data.points(k).tolist())),
            atol=1,
        )
    suite = suite_of(cars)
    case = suite.case(0)
    assert set(case.prompts) == {RIGHT, *CONTROLS}
    assert suite.judge(case, case.truth)["pck_0.1"] == 1 and case.facts["truth"].reach == pytest.approx(64 / 1.2, abs=1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"box": [1, 2, 3]}, r"line 1: box \[1, 2, 3\] is not left, top, right, bottom"),
        ({"keypoints": [[1, 2, 3]]}, "line 1: keypoints are not pairs"),
        ({"image": "../else.png"}, "no path below"),
        ({"box": None}, "line 1"),
    ],
)
def test_a_line_of_another_form_is_named(cars, change, told):
    given = json.loads(cars.read_text().split("\n")[0])
    with pytest.raises(UserError, match=told):
        KeypointLines(write_lines(cars, [{**given, **change}]), 64, HeldOut())
    del given["keypoints"]
    with pytest.raises(UserError, match="line 1: lacks 'keypoints'; a line is"):
        KeypointLines(write_lines(cars, [given]), 64, HeldOut())


def test_a_picture_that_is_gone_breaks_its_own_cases_alone(cars, saved_prompter, tmp_path, capsys):
    (cars.parent / "Images/car_pascal/2008_000003.png").unlink()
    with pytest.raises(BrokenItem, match=r"2008_000003\.png: does not exist"):
        KeypointLines(cars, 64, HeldOut()).read(3, 0)
    code, report = run(saved_prompter, tmp_path / "out", "--data", str(cars), "--held-out", "1000", "--targets", "8")
    assert code == 1 and 1 <= len(report["failed"]) < 8 and "2008_000003.png" in capsys.readouterr().err


def test_pascal3d_as_distributed_is_told_how_to_be_converted(tmp_path):
    (tmp_path / "Annotations/car_pascal").mkdir(parents=True)
    (tmp_path / "Annotations/car_pascal/2008_000251.mat").touch()
    with pytest.raises(UserError, match=r"MATLAB annotations .* give --data FILE.jsonl"):
        suite_of(tmp_path)


# Whole runs.


def test_twenty_queries_of_the_world_within_twenty_seconds(saved_prompter, tmp_path):
    began = time.process_time()  # of this process alone: others may be busy
    code, report = run(saved_prompter, tmp_path / "out", "--targets", "20")
    assert code == 0 and time.process_time() - began < 20
    assert report["items"] == 40 and set(report["tasks"]) == {"keypoints", "pose"}
    for found in report["tasks"].values():
        assert set(found["controls"]) == {"wrong_task", "shuffled", "none"}
        assert {"copy_query", "copy_last_answer", "nearest_pair", "tokenizer_ceiling"} <= set(found["baselines"])
        assert 0 <= found["over_points"]["right"] <= 1
    assert report["tasks"]["keypoints"]["baselines"]["copy_query"]["pck_0.1"]["mean"] == 0
    assert report["settings"]["correct_within"] == [0.1, 0.2] and report["settings"]["skeleton"]["joints"] == 14
    assert {p["name"]: p["scores"]["pck_0.1"] for p in report["published"] if p["name"] == "LVM"} == {"LVM": 0.812}


def test_people_of_a_manifest_bring_their_own_skeleton(saved_prompter, tmp_path):
    rng, lines = np.random.default_rng(2), []
    for k in range(6):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{k}.png")
        lines.append({"image": f"{k}.png", "joints": (5 + 30 * rng.random((3, 2))).tolist()})
    write_lines(tmp_path / "manifest.jsonl", lines)
    source = {"kind": "manifest", "path": str(tmp_path / "manifest.jsonl"), "keypoints": "joints", "limbs": [[0, 1]]}
    (tmp_path / "people.yaml").write_text(json.dumps(source))
    held = ("--held-out", "1000", "--targets", "6")
    code, report = run(saved_prompter, tmp_path / "out", "--data", str(tmp_path / "people.yaml"), *held)
    assert code == 0 and report["settings"]["skeleton"] == {"joints": 3, "limbs": 1}
    assert report["tasks"]["pose"]["baselines"]["copy_query"]["points"]["mean"] > 2


def test_data_without_keypoints_and_unknown_options_are_told(tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="has no keypoints or pose to ask about"):
        suite_of(tmp_path, size=SIZE)
    with pytest.raises(UserError, match="only has 'depth'"):
        suite_of(None, "only=[depth]")
    with pytest.raises(UserError, match=r"least 1\.5"):
        suite_of(None, "least=1.5")
