"""`lvm cost` gives the published sizes and what the formulas of its docstring come to by hand."""

import json

import pytest

from lvm.commands.cost import CostOptions, cost, main, model_config
from lvm.runtime import UserError

# Published shapes, 8,292 tokens: parameters, without embedding and head, bytes of 16-bit keys and values a token.
PUBLISHED = {
    "100m": (116_974_720, 106_360_960, 56_320),
    "300m": (290_968_576, 273_986_560, 90_112),
    "600m": (648_396_288, 622_923_264, 135_168),
    "1b": (1_147_119_616, 1_113_155_584, 180_224),
    "3b": (3_274_742_400, 3_221_673_600, 332_800),
    "7b": (6_544_199_680, 6_476_271_616, 524_288),
    "13b": (12_773_094_400, 12_688_184_320, 819_200),
    "20b": (20_722_710_528, 20_620_818_432, 1_130_496),
    "30b": (32_213_342_720, 32_102_959_616, 1_597_440),
}


def figures(model, **changes):
    return cost(model_config(model), CostOptions(model=model, **changes))


@pytest.mark.parametrize("model", PUBLISHED)
def test_sizes_are_the_published_ones(model):
    params, inner, cache = PUBLISHED[model]
    found = figures(model)
    assert found["params"] == params
    assert found["params_without_embeddings"] == inner
    assert found["cache_bytes_per_token"] == cache


def test_flops_of_3b_are_19_5_and_2_gflop_a_token_and_9_1e21_in_all():
    found = figures("3b", tokens=420e9)
    assert found["flops_per_token_causal"] == 6 * (3_274_742_400 - 8292 * 3200) + 6 * 26 * 3200 * 4096
    assert found["flops_per_token"] - found["flops_per_token_causal"] == 6 * 26 * 3200 * 4096
    assert found["flops_causal"] == pytest.approx(9.05e21, rel=2e-3)
    assert figures("300m", tokens=420e9)["flops_causal"] == pytest.approx(0.944e21, rel=2e-3)


def test_days_follow_from_flops_peak_and_mfu():
    found = figures("3b", nodes=8, gpus=8, tokens=420e9, peak=1e15, mfu=0.5)
    # 6 x 3,248,208,000 + 12 x 26 x 3200 x 4096 = 23,578,705,...: 420e9 of them at 64 x 5e14 FLOP/s.
    assert found["flops_per_token"] == 19_489_248_000 + 4_089_446_400
    assert found["days"] == pytest.approx(420e9 * 23_578_694_400 / 3.2e16 / 86_400)
    assert found["gpu_hours"] == pytest.approx(found["days"] * 24 * 64)


def test_recomputation_and_copies_by_hand():
    memory = {
        way: figures("3b", nodes=2, gpus=8, replicate=2, activation_checkpointing=way)["memory_per_gpu"]
        for way in ("none", "selective", "mlp", "full")
    }
    assert memory["none"]["weights_gradients_moments"] == 16 * 3_274_742_400 / 8
    kept, beside = 2 * (8 * 3200 + 3 * 8640) + 4 * 32, 6 * 3200 + 8
    products = 2 * (6 * 3200 + 2 * 8640) + 4 * 32
    assert memory["selective"]["activations_per_window"] == 4096 * (26 * products + kept + beside)
    without_mlp = 2 * 6 * 3200 + 4 * 32
    assert memory["mlp"]["activations_per_window"] == 4096 * (26 * without_mlp + kept + beside)
    assert memory["full"]["activations_per_window"] == 4096 * (26 * 2 * 3200 + kept + beside)
    half = figures("3b", nodes=2, gpus=8, activation_checkpointing="full", recomputed_share=0.5)["memory_per_gpu"]
    assert half["activations_per_window"] == 4096 * (13 * 2 * 3200 + 13 * kept + kept + beside)
    with pytest.raises(UserError, match="recomputed_share is 2; it is a share"):
        figures("3b", recomputed_share=2)
    with pytest.raises(UserError, match="replicate is 3; use a divisor of 2 nodes x 8 GPUs"):
        figures("3b", nodes=2, gpus=8, replicate=3)


def test_memory_of_3b_on_64_gpus_by_hand():
    memory = figures("3b", nodes=8, gpus=8, memory=80e9, reserve=0.1)["memory_per_gpu"]
    assert memory["weights_gradients_moments"] == 16 * 3_274_742_400 / 64
    layer, outer = 4 * 3200**2 + 3 * 3200 * 8640 + 2 * 3200, 2 * 8292 * 3200 + 3200
    assert memory["gathered"] == 2 * (2 * layer + outer) + 6 * (layer + outer)
    assert memory["activations_per_window"] == 4096 * (26 * (2 * (8 * 3200 + 3 * 8640) + 4 * 32) + 6 * 3200 + 8)
    # 72 GB less 0.82, 1.66 and 0.47 GB, at 11.07 GB a window.
    assert figures("3b", nodes=8, gpus=8, memory=80e9)["largest_micro_batch"] == 6


def test_a_model_that_does_not_fit_says_so(capsys):
    assert main(["model=30b", "nodes=1", "gpus=1", "memory=80e9"]) == 0
    assert "none: one window does not fit" in capsys.readouterr().out


def test_checkpoints_are_39_gb_for_3b_and_exports_13_gb_for_7b():
    assert figures("3b")["checkpoint_bytes"] == pytest.approx(39.3e9, rel=1e-3)
    assert figures("7b")["export_bytes"]["bfloat16"] == pytest.approx(13.09e9, rel=1e-3)


def test_the_command_prints_and_writes_json(tmp_path, capsys):
    assert main(["model=3b", "nodes=8", "gpus=8", "tokens=420e9", "--json", str(tmp_path / "cost.json")]) == 0
    assert "3,274,742,400" in capsys.readouterr().out
    written = json.loads((tmp_path / "cost.json").read_text())
    assert written["options"]["tokens"] == 420e9 and written["params"] == 3_274_742_400


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["model=3c"], "3c"), (["model=3b", "node=8"], "nodes"), (["model=3b", "gpus=0"], "gpus"), (["3b"], "KEY=VALUE")],
)
def test_a_wrong_argument_is_one_line_that_names_it(arguments, named):
    with pytest.raises(UserError, match=named):
        main(arguments)
