"""What a run starts from: weights of a seed, of a Hugging Face folder, of a run; and what is passed over on the way."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from fake_plan import MODEL, FakePlan, run
from safetensors.torch import load_file, save_file
from test_parallel import on_ranks

from lvm.commands.export import export
from lvm.model import LVM, LVMConfig
from lvm.runtime import UserError, read_json
from lvm.runtime.checkpoint import CheckpointWriter, list_checkpoints
from lvm.runtime.distributed import Distributed
from lvm.runtime.metrics import read_metrics
from lvm.training import model_of_run
from lvm.training.resume import TrainState
from lvm.training.start import find_start, load_start

STILL = {"max_steps": 1, "lr": 1e-9, "warmup_steps": 0, "weight_decay": 0.0, "precision": "fp32", "log_every_steps": 1}


def first_loss(folder: Path) -> float:
    return read_metrics(folder / "metrics")[0]["loss"]


def loss_of(model: LVM) -> float:
    """Of the first step's windows."""
    window = FakePlan().windows(0, 4)
    nll = model.nll(torch.from_numpy(window.tokens)).detach()
    return float(nll[torch.from_numpy(window.role[:, 1:] != 3)].mean())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, and its model as a Hugging Face folder of several bf16 files."""
    folder = tmp_path_factory.mktemp("trained")
    run(folder / "run", max_steps=6, precision="fp32")
    export(folder / "run", folder / "hf", torch.bfloat16, shard_bytes=8000)
    assert len(list((folder / "hf").glob("*.safetensors"))) > 2
    return folder


@pytest.mark.parametrize("name", ["run", "hf", "run/checkpoints/step-00000006"])
def test_a_run_starts_at_step_0_from_trained_weights(trained, tmp_path, name):
    _, result = run(tmp_path, init_from=trained / name, **STILL)
    expected = model_of_run(trained / "run") if name != "hf" else LVM.from_pretrained(trained / "hf")
    assert result.state.step == 1 and result.state.next_window == 4
    assert first_loss(tmp_path) == pytest.approx(loss_of(expected), rel=1e-5)
    assert first_loss(tmp_path) < 0.97 * loss_of(LVM(MODEL, 1))


@pytest.mark.parametrize("name", ["trunk", "trunk/checkpoints/step-00000004"])
def test_a_branch_goes_on_as_its_trunk_would_have_and_leaves_it_alone(tmp_path, name):
    schedule = {"schedule": "wsd", "stable_share": 1.0, "precision": "fp32", "save_every_steps": 4}
    fall = schedule | {"decay_from_step": 4, "decay_steps": 3, "max_steps": 7}
    _, trunk = run(tmp_path / "trunk", max_steps=4, **schedule)
    branch, result = run(tmp_path / "branch", branch_from=tmp_path / name, **fall)
    whole, _ = run(tmp_path / "whole", **fall)
    assert result.finished and all(map(torch.equal, branch.state_dict().values(), whole.state_dict().values()))
    assert [path.name for path in list_checkpoints(tmp_path / "trunk" / "checkpoints")] == ["step-00000004"]
    assert read_metrics(tmp_path / "branch" / "metrics")[0]["step"] > 4 == trunk.state.step
    run(tmp_path / "branch", branch_from=tmp_path / "gone", **fall)  # a run that goes on does not ask for it


def test_a_branch_of_a_run_without_checkpoint_or_of_another_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"trunk holds no complete checkpoint; give a run folder or one of its"):
        run(tmp_path / "branch", branch_from=tmp_path / "trunk")
    run(tmp_path / "trunk", max_steps=2)
    with pytest.raises(UserError, match=r"was trained with other settings: optim.lr is 0.5 and was .*another run_dir"):
        run(tmp_path / "branch", branch_from=tmp_path / "trunk", lr=0.5)


def test_a_run_that_ended_says_what_it_came_to(tmp_path):
    model, result = run(tmp_path, max_steps=6, validate_every_steps=3, validation_windows=8)
    outcome = read_json(tmp_path / "result.json")
    records = read_metrics(tmp_path / "metrics")
    assert (outcome["finished"], outcome["step"], outcome["tokens"]) == (True, 6, result.state.tokens)
    assert outcome["loss"] == records[-1]["loss"] and outcome["validation_loss"] == records[-1]["validation_loss"]
    blocks = sum(p.numel() for name, p in model.named_parameters() if name.startswith(("layers", "norm")))
    assert outcome["non_embedding_parameters"] == blocks and outcome["parameters"] == model.num_params()
    before = (tmp_path / "result.json").read_bytes()
    run(tmp_path, max_steps=6, validate_every_steps=3, validation_windows=8)  # nothing left to do
    assert (tmp_path / "result.json").read_bytes() == before
    with pytest.raises(RuntimeError, match="broken"):
        run(tmp_path, max_steps=8, plan=Broken())
    assert not (tmp_path / "result.json").exists()  # it failed on the way


class Broken(FakePlan):
    def windows(self, i, n):
        raise RuntimeError("broken")


def test_ranks_read_their_parts_and_a_resumed_run_reads_none(trained, tmp_path):
    shutil.copytree(trained / "hf", tmp_path / "hf")
    job = {"folder": str(tmp_path / "run"), "init_from": str(tmp_path / "hf"), "parallel": {"replicate": 1}} | STILL
    on_ranks(tmp_path / "ranks", 2, [job])
    assert first_loss(tmp_path / "run") == pytest.approx(loss_of(LVM.from_pretrained(tmp_path / "hf")), rel=1e-5)
    shutil.rmtree(tmp_path / "hf")
    _, result = run(tmp_path / "run", init_from=tmp_path / "hf", **STILL | {"max_steps": 2, "schedule_steps": 20})
    assert result.state.step == 2
    with pytest.raises(UserError, match=r"init_from is None and was .*hf"):
        run(tmp_path / "run", **STILL | {"max_steps": 3})


def test_weights_of_another_model_are_refused_with_the_difference(trained, tmp_path):
    start = lambda **changes: run(tmp_path / "new", init_from=trained / "hf", **changes)
    with pytest.raises(UserError, match=r"holds another model: model.hidden_size is 64 and was 32"):
        start(hidden_size=64)
    with pytest.raises(UserError, match=r"model\.vocab_size is 160 and was 120"):
        start(vocab_size=160)
    with pytest.raises(UserError, match=r"is no folder"):
        run(tmp_path / "new", init_from=tmp_path / "nothing")
    with pytest.raises(UserError, match=r"holds no complete checkpoint"):
        run(tmp_path / "new", init_from=trained)
    shutil.copytree(trained / "hf", tmp_path / "cut")
    next((tmp_path / "cut").glob("model-00002*")).unlink()
    with pytest.raises(UserError, match=r"lacks model\..* a file of it is missing"):
        run(tmp_path / "new", init_from=tmp_path / "cut")
    assert list_checkpoints(tmp_path / "new" / "checkpoints") == []


def test_codes_of_another_tokenizer_are_refused(tmp_path):
    LVM(replace(MODEL, tokenizer_fingerprint="a" * 64)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"codes of the tokenizer aaaaaaaaaaaa and the stores hold those of bbbb"):
        load_start(tmp_path, LVM(replace(MODEL, tokenizer_fingerprint="b" * 64)))
    load_start(tmp_path, LVM(MODEL))


def test_the_published_layout_with_8292_tokens_in_half_precision_is_read(tmp_path):
    config = LVMConfig(hidden_size=32, intermediate_size=48, num_layers=2, num_heads=2)
    published = LVM(config, 3)
    published.save_pretrained(tmp_path, torch.float16, shard_bytes=10**6)
    written = json.loads((tmp_path / "config.json").read_text())
    for key in ("num_codes", "tokens_per_picture", "prompt_bos", "tokenizer_fingerprint", "head_dim", "z_loss"):
        written.pop(key, None)  # which the published folder does not say
    (tmp_path / "config.json").write_text(json.dumps(written))
    file = next(tmp_path.glob("model-00001*"))
    save_file(load_file(file) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, file)
    model = LVM(config, 4)
    load_start(find_start(tmp_path, Distributed()), model)
    for p, q in zip(model.parameters(), published.parameters(), strict=True):
        assert p.dtype == torch.float32 and torch.equal(p, q.half().float())


def test_another_precision_is_refused_on_resume(tmp_path):
    run(tmp_path, max_steps=1, precision="fp32")
    with pytest.raises(UserError, match=r"trainer\.precision is bf16 and was fp32"):
        run(tmp_path, max_steps=2, precision="bf16")


# Export.


@pytest.mark.parametrize("tied", [False, True])
def test_an_export_is_what_save_pretrained_writes(tmp_path, tied):
    run(tmp_path / "run", max_steps=1, tie_embeddings=tied)
    export(tmp_path / "run", tmp_path / "ours", torch.bfloat16, shard_bytes=8000)
    model_of_run(tmp_path / "run").save_pretrained(tmp_path / "theirs", torch.bfloat16, shard_bytes=8000)
    names = [{path.name for path in (tmp_path / side).iterdir()} for side in ("ours", "theirs")]
    assert names[0] - names[1] == {"README.md", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"}
    assert "| trained | 1 steps, " in (tmp_path / "ours" / "README.md").read_text()
    assert names[1] < names[0] and len(names[1]) > 5
    for name in names[1]:
        ours, theirs = tmp_path / "ours" / name, tmp_path / "theirs" / name
        if name.endswith(".json"):
            assert json.loads(ours.read_text()) == json.loads(theirs.read_text())
        else:
            expected, tensors = load_file(theirs), load_file(ours)
            assert expected.keys() == tensors.keys()
            assert all(torch.equal(expected[key], tensors[key]) for key in expected)


MEMORY_OF_EXPORT = """
import resource, sys
from pathlib import Path
from lvm.commands.export import export
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
export(Path(sys.argv[1]), Path(sys.argv[2]) / "small")
before = peak()
config, _ = export(Path(sys.argv[3]), Path(sys.argv[2]) / "large")
print((peak() - before) / (4 * config.num_params))
"""


def test_an_export_of_50m_parameters_holds_a_few_of_its_tensors_at_a_time(tmp_path, trained):
    config = LVMConfig(num_codes=1024, hidden_size=512, intermediate_size=1376, num_layers=16, num_heads=8)
    assert 45e6 < config.num_params < 55e6
    writer = CheckpointWriter(tmp_path / "run" / "checkpoints")
    tensors = {f"model.{name}": p.detach() for name, p in LVM(config).named_parameters()}
    state = {"identity": {"model": asdict(config)}, "train": asdict(TrainState())}
    writer.save(1, tensors, state, {})
    writer.wait()
    command = [sys.executable, "-W", "ignore", "-c", MEMORY_OF_EXPORT, trained / "run", tmp_path, tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.2, done.stdout  # its largest tensor is 1.4% of it
