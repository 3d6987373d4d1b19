"""A run on a GPU learns what one on the CPU learns, resumes, moves between the two, and is measured."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
from fake_plan import MODEL, FakePlan, run

from lvm.data.loader import to_batch
from lvm.model import LVM
from lvm.runtime.metrics import read_metrics
from lvm.training.parallel import make_loss, make_sharded_loss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

STEPS = {"max_steps": 6, "log_every_steps": 1, "precision": "fp32"}


@pytest.fixture(autouse=True)
def full_float32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def losses(folder) -> list[float]:
    return [record["loss"] for record in read_metrics(folder / "metrics") if "loss" in record]


def gradients(device: str, dtype: torch.dtype, **options) -> list[torch.Tensor]:
    batch = to_batch(FakePlan().windows(0, 4))
    model = LVM(MODEL, 1).to(device).train()
    model.attention_implementation = "auto"
    loss_of = make_loss(model, dtype, **options)
    tokens, role = batch["tokens"].to(device), batch["role"].to(device)
    loss, nll = loss_of(tokens, role, torch.tensor(60.0, device=device))
    loss.backward()
    return [loss.detach().cpu(), nll.detach().cpu(), *(p.grad.cpu() for p in model.parameters())]


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_loss_and_gradients_are_those_of_the_cpu(dtype, tolerance, documents, compile):
    expected = gradients("cpu", torch.float32, document_mask=documents, compile=False)
    found = gradients("cuda", dtype, document_mask=documents, compile=compile)
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, atol=tolerance * float(theirs.abs().max()), rtol=tolerance)


def test_sharded_over_one_gpu_it_is_the_loss_of_one_gpu(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for key, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setitem(os.environ, key, value)
    dist.init_process_group("nccl")
    try:
        batch = {name: tensor.cuda() for name, tensor in to_batch(FakePlan().windows(0, 4)).items()}
        expected = gradients("cuda", torch.bfloat16, document_mask=False, compile=False)
        model = LVM(MODEL, 1).cuda().train()
        loss_of = make_sharded_loss(model, torch.bfloat16, document_mask=False, compile=True)
        loss, _ = loss_of(batch["tokens"], batch["role"], torch.tensor(60.0, device="cuda"))
        loss.backward()
        assert float(loss) == pytest.approx(float(expected[0]), rel=1e-2)
        for p, gradient in zip(model.parameters(), expected[2:]):
            torch.testing.assert_close(
                p.grad.full_tensor().cpu(), gradient, atol=0.05 * float(gradient.abs().max()), rtol=0.05
            )
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("matrices", ["adamw", "muon"])
def test_a_run_learns_what_the_cpu_learns_and_moves_there_and_back(tmp_path, matrices):
    settings = STEPS | {"matrices": matrices}
    run(tmp_path / "cpu", **settings)
    run(tmp_path / "gpu", device="cuda", **settings)
    run(tmp_path / "both", device="cuda", **(settings | {"max_steps": 2}))
    run(tmp_path / "both", device="cpu", **(settings | {"max_steps": 4}))
    run(tmp_path / "both", device="cuda", **settings)
    expected = losses(tmp_path / "cpu")
    assert len(expected) == 6
    assert losses(tmp_path / "gpu") == pytest.approx(expected, rel=1e-2)
    assert losses(tmp_path / "both") == pytest.approx(expected, rel=1e-2)


def test_a_bf16_run_validates_is_measured_traced_and_its_memory_is_written(tmp_path):
    run(
        tmp_path,
        device="cuda",
        max_steps=4,
        log_every_steps=2,
        precision="bf16",
        compile=True,
        validate_every_steps=4,
        validation_windows=8,
        profile_steps=(2, 3),
        memory_snapshot=True,
    )
    records = read_metrics(tmp_path / "metrics")
    logged = next(record for record in reversed(records) if "loss" in record)
    assert logged["memory"]["device"] > 1e5 and logged["step_seconds"]["p50"] > 0
    assert any("validation_loss" in record for record in records)
    names = {path.name for path in (tmp_path / "profile").iterdir()}
    assert "steps-2-3-rank-0.json" in names and any("memory" in name for name in names)
