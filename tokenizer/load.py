"""Weights in and out: the published folder, a taming `.ckpt` with its YAML, our own folder. No file's code is run."""

import dataclasses
import functools
import json
import os
import pickle
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokenizer.model import VQGAN, TokenizerError, VQGANConfig

WEIGHTS = Path(__file__).parent / "weights"
DEMO = "world-48px-f8-1024"


def pretrained_names() -> list[str]:
    """The tokenizers that travel with the package; the demo's first."""
    names = sorted(folder.name for folder in WEIGHTS.glob("*") if (folder / "config.json").is_file())
    return sorted(names, key=lambda name: name != DEMO)


def load(path_or_name: str | os.PathLike[str]) -> VQGAN:
    """See `VQGAN.from_pretrained`."""
    path = Path(path_or_name)
    if not path.exists():
        if str(path_or_name) not in pretrained_names():
            known = ", ".join(pretrained_names()) or "none"
            raise TokenizerError(f"{path_or_name} is neither a folder, a .ckpt file nor a tokenizer we ship ({known})")
        path = WEIGHTS / str(path_or_name)
    if path.is_dir():
        config = read_config(path / "config.json")
        file = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
        if file is None:
            raise TokenizerError(f"{path} holds no weights; one of {', '.join(WEIGHT_FILES)} must lie there")
    else:
        config, file = read_taming_config(path), path
    return with_weights(config, read_tensors(file), file)


WEIGHT_FILES = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.safetensors",
    "pytorch_model.bin",
)
OURS_ALONE = ("input_range", "grid", "norm_groups")  # keys of config.json that the published class does not take


def save(vq: VQGAN, path: str | os.PathLike[str], dtype: torch.dtype) -> None:
    """See `VQGAN.save_pretrained`."""
    config = dataclasses.asdict(vq.config) | {"grid": vq.config.code_grid}
    write = functools.partial(save_file, metadata={"format": "pt"})
    _write_folder(Path(path), config, vq, dtype, "model.safetensors", write)


def save_for_reference(vq: VQGAN, path: str | os.PathLike[str], dtype: torch.dtype) -> None:
    """See `VQGAN.save_pretrained`."""
    c = vq.config
    rows, columns = c.code_grid
    sides = [c.resolution // 2**level for level in range(len(c.channel_mult))]
    cannot = {
        f"input_range {list(c.input_range)} (it feeds [0, 1])": c.input_range != (0.0, 1.0),
        f"norm_groups {c.norm_groups} (it has 32)": c.norm_groups != 32,
        f"grid {rows} x {columns} (it decodes square ones)": rows != columns,
        "attention on levels of one block (it leaves that out)": (
            c.num_res_blocks == 1 and bool(set(c.attn_resolutions) & set(sides))
        ),
    }
    for what, applies in cannot.items():
        if applies:
            raise TokenizerError(f"the reference's code cannot compute {what}; save without for_reference")
    config = {key: value for key, value in dataclasses.asdict(c).items() if key not in OURS_ALONE}
    for other in WEIGHT_FILES[: WEIGHT_FILES.index("pytorch_model.bin")]:
        if (Path(path) / other).exists():
            raise TokenizerError(f"{path} holds {other}, which would be read first; save into another folder")
    _write_folder(Path(path), config, vq, dtype, "pytorch_model.bin", torch.save)


def _write_folder(
    folder: Path, config: dict[str, Any], vq: VQGAN, dtype: torch.dtype, file: str, write: Callable[..., object]
) -> None:
    """Each file is complete or absent; the weights come last."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"_class_name": "VQGANModel", "_version": "0.0.1"} | config
    tensors = {name: t.detach().to("cpu", dtype).contiguous() for name, t in vq.state_dict().items()}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as aside:
        (Path(aside) / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        write(tensors, Path(aside) / file)
        for name in ("config.json", file):
            (Path(aside) / name).chmod(0o644)  # safetensors writes 0600
            os.replace(Path(aside) / name, folder / name)


def read_config(file: Path) -> VQGANConfig:
    try:
        values = json.loads(file.read_text())
    except FileNotFoundError:
        raise TokenizerError(f"{file} is missing; a tokenizer's folder holds config.json and its weights") from None
    except OSError as error:
        raise TokenizerError(f"{file} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise TokenizerError(f"{file} is not JSON ({error}); write it again") from None
    if not isinstance(values, dict):
        raise TokenizerError(f"{file} holds {type(values).__name__}; it must be a mapping")
    known = {field.name for field in dataclasses.fields(VQGANConfig)}
    for key in values:
        if key not in known and not key.startswith("_"):
            raise TokenizerError(f"{file}: unknown key {key!r}; known are {', '.join(sorted(known))}")
    return _config({key: value for key, value in values.items() if key in known}, file)


def read_taming_config(checkpoint: Path) -> VQGANConfig:
    """From the YAML that taming writes: `model.yaml` beside `last.ckpt` or in `../configs/*-project.yaml`."""
    if checkpoint.suffix not in (".ckpt", ".pt", ".pth"):
        raise TokenizerError(f"{checkpoint} is no tokenizer's folder and no .ckpt file")
    beside = [checkpoint.with_suffix(".yaml"), *(checkpoint.parent / n for n in ("model.yaml", "config.yaml"))]
    beside += sorted((checkpoint.parent.parent / "configs").glob("*project.yaml"))
    file = next((candidate for candidate in beside if candidate.is_file()), None)
    if file is None:
        raise TokenizerError(f"{checkpoint} has no YAML beside it; put its configuration at {beside[0]}")
    import yaml

    try:
        parameters = yaml.safe_load(file.read_text())["model"]["params"]
        net = parameters["ddconfig"]
        values = {
            "hidden_channels": net["ch"],
            "channel_mult": net["ch_mult"],
            "num_res_blocks": net["num_res_blocks"],
            "attn_resolutions": net["attn_resolutions"],
            "no_attn_mid_block": False,
            "z_channels": net["z_channels"],
            "quantized_embed_dim": parameters["embed_dim"],
            "num_embeddings": parameters["n_embed"],
            "resolution": net["resolution"],
            "num_channels": net["in_channels"],
            "dropout": net.get("dropout", 0.0),
            "input_range": (-1.0, 1.0),
        }
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        reason = f"{type(error).__name__} {' '.join(str(error).split())}"
        raise TokenizerError(f"{file} is not a taming configuration: {reason}; put the net's own there") from None
    if net.get("double_z") or net.get("out_ch", net["in_channels"]) != net["in_channels"]:
        raise TokenizerError(f"{file}: double_z or out_ch != in_channels: not a VQGAN but another autoencoder")
    return _config(values, file)


def _config(values: dict[str, Any], file: Path) -> VQGANConfig:
    for field in dataclasses.fields(VQGANConfig):
        if field.name in values:
            values[field.name] = _as_type_of(field.default, values[field.name], f"{file}: {field.name}")
    try:
        return VQGANConfig(**values)
    except TokenizerError as error:
        raise TokenizerError(f"{file}: {error}") from None


def _as_type_of(default: Any, value: Any, where: str) -> Any:
    """JSON has no tuples and writes 0.0 as 0; any other difference is an error. Only `grid` may be None."""
    if default is None and value is None:
        return None
    like = (6, 6) if default is None else default
    if isinstance(like, tuple):
        like = list(like) or [16]
        kind = type(like[0])
        if isinstance(value, (list, tuple)) and all(_is_number(item, kind) for item in value):
            return tuple(kind(item) for item in value)
    elif _is_number(value, type(like)):
        return type(like)(value)
    raise TokenizerError(f"{where} is {value!r}; it must be like {like!r}")


def _is_number(value: Any, kind: type) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool) != (kind is bool):
        return False
    return abs(value) <= 2**53 and bool(kind(value) == value)  # the first is also false for NaN


# Lightning's checkpoints of taming's time name this class (as the key of its state), so they would be refused; an
# empty class read in its place runs nothing of theirs.
NAMED_IN_CHECKPOINTS = ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",)


class Ignored:
    """Stands for a class in a checkpoint that has nothing to do with weights."""


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The state dict in a file, without what only training used (`loss.*`)."""
    try:
        if file.suffix == ".safetensors":
            tensors: Any = load_file(file)
        else:
            with torch.serialization.safe_globals([(Ignored, name) for name in NAMED_IN_CHECKPOINTS]):
                tensors = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line or "global" in line), str(error))
        raise TokenizerError(f"{file} holds more than tensors and was not opened: {reason.strip()[:200]}") from None
    except Exception as error:  # bytes that are no pickle make its reader fail in any way
        reason = next(iter(str(error).splitlines()), "")[:200]
        raise TokenizerError(f"{file} cannot be read as weights ({type(error).__name__} {reason})") from None
    if isinstance(tensors, Mapping) and isinstance(tensors.get("state_dict"), Mapping):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise TokenizerError(f"{file} is not a state dict of tensors")
    return {str(name): tensor for name, tensor in tensors.items() if not str(name).startswith("loss.")}


def with_weights(config: VQGANConfig, tensors: dict[str, Tensor], file: Path) -> VQGAN:
    """The net with exactly these tensors, float32, in eval mode."""
    with torch.device("meta"):
        vq = VQGAN(config)
    expected = {name: tuple(tensor.shape) for name, tensor in vq.state_dict().items()}
    for name, shape in expected.items():
        if name not in tensors:
            raise TokenizerError(f"{file}: {name} {list(shape)} is missing; config.json describes another net")
        if tuple(tensors[name].shape) != shape:
            found = list(tensors[name].shape)
            raise TokenizerError(f"{file}: {name} has shape {found}, the configuration asks for {list(shape)}")
    for name in tensors:
        if name not in expected:
            found = list(tensors[name].shape)
            raise TokenizerError(f"{file}: {name} {found} is foreign; a net of this configuration has no such tensor")
    weights = {}
    for name in expected:
        if not tensors[name].is_floating_point():
            raise TokenizerError(f"{file}: {name} is {tensors[name].dtype}; save the weights as float32 or float16")
        weights[name] = tensors[name].float()
        if not torch.isfinite(weights[name]).all():
            raise TokenizerError(f"{file}: {name} holds NaN or infinity; the net is damaged, use a sound copy")
    vq.load_state_dict(weights, assign=True)
    return vq.eval()
