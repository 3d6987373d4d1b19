"""Any mesh, recomputation and accumulation learn what one rank learns; a lost rank ends all with one line."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_plan import MODEL, FakePlan, run
from many_runs import digest
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

import lvm.training.loop as loop
from lvm.model import LVM
from lvm.runtime import UserError
from lvm.runtime.checkpoint import list_checkpoints, read_manifest
from lvm.runtime.metrics import read_metrics
from lvm.training.parallel import ParallelConfig, make_loss, make_mesh, recomputed_layers

ROOT = Path(__file__).parents[2]
STEPS = {"max_steps": 5, "batch_size": 8, "log_every_steps": 1}
ONE_AT_A_TIME = {"micro_batch_size": 1}
# Every two of mesh, recomputation (selective and mlp as one), precision, optimiser, document mask, loss and micro-batch
# meet in some row, but for "sharded over all" with "nothing recomputed", which the runs on two ranks have; each is
# trained on four ranks and one.
TABLE = [
    (
        {"replicate": 2, "reduce_every_micro_batch": True},
        {"precision": "bf16", "matrices": "muon", "loss_on": "answers"} | ONE_AT_A_TIME,
    ),
    (
        {"replicate": 2, "activation_checkpointing": "selective", "prefetch": 2},
        {"precision": "fp32", "matrices": "muon", "document_mask": True, "loss_on": "answers"},
    ),
    (
        {"activation_checkpointing": "mlp", "reshard_after_forward": False},
        {"precision": "fp32", "matrices": "muon"} | ONE_AT_A_TIME,
    ),
    (
        {"replicate": 4, "activation_checkpointing": "full", "reduce_every_micro_batch": True},
        {"precision": "fp32", "matrices": "muon", "loss_on": "answers"} | ONE_AT_A_TIME,
    ),
    (
        {"replicate": 2, "activation_checkpointing": "full", "reshard_after_forward": False},
        {"precision": "fp32", "matrices": "adamw", "document_mask": True} | ONE_AT_A_TIME,
    ),
    ({"replicate": 4, "activation_checkpointing": "mlp"}, {"precision": "bf16", "matrices": "adamw"}),
    ({"replicate": 4, "prefetch": 0}, {"precision": "fp32", "matrices": "adamw", "document_mask": True}),
    (
        {"activation_checkpointing": "full", "recomputed_share": 0.5, "prefetch": 0},
        {"precision": "bf16", "matrices": "adamw", "document_mask": True, "loss_on": "answers"},
    ),
]
COLLECTIVES = [(1, 1, False), (1, 3, False), (1, 3, True), (2, 3, False), (4, 3, False)]  # copies, micro-batches, every
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}


def start(folder: Path, world_size: int, jobs: list[dict]) -> list[subprocess.Popen]:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(Path(__file__).with_name("many_runs.py")), str(folder / "init"), json.dumps(jobs)]
    environment = os.environ | {"WORLD_SIZE": str(world_size), "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "1"}
    return [
        subprocess.Popen(command, env=environment | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(world_size)
    ]


def on_ranks(folder: Path, world_size: int, jobs: list[dict]) -> list[list]:
    """What each job said, on each rank: [job][rank]."""
    for rank in start(folder, world_size, jobs):
        _, errors = rank.communicate(timeout=240)
        assert rank.returncode == 0, errors[-2000:]
    reports = [json.loads((folder / f"init-{rank}.json").read_text()) for rank in range(world_size)]
    return [list(of_ranks) for of_ranks in zip(*reports)]


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(folder / "metrics") if "loss" in record]


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """One start of two ranks, a run on one between, one start of four: (folder, reports of two, reports of four)."""
    folder = tmp_path_factory.mktemp("ranks")
    moved = {"folder": str(folder / "moved"), "precision": "fp32", "log_every_steps": 1}
    bits = {"precision": "bf16", "save_every_steps": 3}
    two = on_ranks(
        folder / "two",
        2,
        [
            {"weights": [1, 2]},
            {"folder": str(folder / "whole"), "max_steps": 6} | bits,
            {"folder": str(folder / "parts"), "max_steps": 3} | bits,
            {"folder": str(folder / "parts"), "max_steps": 6} | bits,
            moved | {"max_steps": 2},
        ],
    )
    run(folder / "moved", max_steps=4, precision="fp32", log_every_steps=1)
    rows = [
        {"folder": str(folder / f"row-{i}"), "parallel": parallel} | STEPS | settings
        for i, (parallel, settings) in enumerate(TABLE)
    ]
    jobs = [
        {"large": True},
        {"weights": [1, 2, 4]},
        moved | {"max_steps": 6},
        *rows,
        {"muon": [2**24, 144]},
        {"collectives": COLLECTIVES},
    ]
    return folder, two, on_ranks(folder / "four", 4, jobs)


@pytest.mark.parametrize("row", range(len(TABLE)))
def test_four_ranks_learn_what_one_learns(launched, tmp_path, row):
    folder, _, _ = launched
    settings = {key: value for key, value in TABLE[row][1].items() if key != "micro_batch_size"}
    run(tmp_path, **STEPS, **settings)
    expected = losses(tmp_path)
    assert len(expected) == 5 and expected[-1] < expected[0] * 0.95
    assert losses(folder / f"row-{row}") == pytest.approx(expected, rel=TOLERANCE[settings["precision"]])


def test_initial_weights_are_the_same_on_any_mesh(launched):
    _, two, four = launched
    hashes = {value for of_ranks in (two[0], four[1]) for values in of_ranks for value in values}
    assert hashes == {digest(LVM(MODEL, 1))}


def test_no_rank_holds_a_large_model_while_it_is_made(launched):
    _, _, four = launched
    assert max(four[0]) < 0.6, four[0]  # a quarter is its own, the largest tensor 7%; the rest is what torch loads


def test_a_run_resumed_on_two_ranks_has_the_bits_of_an_uninterrupted_one(launched):
    folder, _, _ = launched
    assert_equal_bits(folder / "whole", folder / "parts")


def assert_equal_bits(whole: Path, parts: Path) -> None:
    """Of the checkpoints of step 6 of two runs on two ranks."""
    one, other = (run_dir / "checkpoints" / "step-00000006" / "tensors" for run_dir in (whole, parts))
    files = sorted(path.name for path in one.iterdir())
    assert len(files) == 2
    for file in files:
        expected, tensors = load_file(one / file), load_file(other / file)
        assert expected.keys() == tensors.keys()
        assert [key for key in expected if not torch.equal(expected[key], tensors[key])] == []


def test_a_run_moved_from_two_ranks_to_one_to_four_reads_the_same_windows(launched, tmp_path):
    folder, two, four = launched
    assert min(two[-1][0]["read"]) == 0 and [report["step"] for report in four[2]] == [6] * 4
    read = [set(report["read"]) for report in four[2]]
    assert set(range(16, 24)) <= set.union(*read) and min(set.union(*read)) == 16
    assert sum(map(len, read)) == len(set.union(*read))  # none by two ranks
    run(tmp_path, max_steps=6, precision="fp32", log_every_steps=1)
    assert losses(folder / "moved") == pytest.approx(losses(tmp_path), rel=1e-5)


def test_gradients_are_reduced_once_a_step_however_many_micro_batches_it_has(launched):
    _, _, four = launched
    units = MODEL.num_layers + 1  # each block, and what is around them
    gathers = 2 * units - 1  # for the pass forward and backward; the outermost unit stays whole between them
    for (copies, micro_batches, every), found in zip(COLLECTIVES, zip(*four[-1])):
        sharded = copies < 4
        expected = {
            "all_gather": gathers * micro_batches * sharded,
            "reduce_scatter": units * (micro_batches if every else 1) * sharded,
            "all_reduce": units * (copies > 1),
        }
        assert list(found) == [expected] * 4, (copies, micro_batches, every)


def test_muon_deals_matrices_out_to_ranks_and_changes_no_bit(launched):
    _, _, four = launched
    in_batches, one_by_one = zip(*four[-2])
    steps, matrices = 4, 9
    for reports in (in_batches, one_by_one):
        assert all(report["equal"] for report in reports)
        assert sum(report["orthogonalised"] for report in reports) == steps * matrices
    assert max(report["at_once"] for report in in_batches) == 2  # five alike on four ranks
    assert {report["at_once"] for report in one_by_one} == {1}


def test_a_mesh_that_is_not_the_number_of_ranks_is_refused_with_a_remedy():
    with pytest.raises(UserError, match=r"replicate 3 x shard 1 is not the number of ranks, 4; use .*replicate=1"):
        make_mesh(ParallelConfig(replicate=3), 4, "cpu")
    with pytest.raises(UserError, match=r"trainer\.parallel\.replicate is 0; use 1 or more"):
        ParallelConfig(replicate=0)
    assert make_mesh(ParallelConfig(), 1, "cpu") is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputation_changes_no_bit_and_repeats_what_it_says(dtype):
    tokens, role = torch.randint(20, (4, 17)), torch.zeros(4, 17, dtype=torch.int8)
    gradients, kept, flops = {}, {}, {}
    for way in (("none", 1.0), ("selective", 1.0), ("mlp", 1.0), ("full", 1.0), ("full", 0.5)):
        model = LVM(replace(MODEL, num_layers=4), 1)
        parallel = ParallelConfig(activation_checkpointing=way[0], recomputed_share=way[1])
        loss_of = make_loss(model, dtype, True, False, "all", parallel)
        keeping = KeptByAutograd()
        with keeping, FlopCounterMode(display=False) as counter:
            loss, _ = loss_of(tokens, role, torch.tensor(64.0))
        with counter:
            loss.backward()
        gradients[way] = [p.grad for p in model.parameters()]
        kept[way] = keeping.num_bytes
        flops[way] = counter.get_total_flops()
    plain, selective, mlp, full, half = gradients
    for other in gradients.values():
        assert all(torch.equal(p, q) for p, q in zip(gradients[plain], other, strict=True))
    for way in (selective, mlp, full):  # what selective and mlp keep beside is their own, products alone
        assert kept[way] < 0.5 * kept[plain]
    assert kept[full] < kept[half] < 0.8 * kept[plain]
    gate_and_up = 4 * 2 * 2 * MODEL.hidden_size * MODEL.intermediate_size * 4 * 16
    assert flops[selective] == flops[plain] and flops[mlp] == flops[plain] + gate_and_up
    assert flops[mlp] < flops[half] and 2 * (flops[half] - flops[plain]) == flops[full] - flops[plain]


def test_recomputed_layers_are_spread_evenly():
    assert recomputed_layers(6, "full", 0.5) == [1, 3, 5]
    assert recomputed_layers(10, "selective", 0.3) == [3, 6, 9]
    assert recomputed_layers(4, "full", 1.0) == [0, 1, 2, 3]
    assert recomputed_layers(4, "none", 1.0) == recomputed_layers(4, "full", 0.0) == []
    with pytest.raises(UserError, match=r"trainer\.parallel\.recomputed_share is 1\.5; it is a share, from 0 to 1"):
        ParallelConfig(recomputed_share=1.5)


class KeptByAutograd(torch.autograd.graph.saved_tensors_hooks):
    """Bytes of distinct tensors, weights left out, that autograd itself keeps from a forward pass to the backward."""

    def __init__(self):
        self._seen: dict[int, int] = {}
        super().__init__(self._note, lambda tensor: tensor)

    def _note(self, tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            self._seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def num_bytes(self) -> int:
        return sum(self._seen.values())


@pytest.mark.parametrize(
    ("number", "timeout"), [(signal.SIGKILL, 45.0), (signal.SIGSTOP, 3.0)], ids=["killed", "silent"]
)
def test_a_lost_rank_ends_the_other_with_one_line(tmp_path, number, timeout):
    job = {"folder": str(tmp_path / "run"), "max_steps": 500, "save_every_steps": 2, "signal": [40, int(number)]}
    first, second = start(tmp_path, 2, [job | {"peer_timeout_seconds": timeout}])
    try:
        _, errors = first.communicate(timeout=60)
        assert first.returncode == 1
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and f"rank 1 (pid {second.pid} on " in lines[0] and "continues the run" in lines[0]
        assert "Traceback" not in errors
    finally:
        second.kill()
        second.communicate()
    assert list_checkpoints(tmp_path / "run" / "checkpoints")
    _, result = run(tmp_path / "run", FakePlan(), max_steps=12)  # the lease was given back, or its holder is dead
    assert result.state.step == 12


@pytest.mark.parametrize("how", ["devices", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_the_command_trains_on_two_ranks_and_goes_on_with_one(small, tmp_path, how):
    overrides = [o for o in small[0] if not o.startswith("run_dir=")] + [f"run_dir={tmp_path / 'run'}"]
    overrides += ["trainer.accelerator=cpu", "trainer.log_every_steps=1"]
    python = {
        "devices": [sys.executable],
        "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    }[how]
    command = [*python, str(ROOT / "train.py"), *overrides, "trainer.devices=2", "trainer.max_steps=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    (checkpoint,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert read_manifest(checkpoint)["world_size"] == 2
    from lvm.commands import train

    assert train.main([*overrides, "trainer.max_steps=4"]) == 0
    alone = [o for o in overrides if not o.startswith("run_dir=")] + [f"run_dir={tmp_path / 'alone'}"]
    assert train.main([*alone, "trainer.max_steps=4"]) == 0
    moved, expected = losses(tmp_path / "run"), losses(tmp_path / "alone")
    assert len(moved) == 4 and moved == pytest.approx(expected, rel=1e-2)  # bf16 where the machine has it


@pytest.mark.slow
@pytest.mark.skipif(loop.compile_problem() is not None, reason="torch.compile cannot be used here")
@pytest.mark.timeout(900)
def test_compiled_blocks_learn_what_uncompiled_ones_learn(tmp_path):
    row = {"precision": "bf16", "document_mask": True} | STEPS
    ways = ("selective", "mlp")
    jobs = [
        {"folder": str(tmp_path / way), "compile": True, "parallel": {"activation_checkpointing": way}} | row
        for way in ways
    ]
    on_ranks(tmp_path / "ranks", 2, jobs)
    run(tmp_path / "eager", **row)
    for way in ways:
        assert losses(tmp_path / way) == pytest.approx(losses(tmp_path / "eager"), rel=TOLERANCE["bf16"])


@pytest.mark.slow
@pytest.mark.skipif(loop.compile_problem() is not None, reason="torch.compile cannot be used here")
@pytest.mark.timeout(900)
def test_compiled_blocks_resume_to_the_bit_in_processes_that_compile_them_anew(tmp_path, monkeypatch):
    bits = {"precision": "bf16", "save_every_steps": 3, "compile": True, "document_mask": True}
    whole, parts = ({"folder": str(tmp_path / name)} | bits for name in ("whole", "parts"))
    on_ranks(tmp_path / "ranks", 2, [whole | {"max_steps": 6}, parts | {"max_steps": 3}])
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    on_ranks(tmp_path / "again", 2, [parts | {"max_steps": 6}])
    assert_equal_bits(tmp_path / "whole", tmp_path / "parts")
