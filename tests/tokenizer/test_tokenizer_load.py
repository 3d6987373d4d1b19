"""Weights go out and come back; what does not fit is refused by name, and nothing in a file is executed."""

import dataclasses
import json
import pickle
import sys
import types

import pytest
import torch
from safetensors.torch import save_file

from tokenizer import VQGAN, TokenizerError, VQGANConfig, pretrained_names

SMALL = VQGANConfig(
    hidden_channels=32, channel_mult=(1, 2), num_res_blocks=1, z_channels=4, quantized_embed_dim=4, num_embeddings=32,
    resolution=16, norm_groups=32, no_attn_mid_block=False,
)  # fmt: skip
PUBLISHED_KEYS = {  # what the reference's class takes: `config.json` of its weights
    "attn_resolutions", "channel_mult", "commitment_cost", "dropout", "hidden_channels", "no_attn_mid_block",
    "num_channels", "num_embeddings", "num_res_blocks", "quantized_embed_dim", "resample_with_conv", "resolution",
    "z_channels",
}  # fmt: skip
TAMING_YAML = """
model:
  base_learning_rate: 4.5e-6
  target: taming.models.vqgan.VQModel
  params:
    embed_dim: 4
    n_embed: 32
    ddconfig:
      {double_z: false, z_channels: 4, resolution: 16, in_channels: 3, out_ch: 3, ch: 32, ch_mult: [1, 2],
       num_res_blocks: 1, attn_resolutions: [], dropout: 0.0}
    lossconfig: {target: taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator}
"""


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    vq = VQGAN(SMALL).eval()
    vq.save_pretrained(tmp_path / "vq")
    return vq, tmp_path / "vq"


def test_saved_and_loaded_is_the_same_tokenizer(saved):
    vq, folder = saved
    loaded = VQGAN.from_pretrained(folder)
    x = torch.rand(2, 3, 16, 16)
    assert loaded.fingerprint == vq.fingerprint and torch.equal(loaded.encode(x), vq.encode(x))
    values = json.loads((folder / "config.json").read_text())
    assert values["grid"] == [8, 8] and values["_class_name"] == "VQGANModel"


def test_half_precision_halves_the_file_and_computes_in_float32(saved):
    vq, folder = saved
    vq.save_pretrained(folder / "half", torch.float16)
    loaded = VQGAN.from_pretrained(folder / "half")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    sizes = [(f / "model.safetensors").stat().st_size for f in (folder, folder / "half")]
    assert sizes[1] < 0.55 * sizes[0]


def test_the_fingerprint_follows_what_changes_codes_and_nothing_else(saved):
    vq, _ = saved
    before = vq.fingerprint
    with torch.no_grad():
        vq.decoder.conv_out.bias += 1
    assert vq.fingerprint == before
    with torch.no_grad():
        vq.quantize.embedding.weight[3, 1] += 1
    assert vq.fingerprint != before


def test_a_published_folder_with_a_bin_file_loads(saved):
    vq, folder = saved
    (folder / "model.safetensors").unlink()
    torch.save(vq.state_dict(), folder / "pytorch_model.bin")
    assert VQGAN.from_pretrained(folder).fingerprint == vq.fingerprint


def test_a_taming_checkpoint_loads_with_its_yaml_and_without_its_loss(saved, tmp_path):
    vq, _ = saved
    state = dict(vq.state_dict()) | {"loss.discriminator.main.0.weight": torch.zeros(3)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.ckpt")
    (tmp_path / "last.yaml").write_text(TAMING_YAML)
    loaded = VQGAN.from_pretrained(tmp_path / "last.ckpt")
    assert loaded.config.input_range == (-1.0, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), vq.state_dict().values()))


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda s: s.pop("decoder.mid.block_1.conv1.weight"),
            r"decoder\.mid\.block_1\.conv1\.weight \[64, 64, 3, 3\] is missing",
        ),
        (lambda s: s.update({"encoder.extra": torch.zeros(2, 3)}), r"encoder\.extra \[2, 3\] is foreign"),
        (
            lambda s: s.update({"quantize.embedding.weight": torch.zeros(16, 4)}),
            r"quantize\.embedding\.weight has shape \[16, 4\], the configuration asks for \[32, 4\]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named_with_both_shapes(saved, change, message):
    vq, folder = saved
    state = dict(vq.state_dict())
    change(state)
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(TokenizerError, match=message):
        VQGAN.from_pretrained(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.safetensors"])
def test_an_open_muse_folder_of_thirteen_keys_loads(saved, tmp_path, name):
    vq, _ = saved
    config = {key: value for key, value in dataclasses.asdict(SMALL).items() if key in PUBLISHED_KEYS}
    (tmp_path / "muse").mkdir()
    named = {"_class_name": "VQGANModel", "_version": "0.0.1", "_name_or_path": "somewhere"}
    (tmp_path / "muse" / "config.json").write_text(json.dumps(config | named))
    write = torch.save if name.endswith(".bin") else save_file
    write(vq.state_dict(), tmp_path / "muse" / name)
    assert VQGAN.from_pretrained(tmp_path / "muse").fingerprint == vq.fingerprint


def test_saved_for_the_reference_is_what_its_code_opens(saved, tmp_path):
    vq = VQGAN(dataclasses.replace(SMALL, norm_groups=32)).eval()
    vq.save_pretrained(tmp_path / "for", for_reference=True)
    values = json.loads((tmp_path / "for" / "config.json").read_text())
    assert {key for key in values if not key.startswith("_")} == PUBLISHED_KEYS
    assert values["_class_name"] == "VQGANModel" and values["channel_mult"] == [1, 2]
    state = torch.load(tmp_path / "for" / "pytorch_model.bin", weights_only=True)
    assert state.keys() == vq.state_dict().keys()
    assert sorted(f.name for f in (tmp_path / "for").iterdir()) == ["config.json", "pytorch_model.bin"]
    assert VQGAN.from_pretrained(tmp_path / "for").fingerprint == vq.fingerprint


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"norm_groups": 16}, "norm_groups 16"),
        ({"input_range": (-1.0, 1.0)}, r"input_range \[-1.0, 1.0\]"),
        ({"grid": (4, 16)}, "grid 4 x 16"),
        ({"attn_resolutions": (8,)}, "attention on levels of one block"),
    ],
)
def test_what_the_reference_would_compute_differently_is_not_saved_for_it(tmp_path, changed, message):
    with pytest.raises(TokenizerError, match=message):
        VQGAN(dataclasses.replace(SMALL, **changed)).save_pretrained(tmp_path / "for", for_reference=True)
    assert not (tmp_path / "for").exists()


def test_a_folder_never_holds_two_sets_of_weights_of_which_the_wrong_one_is_read(saved):
    vq, folder = saved
    with pytest.raises(TokenizerError, match=r"holds model\.safetensors, which would be read first"):
        vq.save_pretrained(folder, for_reference=True)


def test_a_checkpoint_of_an_old_lightning_loads_though_it_names_a_class(saved, tmp_path, monkeypatch):
    """taming's own files do: the state of its callbacks is kept under the callback's class."""
    vq, _ = saved
    modules = ["pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint"]
    for name in modules:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    callback = type("ModelCheckpoint", (), {"__module__": modules[-1]})
    sys.modules[modules[-1]].ModelCheckpoint = callback
    torch.save({"state_dict": vq.state_dict(), "callbacks": {callback: {"best": 1}}}, tmp_path / "last.ckpt")
    (tmp_path / "last.yaml").write_text(TAMING_YAML)
    assert VQGAN.from_pretrained(tmp_path / "last.ckpt").config.num_embeddings == 32


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle ran code",))


def test_a_pickle_with_code_in_it_is_refused_unexecuted(saved):
    _, folder = saved
    (folder / "model.safetensors").unlink()
    torch.save({"a": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(TokenizerError, match=r"pytorch_model\.bin holds more than tensors"):
        VQGAN.from_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Bomb()}))
    with pytest.raises(TokenizerError, match=r"pytorch_model\.bin"):
        VQGAN.from_pretrained(folder)


@pytest.mark.parametrize("content", [b"", b"hello world\n", b"<html>not found</html>", b"PK\x03\x04 cut off"])
def test_a_file_that_holds_no_weights_is_named(saved, content):
    _, folder = saved
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"pytorch_model\.bin (cannot be read as weights|holds more than)"):
        VQGAN.from_pretrained(folder)


def test_wrong_configurations_and_names_are_one_clear_line(saved):
    _, folder = saved
    with pytest.raises(TokenizerError, match="nowhere is neither"):
        VQGAN.from_pretrained("nowhere")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"hiden_channels": 3}))
    with pytest.raises(TokenizerError, match="unknown key 'hiden_channels'"):
        VQGAN.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(values | {"num_res_blocks": "two"}))
    with pytest.raises(TokenizerError, match="num_res_blocks is 'two'"):
        VQGAN.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(TokenizerError, match="cannot be read as weights"):
        VQGAN.from_pretrained(folder)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("grid", [0, 6], r"grid is \[0, 6\]; it must be rows and columns"),
        ("grid", [6, 6, 6], r"grid is \[6, 6, 6\]"),
        ("grid", [6], r"grid is \[6\]"),
        ("grid", "66", r"grid is '66'; it must be like \[6, 6\]"),
        ("grid", [6.5, 6], r"grid is \[6\.5, 6\]"),
        ("grid", {"0": 6, "1": 6}, "grid is {"),
        ("channel_mult", [1, 1, 2, 3.7], r"channel_mult is \[1, 1, 2, 3\.7\]; it must be like \[1, 2, 2, 4, 6\]"),
        ("channel_mult", "12", "channel_mult is '12'"),
        ("channel_mult", [True, 2], "channel_mult is"),
        ("attn_resolutions", "16", r"attn_resolutions is '16'; it must be like \[16\]"),
        ("dropout", 5, "dropout is 5"),
        ("commitment_cost", float("nan"), "commitment_cost is nan; it must be like 0.25"),
        ("hidden_channels", 10**400, "hidden_channels is 1000"),
        ("input_range", [0, 1, 2], "input_range"),
        ("resample_with_conv", 1, "resample_with_conv is 1; it must be like True"),
    ],
)
def test_a_value_of_the_configuration_that_cannot_be_is_one_line_with_file_and_key(saved, key, value, message):
    _, folder = saved
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(TokenizerError, match=rf"config\.json: {message}") as error:
        VQGAN.from_pretrained(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda t: t.index_fill(0, torch.tensor([0]), float("nan")), "holds NaN or infinity"),
        (lambda t: t / 0, "holds NaN or infinity"),
        (lambda t: t.to(torch.complex64), "is torch.complex64; save the weights as float32"),
        (lambda t: t.to(torch.int64), "is torch.int64"),
    ],
)
def test_weights_that_are_no_finite_floats_are_named(saved, spoil, message):
    vq, folder = saved
    state = dict(vq.state_dict())
    state["quant_conv.weight"] = spoil(state["quant_conv.weight"])
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(TokenizerError, match=rf"pytorch_model\.bin: quant_conv\.weight {message}"):
        VQGAN.from_pretrained(folder)


@pytest.mark.parametrize("content", [b"model: \xff\xfe", b"model: [a\nb: {", b"- 1", b"model: {params: {ddconfig: 3}}"])
def test_a_yaml_that_is_no_tamings_is_one_line(saved, tmp_path, content):
    vq, _ = saved
    torch.save({"state_dict": vq.state_dict()}, tmp_path / "last.ckpt")
    (tmp_path / "last.yaml").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"last\.yaml is not a taming configuration: ") as error:
        VQGAN.from_pretrained(tmp_path / "last.ckpt")
    assert "\n" not in str(error.value)


def test_a_configuration_that_cannot_be_read_is_one_line(saved):
    _, folder = saved
    (folder / "config.json").write_bytes(b'{"grid": "\xff"}')
    with pytest.raises(TokenizerError, match=r"config\.json is not JSON"):
        VQGAN.from_pretrained(folder)
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(TokenizerError, match=r"config\.json cannot be read"):
        VQGAN.from_pretrained(folder)


def test_the_demos_tokenizer_comes_first_where_it_is_shipped():
    names = pretrained_names()
    assert "world-48px-f8-1024" not in names or names[0] == "world-48px-f8-1024"
    for name in names:
        assert VQGAN.from_pretrained(name).config.num_embeddings > 0
