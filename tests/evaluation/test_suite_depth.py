"""depth: truth in the files' unit whatever was drawn, MiDaS' alignment, NYU Depth v2 in miniature, whole runs."""

import shutil
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from suite_runs import evaluate
from tiny_prompter import SIZE

from lvm.evaluation.annotated import HeldOut
from lvm.evaluation.datasets.nyuv2 import NYUv2
from lvm.evaluation.suites.base import Context
from lvm.evaluation.suites.depth import DepthSuite
from lvm.evaluation.suites.opening import open_suite
from lvm.pictures import depth
from lvm.runtime import UserError
from lvm.sources.base import BrokenItem

run = partial(evaluate, "depth")


def suite_of(data: Path | None, *options: str, **changes) -> DepthSuite:
    given = {"data": None if data is None else str(data), "size": SIZE, "room": 6, "num_cases": 4, **changes}
    return open_suite("depth", Context(**given), options)


def write_pictures(folder: Path, number: int = 8, size: tuple[int, int] = (64, 48), names=("rgb", "depth")) -> None:
    """Noise over slopes of 1 to 5 m, a corner unknown; file k begins at 1000 + 10 k mm."""
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    width, height = size
    for k in range(1, number + 1):
        Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8)).save(
            folder / names[0] / f"{k:04d}.png"
        )
        values = 1000 + 10 * k + np.linspace(0, 3900, width * height).reshape(height, width)
        values[: height // 4, : width // 4] = 0
        Image.fromarray(np.rint(values).astype(np.uint16)).save(folder / names[1] / f"{k:04d}.png")


def raw(folder: Path, id: str) -> np.ndarray:
    """The file sampled as the picture is, with nothing of the code under test."""
    values = Image.open(folder / "depth" / f"{id.split('/')[-1].split('#')[0]}.png")
    return np.asarray(values.resize((SIZE, SIZE), Image.Resampling.NEAREST)).astype(float)


# What is scored.


def test_the_truth_of_the_world_scores_no_error_and_a_copy_of_another_scene_does():
    suite = suite_of(None)
    names = [measure.name for measure in suite.measures]
    for n in range(len(suite)):
        case = suite.case(n)
        perfect, copied = suite.judge(case, case.truth), suite.judge(case, case.baselines["copy_last_answer"])
        assert list(perfect) and set(perfect) == set(names) and names[0] == "abs_rel"
        for name, value in perfect.items():
            assert value == pytest.approx(1 if name.startswith("delta") else 0, abs=1e-5)
            assert copied[name] <= value if name.startswith("delta") else copied[name] > value


def test_alignment_forgives_what_relative_depth_leaves_open_and_units_do_not():
    suite = suite_of(None)
    case = suite.case(0)
    washed = np.rint(40 + 0.6 * case.truth[0]).astype(np.uint8)
    inverted = 255 - case.truth[0]
    of_washed, of_inverted = suite.judge(case, (washed,)), suite.judge(case, (inverted,))
    assert of_washed["abs_rel_aligned"] < 0.02 < 0.05 < of_washed["abs_rel"]
    assert of_inverted["abs_rel_aligned"] < 1e-5 and of_inverted["abs_rel"] > 0.3


def test_an_answer_of_one_level_is_the_mean_inverse_depth():
    suite = suite_of(None)
    case = suite.case(1)
    truth = case.facts["depth"].values
    known = truth[np.isfinite(truth)]
    wanted = np.abs(1 / (1 / known).mean() - known) / known
    for level in (0, 90):
        found = suite.judge(case, (np.full_like(case.truth[0], level),))
        assert found["abs_rel_aligned"] == pytest.approx(wanted.mean())
    (flat,) = case.baselines["mean_level"]
    assert len(np.unique(flat)) == 1 and suite.judge(case, (flat,))["abs_rel_aligned"] == pytest.approx(wanted.mean())


@pytest.mark.parametrize("fixed", [True, False])
def test_the_truth_of_a_source_is_the_files_values_whatever_was_drawn(tmp_path, fixed):
    write_pictures(tmp_path / "room")
    ranges = "depth_near: 500\ndepth_far: 4000\n" if fixed else ""
    yaml = tmp_path / "room.yaml"
    yaml.write_text(f"kind: pictures\npath: {tmp_path / 'room'}\n{ranges}")
    suite = suite_of(yaml, kept_out=HeldOut(1000))
    assert next(m.name for m in suite.measures) == ("abs_rel" if fixed else "abs_rel_aligned")
    assert suite.settings["one_range"] == fixed
    case = suite.case(0)
    truth, values = case.facts["depth"], raw(tmp_path / "room", case.id)
    far = 4000 if fixed else np.percentile(values[values > 0], 98)
    np.testing.assert_array_equal(truth.values, np.where((values > 0) & (values <= far), values, np.nan))
    read = depth.read(case.truth[0], truth.near, truth.far)
    known = np.isfinite(truth.values) & (truth.values >= truth.near)
    scored = suite.judge(case, case.truth)
    assert ("abs_rel" in scored) == fixed
    if fixed:
        assert scored["abs_rel"] == pytest.approx(np.mean(np.abs(read - values)[known] / values[known]), rel=1e-6)
        assert 0 < scored["abs_rel"] < 0.05
    assert scored["abs_rel_aligned"] < 0.06


def test_the_truth_follows_the_part_of_the_picture_that_is_drawn(tmp_path):
    write_pictures(tmp_path / "room")
    yaml = tmp_path / "room.yaml"
    yaml.write_text(f"kind: pictures\npath: {tmp_path / 'room'}\nresize: crop\nflip: true\nviews: 0\n")
    suite = suite_of(yaml, kept_out=HeldOut(1000))
    case = suite.case(0)
    assert case.facts["view"] == 1  # the mirrored one
    whole = Image.open(tmp_path / "room" / "depth" / f"{case.id}.png").crop((8, 0, 56, 48))
    values = np.asarray(whole.resize((SIZE, SIZE), Image.Resampling.NEAREST)).astype(float)[:, ::-1]
    truth = case.facts["depth"].values
    known = np.isfinite(truth)
    np.testing.assert_array_equal(truth[known], values[known])
    assert known.sum() > 0.8 * SIZE * SIZE


def test_depth_of_eight_bits_needs_the_range_it_was_drawn_in(tmp_path):
    write_pictures(tmp_path / "room")
    for file in (tmp_path / "room" / "depth").iterdir():
        values = np.asarray(Image.open(file)).astype(np.float32)
        Image.fromarray(depth.draw(values, 900, 5000)).save(file)
    everything = {"kept_out": HeldOut(1000)}
    with pytest.raises(UserError, match=r"8 bits.*near= and far="):
        suite_of(tmp_path / "room", **everything)
    suite = suite_of(tmp_path / "room", "near=900", "far=5000", **everything)
    case = suite.case(0)
    assert suite.judge(case, case.truth)["abs_rel"] == pytest.approx(0, abs=1e-6)
    truth, values = case.facts["depth"].values, raw_mm(case.id)
    centre = (slice(8, 15), slice(2, 14))
    np.testing.assert_allclose(truth[centre], values[centre], rtol=0.08)  # bicubic, half a gray level


def raw_mm(id: str) -> np.ndarray:
    slope = 1000 + 10 * int(id) + np.linspace(0, 3900, 64 * 48).reshape(48, 64)
    return slope.reshape(SIZE, 3, SIZE, 4).mean((1, 3))


def test_near_and_far_are_refused_where_they_would_change_nothing(tmp_path):
    write_pictures(tmp_path / "room")
    with pytest.raises(UserError, match="16 bits, which near and far do not scale; say depth_near"):
        suite_of(tmp_path / "room", "near=1", "far=9", kept_out=HeldOut(1000))
    with pytest.raises(UserError, match="world's own"):
        suite_of(None, "near=1", "far=9")
    for options, message in ((("near=1",), "together"), (("near=4", "far=2"), "smaller first")):
        with pytest.raises(UserError, match=message):
            suite_of(None, *options)


def to_eight_bits(file: Path) -> None:
    Image.fromarray(depth.draw(np.asarray(Image.open(file)).astype(np.float32), 900, 5000)).save(file)


def test_depth_of_one_wrong_kind_is_refused_before_anything_is_written(tmp_path, saved_prompter):
    write_pictures(tmp_path / "room")
    for file in (tmp_path / "room" / "depth").iterdir():
        to_eight_bits(file)
    words = ["--data", str(tmp_path / "room"), "--held-out", "1000", "--targets", "2"]
    with pytest.raises(UserError, match=r"8 bits.*near= and far="):
        run(saved_prompter, tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()
    code, report = run(saved_prompter, tmp_path / "out", *words, "near=900", "far=5000")  # as the line says
    assert code == 0 and report["settings"]["one_range"]


def test_each_source_of_a_collection_is_probed(tmp_path):
    for name in ("deep", "shallow"):
        write_pictures(tmp_path / name)
    for file in (tmp_path / "shallow" / "depth").iterdir():
        to_eight_bits(file)
    sources = "".join(f"  {name}: {{kind: pictures, path: {tmp_path / name}}}\n" for name in ("deep", "shallow"))
    (tmp_path / "both.yaml").write_text(f"kind: collection\nsources:\n{sources}")
    with pytest.raises(UserError, match=r"shallow/depth/000\d.png has 8 bits"):
        suite_of(tmp_path / "both.yaml", kept_out=HeldOut(1000))


def test_one_file_of_eight_bits_among_others_of_sixteen_fails_its_case_alone(tmp_path, saved_prompter, capsys):
    write_pictures(tmp_path / "room")
    wrong = tmp_path / "room" / "depth" / "0001.png"
    deep = wrong.read_bytes()
    to_eight_bits(wrong)
    words = ["--data", str(tmp_path / "room"), "--held-out", "1000", "--targets", "8"]
    code, report = run(saved_prompter, tmp_path / "out", *words)
    assert code == 1 and [Path(row["file"]).name for row in report["failed"]] == ["0001.png"]
    assert report["tasks"]["depth"]["items"] == 7 and "has 8 bits, which say no distances" in capsys.readouterr().err
    wrong.write_bytes(deep)
    code, report = run(saved_prompter, tmp_path / "out", *words)
    assert code == 0 and report["tasks"]["depth"]["items"] == 8


def test_data_without_depth_are_told_what_is_expected(tmp_path):
    write_pictures(tmp_path / "room")
    remove_depth(tmp_path / "room")
    with pytest.raises(
        UserError, match=r"room has no depth \(channels: image,.*expected images/NAME.jpg.*test.txt"
    ) as e:
        suite_of(tmp_path / "room", kept_out=HeldOut(1000))
    assert "\n" not in str(e.value)


def test_a_report_says_why_it_has_no_pairs_of_another_task(tmp_path):
    write_pictures(tmp_path / "room")
    (tmp_path / "room.yaml").write_text(f"kind: pictures\npath: {tmp_path / 'room'}\nderived: []\n")
    bare = suite_of(tmp_path / "room.yaml", kept_out=HeldOut(1000))
    assert "wrong_task" not in bare.case(0).prompts
    assert bare.settings["wrong_task"] == {"depth": "none: the pictures have channels of no other task"}
    derived = suite_of(tmp_path / "room", kept_out=HeldOut(1000))
    assert "wrong_task" in derived.case(0).prompts and "wrong_task" not in derived.settings


@pytest.mark.parametrize("option", ["resize=crop", "eigen_crop=false"])
def test_options_of_nyu_are_refused_elsewhere(tmp_path, option):
    write_pictures(tmp_path / "room")
    for data in (None, tmp_path / "room"):
        with pytest.raises(UserError, match=f"{option.partition('=')[0]}=.* is an option of nyuv2 alone"):
            suite_of(data, option, kept_out=HeldOut(1000))


def test_pictures_without_depth_beside_others_are_told(tmp_path, capsys):
    write_pictures(tmp_path / "room")
    for k in (2, 5):
        (tmp_path / "room" / "depth" / f"{k:04d}.png").unlink()
    suite = suite_of(tmp_path / "room", kept_out=HeldOut(1000))
    assert suite.cases.data.unmatched == ["0002: no depth", "0005: no depth"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("room: 2 pictures lack an annotation") and line.endswith("0002: no depth; 0005: no depth")
    assert not suite.broken


# NYU Depth v2.


@pytest.fixture
def nyu(tmp_path) -> Path:
    write_pictures(tmp_path / "nyu", 12)
    (tmp_path / "nyu" / "test.txt").write_text("0001\n2\n0003.png\n0004\n0005\n")
    (tmp_path / "nyu" / "scenes.txt").write_text("".join(f"{k:04d} scene-{k % 5}\n" for k in range(1, 13)))
    return tmp_path / "nyu"


def test_nyu_is_known_by_its_test_list_which_alone_is_asked(nyu):
    suite = suite_of(nyu, "pairs=2", num_cases=None)
    assert suite.settings["data"] == "nyuv2" and len(suite) == 5
    data = suite.cases.data
    shown = set()
    for n in range(5):
        case = suite.case(n)
        assert int(case.id) <= 5
        pool = suite.cases.episodes[0].pool(n)
        assert all(int(data.ids[i]) > 5 and data.groups[i] != data.groups[case.facts["item"]] for i in pool)
        assert len(pool) == 7 - sum(k % 5 == int(case.id) % 5 for k in range(6, 13))
        shown.update(data.ids[i] for i in pool)
        assert set(case.prompts) == {"right", "wrong_task", "shuffled", "none"}
    assert len(shown) == 7


def test_metres_of_nyu_whatever_range_is_drawn(nyu):
    relative, metric = suite_of(nyu, "pairs=2"), suite_of(nyu, "pairs=2", "near=0.7", "far=12")
    assert [len(suite.measures) for suite in (relative, metric)] == [6, 12]
    for suite in (relative, metric):
        case = suite.case(0)
        truth, values = case.facts["depth"].values, raw(nyu, case.id) / 1000
        known = np.isfinite(truth)
        np.testing.assert_allclose(truth[known], values[known], rtol=1e-6)
        assert (values[~known] == 0).all() or suite is relative
        scored = suite.judge(case, case.truth)
        assert scored["abs_rel_aligned"] < 0.08 and scored.get("abs_rel", 0) < 0.03
    assert metric.case(0).facts["depth"].cap == 10 and metric.case(0).facts["depth"].far == 12


def test_distances_are_scored_inside_the_eigen_crop(tmp_path):
    write_pictures(tmp_path, 1, (640, 480))
    inside, whole = (NYUv2(tmp_path, 64, crop=crop, drawn=(0.5, 10))(0, 0).values for crop in (True, False))
    known = np.isfinite(inside)
    rows, columns = np.flatnonzero(known.any(1)), np.flatnonzero(known.any(0))
    assert (rows[0], rows[-1]) == (6, 62) and (columns[0], columns[-1]) == (4, 59)  # 45..470 of 480, 41..600 of 640
    np.testing.assert_array_equal(inside[known], whole[known])
    assert np.isfinite(whole).sum() > known.sum()


def remove_depth(nyu: Path) -> None:
    shutil.rmtree(nyu / "depth")


LACKS = {
    "has no 0007": lambda nyu: (nyu / "depth" / "0007.png").unlink(),
    "depth is missing; expected rgb/NAME.png": remove_depth,
    "rgb is missing; expected rgb/NAME.png": lambda nyu: shutil.rmtree(nyu / "rgb"),
    "lists 0099, of which there is no picture": lambda nyu: (nyu / "test.txt").write_text("0001\n0099\n"),
    "is empty": lambda nyu: (nyu / "test.txt").write_text("\n"),
    "has no scene of 0012": lambda nyu: (nyu / "scenes.txt").write_text("".join(f"{k:04d} a\n" for k in range(1, 12))),
    "is not NAME SCENE": lambda nyu: (nyu / "scenes.txt").write_text("0001\n"),
}


@pytest.mark.parametrize("layout", ["auto", "nyuv2"])
@pytest.mark.parametrize("message", LACKS)
def test_what_nyu_lacks_is_named(nyu, message, layout):
    LACKS[message](nyu)
    with pytest.raises(UserError, match=message) as error:
        suite_of(nyu, f"layout={layout}", "pairs=2")
    assert "\n" not in str(error.value)


def test_a_test_list_beside_other_pictures_makes_no_nyu(tmp_path):
    write_pictures(tmp_path / "own", names=("images", "depth"))
    (tmp_path / "own" / "test.txt").write_text("0001\n")
    assert suite_of(tmp_path / "own", kept_out=HeldOut(1000)).settings["data"] == "own"


def test_nyu_of_eight_bits_is_refused_as_a_whole(nyu):
    for file in (nyu / "depth").iterdir():
        to_eight_bits(file)
    with pytest.raises(
        UserError, match=r"000\d.png has mode RGB, depth is 16-bit millimetres; write it with the lines"
    ):
        suite_of(nyu, "pairs=2")


def test_the_distributed_file_is_met_with_how_to_convert_it(tmp_path):
    (tmp_path / "nyu_depth_v2_labeled.mat").write_bytes(b"MATLAB 7.3")
    with pytest.raises(UserError, match=r"h5py.*nyuv2\.py"):
        suite_of(tmp_path)


def test_depth_of_another_size_or_kind_fails_its_case(nyu):
    Image.new("I;16", (10, 10), 5).save(nyu / "depth" / "0001.png")
    Image.new("L", (64, 48), 5).save(nyu / "depth" / "0002.png")
    data = NYUv2(nyu, SIZE)
    with pytest.raises(BrokenItem, match="is 10 x 10, its picture"):
        data.read(0, 0)
    with pytest.raises(BrokenItem, match="16-bit millimetres"):
        data.read(1, 0)


# Whole runs.


def test_twenty_scenes_in_twenty_seconds(saved_prompter, tmp_path, capsys):
    began = time.process_time()
    code, report = run(saved_prompter, tmp_path, "--targets", "20")
    assert time.process_time() - began < 20
    task = report["tasks"]["depth"]
    assert code == 0 and task["items"] == 20 and task["measure"] == "abs_rel"
    assert set(task["conditions"]) == {"right", "wrong_task", "shuffled", "none"}
    assert {"copy_query", "copy_last_answer", "mean_answer", "nearest_pair", "mean_level", "tokenizer_ceiling"} == set(
        task["baselines"]
    )
    assert report["published"] == [] and "no errors" in report["settings"]["published"]
    assert report["settings"]["unit"] == "world units"


def test_a_run_on_nyu_counts_the_case_that_fails(nyu, saved_prompter, tmp_path, capsys):
    (nyu / "depth" / "0002.png").write_bytes(b"\x89PNG")
    code, report = run(saved_prompter, tmp_path / "out", "--data", str(nyu), "pairs=2")
    assert code == 1 and report["items"] == 5 and report["tasks"]["depth"]["items"] == 4
    assert "0002.png" in report["failed"][0]["file"] and "0002.png" in capsys.readouterr().err
    assert report["tasks"]["depth"]["measure"] == "abs_rel_aligned"
    assert report["settings"]["held_out"] == "the test list; pairs are of the other pictures"
