import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scaling_runs import LAW, SIZES, STEPS, TOKENS_A_STEP, true_loss, write_grid, write_rates, write_run

from lvm.cluster import law_fit
from lvm.cluster.law_points import LeftOut, Point, at_best_rate, gather
from lvm.cluster.laws import find_laws, frontier, held_back_runs, isoflop, law, main, rates
from lvm.runtime import UserError
from lvm.training.outcome import FILE

CONSTANTS = ("E", "A", "B", "alpha", "beta")


def grid_points(noise, seed, sizes=SIZES, all_steps=STEPS, lr=0.004):
    rng = np.random.default_rng(seed)
    return [
        Point(f"{n}-{steps}", n, d, float(true_loss(n, d) * np.exp(noise * rng.standard_normal())), lr, 6 * n)
        for n in sizes
        for steps in all_steps
        for d in [steps * TOKENS_A_STEP]
    ]


def fit_of(folder, out, *options):
    assert main([str(folder), "--out", str(out), "--bootstrap", "60", *options]) == 0
    return json.loads((out / "law.json").read_text())


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep's folder as of docs/scaling.md: rates at the smallest budget, branches of two, a trunk, a stopped run."""
    root = tmp_path_factory.mktemp("scaling")
    write_rates(root)
    write_grid(root, noise=0.003, all_steps=STEPS[1:])
    write_run(root / "trunk/model=100000", SIZES[0], 7424, 3.0, overrides=())
    write_run(root / "lr/stopped", SIZES[0], 580, 3.0, finished=False, step=20)
    return root


@pytest.fixture(scope="module")
def fitted(sweep, tmp_path_factory):
    out = tmp_path_factory.mktemp("law")
    return fit_of(sweep, out), out


# The fit.


def test_a_law_without_noise_is_found_again():
    found = law(grid_points(0.0, 0), ("n", "tokens"), 0, 0)
    for name in CONSTANTS:
        assert found.record["constants"][name]["value"] == pytest.approx(LAW[name], rel=1e-3), name


def test_the_minimum_is_that_of_lbfgs():
    points = grid_points(0.01, 3)
    found = law(points, ("n", "tokens"), 0, 0)
    z = torch.tensor(np.log([[p.n, p.tokens] for p in points]) - found.fits.centre)
    y = torch.tensor(np.log([p.loss for p in points]))

    def objective(theta):
        terms = [theta[0].expand(len(y)), theta[1] - theta[3] * z[:, 0], theta[2] - theta[4] * z[:, 1]]
        predicted = torch.logsumexp(torch.stack(terms, -1), -1)
        return torch.nn.functional.huber_loss(predicted, y, reduction="sum", delta=law_fit.DELTA)

    lowest = []
    for alpha, beta in ((0.2, 0.2), (0.5, 0.5), (0.5, 1.0)):
        theta = torch.tensor([0.5, 1.0, 0.0, alpha, beta], dtype=torch.float64, requires_grad=True)
        search = torch.optim.LBFGS(
            [theta], max_iter=2000, tolerance_grad=1e-13, tolerance_change=1e-15, line_search_fn="strong_wolfe"
        )

        def closure(theta=theta, search=search):
            search.zero_grad()
            loss = 1e4 * objective(theta)
            loss.backward()
            return loss

        search.step(closure)
        lowest.append(objective(theta.detach()).item())
    assert found.fits.objective == pytest.approx(min(lowest), rel=1e-6)


def test_an_outlier_moves_the_law_little():
    points = grid_points(0.0, 0)
    spoilt = Point(**{**points[4].__dict__, "loss": 1.2 * points[4].loss})
    found = law([*points[:4], spoilt, *points[5:]], ("n", "tokens"), 0, 0)
    assert found.record["constants"]["alpha"]["value"] == pytest.approx(LAW["alpha"], rel=0.02)
    assert found.record["largest_residual"]["name"] == spoilt.name


def test_intervals_cover_the_truth_at_about_their_level():
    """Of 16 draws with 0.5% noise; at 95% fewer than 11 would be met once in 10,000 times."""
    hits = dict.fromkeys(("E", "alpha", "beta"), 0)
    for seed in range(16):
        rows = law(grid_points(0.005, seed), ("n", "tokens"), 60, seed).record["constants"]
        for name in hits:
            low, high = rows[name]["interval"]
            hits[name] += low <= LAW[name] <= high
    assert min(hits.values()) >= 11, hits


def test_intervals_are_narrow_where_noise_is_small_and_say_so_where_it_is_not():
    quiet = law(grid_points(0.0005, 1), ("n", "tokens"), 60, 0).record["constants"]["beta"]
    loud = law(grid_points(0.05, 1), ("n", "tokens"), 60, 0).record
    assert quiet["determined"] and quiet["interval"][1] - quiet["interval"][0] < 0.05
    assert not loud["constants"]["B"]["determined"]
    assert any("not determined" in note for note in loud["notes"])


def test_a_law_without_a_floor_is_called_so():
    points = [Point(f"{n}", n, 2e6, 50 / n**0.2, 0.004, 6 * n) for n in SIZES]
    found = law(points, ("n",), 0, 0).record
    assert any(note.startswith("E is at 0") for note in found["notes"])
    assert found["constants"]["alpha"]["value"] == pytest.approx(0.2, abs=0.01)


def test_as_many_constants_as_runs_have_no_interval():
    points = [p for p in grid_points(0.01, 0) if p.n == SIZES[0]]
    found = law(points, ("tokens",), 60, 0).record
    assert found["constants"]["beta"]["interval"] is None
    assert "passes through all" in found["notes"][0]


def test_two_numbers_of_tokens_are_too_few_for_both():
    assert law(grid_points(0.0, 0, all_steps=STEPS[:2]), ("n", "tokens"), 0, 0) == (
        "it needs runs of 3 numbers of tokens and there are 2"
    )


# What it is for.


def test_the_frontier_is_the_closed_form_where_nets_take_6n():
    found = frontier(law(grid_points(0.0, 0), ("n", "tokens"), 0, 0))
    a, b = LAW["alpha"], LAW["beta"]
    assert found["exponents_6nd"]["n"]["value"] == pytest.approx(b / (a + b), rel=1e-3)
    g = (a * LAW["A"] / (b * LAW["B"])) ** (1 / (a + b))
    for row in found["at"]:
        assert row["n"] == pytest.approx(g * (row["flops"] / 6) ** (b / (a + b)), rel=0.03)
        assert 6 * row["n"] * row["tokens"] == pytest.approx(row["flops"], rel=1e-6)
    assert found["at"][0]["beyond"]["flops"] == 1
    assert found["at"][-1]["beyond"]["flops"] == pytest.approx(100)


def test_isoflop_bottoms_are_where_the_law_says():
    a, b = LAW["alpha"], LAW["beta"]
    g = (a * LAW["A"] / (b * LAW["B"])) ** (1 / (a + b))
    points = []
    for budget in (1e13, 1e14, 1e15):
        best = g * (budget / 6) ** (b / (a + b))
        for n in best * np.array([0.5, 0.7, 1.0, 1.4, 2.0]):
            d = budget / (6 * n)
            points.append(Point(f"{budget:g}-{n:g}", n, d, true_loss(n, d), 0.004, 6 * n))
    found = isoflop(points)
    assert [profile["flops"] for profile in found["profiles"]] == pytest.approx([1e13, 1e14, 1e15])
    assert found["law"]["exponent"] == pytest.approx(b / (a + b), abs=0.02)


def test_larger_runs_are_predicted_from_the_others(fitted):
    record, _ = fitted
    rows = record["held_back"]["predictions"]
    assert {row["n"] for row in rows} == {SIZES[-1]} and len(rows) == 3
    for row in rows:
        assert abs(row["error"]) < 0.02
        assert row["interval"][0] < row["predicted"] < row["interval"][1]
        assert row["beyond"]["n"] == 2 and row["runs"] == 12


def test_a_prediction_knows_nothing_of_what_it_predicts():
    points = grid_points(0.003, 0)
    spoilt = [Point(**{**p.__dict__, "loss": 2 * p.loss}) if p.n == SIZES[-1] else p for p in points]
    before, after = (held_back_runs(runs, "LARGEST", 40, 0)["predictions"] for runs in (points, spoilt))
    assert [row["predicted"] for row in before] == [row["predicted"] for row in after]
    assert not any(row["inside"] for row in after)


def test_runs_are_held_back_by_name(sweep, tmp_path):
    record = fit_of(sweep, tmp_path, "--held-back", "model=500000,steps=*")
    assert [row["name"] for row in record["held_back"]["predictions"]] == [
        f"branch/model=500000,steps={steps}" for steps in STEPS[1:]
    ]
    with pytest.raises(UserError, match="no run is called 'model=7b'"):
        main([str(sweep), "--out", str(tmp_path / "none"), "--held-back", "model=7b"])
    assert not (tmp_path / "none").exists()


# Learning rates.


def test_the_best_rate_moves_with_size_as_it_was_made_to(fitted):
    record, _ = fitted
    assert record["rates"]["law"]["exponent"] == pytest.approx(-0.25, abs=0.01)
    assert [warning for warning in record["warnings"] if "searched at 2M tokens alone" in warning]


def test_a_sweep_at_one_rate_is_called_confounded(tmp_path):
    record = fit_of(write_grid(tmp_path / "runs"), tmp_path / "law")
    assert "confounded" in record["warnings"][0] and "all runs have lr 0.004" in record["warnings"][0]


def test_a_rate_at_the_border_of_its_grid_is_named():
    points = [Point(str(lr), 1e5, 2e6, 4 + abs(np.log(lr / 0.02)), lr, 6e5) for lr in (0.002, 0.004, 0.008)]
    found = rates(points)
    assert found["rows"][0]["at_border"] == "highest" and found["law"] is None
    assert any("0.008, is the highest tried" in warning for warning in found["warnings"])


def test_rates_that_move_without_order_have_no_law():
    def rows(bottoms):
        for n, best in zip(SIZES, bottoms):
            for lr in (0.002, 0.004, 0.008, 0.016):
                yield Point(f"{n}-{lr}", n, 2e6, 4 + np.log(lr / best) ** 2, lr, 6 * n)

    ordered, mixed = (
        rates(list(rows((0.01, 0.008, 0.007, 0.005, 0.004)))),
        rates(list(rows((0.01, 0.004, 0.01, 0.004, 0.008)))),
    )
    assert not ordered["warnings"] and ordered["law"]["exponent_interval"][1] < 0
    assert "its exponent may be 0" in mixed["warnings"][0]


def test_the_run_at_the_best_rate_counts_by_the_mean_of_its_seeds():
    figures = [(0.002, 0, 4.0), (0.002, 1, 4.4), (0.004, 0, 4.1), (0.004, 1, 4.1)]
    points = [Point(f"{lr}-{seed}", 1e5, 2e6, loss, lr, 6e5, seed) for lr, seed, loss in figures]
    assert {point.name for point in at_best_rate(points)} == {"0.004-0", "0.004-1"}


def test_sizes_whose_losses_are_out_of_order_are_named(tmp_path):
    for n, loss in zip(SIZES, (4.6, 4.1, 4.2, 4.0, 3.9)):
        write_run(tmp_path / f"runs/{n}", n, 580, loss)
    warnings = fit_of(tmp_path / "runs", tmp_path / "law", "--bootstrap", "0")["warnings"]
    assert [w for w in warnings if "the loss rises with size (500k above 200k)" in w]


# Run folders.


def test_what_is_no_point_is_left_out_with_the_reason(sweep):
    left_out = {one.name: one.why for one in gather([sweep]).left_out}
    assert left_out["trunk/model=100000"].startswith("its rate is constant")
    assert left_out["lr/stopped"] == "stopped at step 20 of 580"


def test_reasons_of_other_runs(tmp_path):
    write_run(tmp_path / "good", SIZES[0], 580, 4.0)
    falling = ("optim.decay_from_step=500", "optim.decay_steps=200")
    cases = {
        "still-falls": (dict(overrides=falling), "its rate falls until step 700 and it ended at 580"),
        "earlier": (dict(validation_step=464), "last validated at step 464 and not at its end, step 580"),
        "never": (dict(validation_loss=None), "never validated; set trainer.validate_every_steps"),
        "diverged": (dict(validation_loss="nan"), "its validation loss is nan"),
    }
    for name, (options, _) in cases.items():
        write_run(tmp_path / name, SIZES[1], 580, 4.0, **options)
    (write_run(tmp_path / "works", SIZES[1], 580, 4.0) / FILE).unlink()
    write_run(tmp_path / "works-not", SIZES[0], 580, 4.0)
    expected = {name: why for name, (_, why) in cases.items()} | {
        "works": f"not ended (no {FILE})",
        "works-not": "the same figures as another run: a copy",
    }
    assert gather([tmp_path]).left_out == tuple(LeftOut(name, expected[name]) for name in sorted(expected))


@pytest.mark.parametrize("other", [{"plan": "c" * 64}, {"overrides": ("data.seq_len=864", "optim.schedule=cosine")}])
def test_runs_on_other_data_are_not_mixed(tmp_path, other):
    write_grid(tmp_path / "runs")
    plan = {"plan": "c" * 64} | other
    write_run(tmp_path / "runs/branch/other", 300_000, 580, 4.0, **plan)
    with pytest.raises(UserError, match=r"other and model=100000,\S+ are not of one law") as refused:
        main([str(tmp_path / "runs"), "--out", str(tmp_path / "law")])
    assert "\n" not in str(refused.value)
    assert ("data.seq_len is 864 and was 432" if "overrides" in other else "plan is cccccccccccc") in str(refused.value)
    assert "tokenizer" not in str(refused.value)


def test_validation_on_other_windows_is_not_mixed(tmp_path):
    write_grid(tmp_path)
    write_run(
        tmp_path / "other", 300_000, 580, 4.0, overrides=("trainer.validation_windows=64", "optim.schedule=cosine")
    )
    with pytest.raises(UserError, match=r"trainer\.validation_windows is 64 and was 512"):
        gather([tmp_path])


def test_another_batch_size_is_told(tmp_path):
    write_grid(tmp_path)
    write_run(tmp_path / "other", 300_000, 580, 4.0, overrides=("trainer.batch_size=16", "optim.schedule=cosine"))
    assert gather([tmp_path]).warnings == (
        "trainer.batch_size differs between the runs (16, 8); the law takes no account of it",
    )


def test_the_names_and_order_of_folders_do_not_matter(sweep, fitted, tmp_path):
    folders = sorted(path.parent for path in sweep.rglob("config.json"))
    for i, folder in enumerate(reversed(folders)):
        shutil.copytree(folder, tmp_path / f"runs/{i:02d}")
    record = fit_of(tmp_path / "runs", tmp_path / "law")
    assert record["laws"] | {"n_and_d": None} != record["laws"]
    for key in ("frontier", "rates"):
        assert record[key] == fitted[0][key]
    strip = lambda value: re.sub(r'"name": "[^"]*"', "", json.dumps(value))
    assert strip(record["laws"]) == strip(fitted[0]["laws"])
    assert strip(record["held_back"]) == strip(fitted[0]["held_back"])


def test_all_parameters_may_be_the_size(sweep, tmp_path):
    record = fit_of(sweep, tmp_path, "--parameters", "all", "--bootstrap", "0")
    assert min(row["n"] for row in record["points"]) == SIZES[0] + 65_000
    assert record["laws"]["n_and_d"]["constants"]["alpha"]["interval"] is None


# What is written.


def test_the_page_shows_the_law_and_loads_nothing(fitted):
    record, out = fitted
    page = (out / "index.html").read_text()
    assert f"{record['laws']['n_and_d']['constants']['alpha']['value']:.3f}" in page
    assert "beyond the runs" in page and "trunk/model=100000" in page
    assert not re.search(r'(src|href)="?http', page)
    drawn = {path.stem for path in out.glob("*.svg")}
    names = {"loss_by_tokens", "loss_by_size", "loss_by_compute", "optimum_by_compute", "loss_by_rate"}
    assert drawn == names | {"errors_by_compute"}
    for name in drawn:
        assert (out / f"{name}.svg").read_text().partition("?>\n")[2] in page


def test_one_budget_tells_a_law_of_size_alone(tmp_path, capsys):
    write_rates(tmp_path / "runs")
    record = fit_of(tmp_path / "runs", tmp_path / "law")
    assert record["laws"]["n_and_d"] is None and len(record["laws"]["n"]) == 1
    assert record["held_back"]["predictions"][0]["form"] == "E + A / N^alpha"
    printed = capsys.readouterr().out
    assert "L(N, D) was not fitted: it needs runs of 3 numbers of tokens and there are 1" in printed


def run_command(*arguments):
    code = "from lvm.cluster.laws import main; from lvm.runtime import exit_with_one_line; import sys; "
    code += "exit_with_one_line(lambda: main(sys.argv[1:]))"
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize(
    "sizes, all_steps, message",
    [
        ((), (), "none of 1 runs is a point of a law (running: not ended"),
        (SIZES[:1], STEPS, "all 3 runs are of one size, 100k; a law needs 3 sizes or more"),
        (SIZES[:2], STEPS[:2], "4 runs of 2 sizes and 2 numbers of tokens tell no law"),
    ],
)
def test_too_few_runs_are_one_line(tmp_path, sizes, all_steps, message):
    write_grid(tmp_path / "runs", sizes=sizes, all_steps=all_steps)
    (write_run(tmp_path / "runs/running", SIZES[0], 580, 4.0) / FILE).unlink()
    with pytest.raises(UserError, match=re.escape(message)):
        main([str(tmp_path / "runs"), "--out", str(tmp_path / "law")])
    assert not (tmp_path / "law").exists()


def test_a_missing_folder_is_one_line_and_exit_2(tmp_path):
    done = run_command(tmp_path / "nowhere", "--out", tmp_path / "law")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"{tmp_path / 'nowhere'} is no folder" in done.stderr


def test_a_file_where_the_page_shall_go_is_refused_before_the_fit(sweep, tmp_path):
    (tmp_path / "law").write_text("")
    with pytest.raises(UserError, match="law is a file; name a folder"):
        main([str(sweep), "--out", str(tmp_path / "law" / "page")])


def test_the_seed_decides_the_intervals(sweep):
    gathered = gather([Path(sweep)])
    first, second = (find_laws(gathered, bootstrap=30, seed=seed).record["laws"] for seed in (0, 0))
    assert first == second
    assert find_laws(gathered, bootstrap=30, seed=1).record["laws"] != first
