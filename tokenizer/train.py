"""Train a tokenizer: python -m tokenizer.train experiment=world_48 out=runs/tokenizer [key=value ...]

`experiment` is a file of configs/tokenizer/ (or a path), `pictures` a .npy of uint8 [n,y,x,3], a folder of pictures or
a file of configs/data/source/. The same command again continues a stopped run. In `out`: config.json, metrics.jsonl,
sheet.png (held-out pictures over their reconstructions), checkpoint.safetensors and, when finished, tokenizer/ for
`from_pretrained`.

The net first trains some steps without a codebook; k-means of its latents then starts the codes; codes that no latent
chose for a while move onto latents of the last batch.
"""

import copy
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lvm.runtime import UserError, atomic_path, build, config_folder, exit_with_one_line, read_json, write_json
from lvm.runtime.hashing import seed_from
from tokenizer.bulk import BulkEncoder, bf16_pays
from tokenizer.evaluate import TrainingPictures, decibels, read_pictures, save_sheet, squared_errors, usage_of
from tokenizer.losses import LossWeights, psnr, reconstruction_loss
from tokenizer.model import VQGAN, VQGANConfig
from tokenizer.quantizer import kmeans, quantize_for_training, restart_dead_codes

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8


@dataclass(frozen=True)
class TrainConfig:
    model: VQGANConfig = field(default_factory=VQGANConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    pictures: str | None = None  # FILE.npy, a folder, or a source's configuration
    max_pictures: int = 100_000  # held in memory; more are left out, whole units at a time
    frames_per_clip: int = 4  # of a clip's frames, evenly spaced: neighbours look alike
    held_out_per_mille: int = 20  # of the groups; judged by the sheet and the held-out PSNR, never trained on
    steps: int = 6000
    minutes: float | None = None  # end the schedule early when this much training time has passed; null: steps alone
    batch_size: int = 64
    learning_rate: float = 1e-3
    final_learning_rate: float = 0.02  # as a share of learning_rate, at the end of the cosine
    warmup_steps: int = 100
    weight_decay: float = 0.01  # of convolutions alone
    clip_norm: float = 1.0
    normalize_codes: bool = True  # latents and codes on the unit sphere while training; the files stay as published
    continuous_steps: int = 150  # before there is a codebook
    restart_every_steps: int = 50  # dead codes are those that none of the latents of these steps chose
    restart_until: float = 0.8  # share of the schedule after which codes are left alone
    usage_floor: float = 0.3  # a smaller share of codes in use stops the run
    usage_floor_after_steps: int = 1000
    ema_decay: float = 0.999  # of the weights that are judged and saved
    compile: bool | Literal["auto"] = "auto"  # auto: where a compiler is at hand
    threads: int | None = None  # of torch on the CPU; null: as torch decides
    seed: int = 0
    log_every_steps: int = 50
    save_every_minutes: float = 3.0  # checkpoint and sheet
    save_dtype: Literal["float16", "float32"] = "float16"


@dataclass
class TrainState:
    """All that survives a restart."""

    model: VQGAN
    average: VQGAN
    optimizer: torch.optim.AdamW
    counts: Tensor  # int64 [k]: how often each code was chosen since the last restart of dead codes
    step: int = 0
    seconds: float = 0.0


def learning_rate(config: TrainConfig, step: int, progress: float) -> float:
    """Linear warm-up, then a cosine of `progress` in [0,1] down to the final share."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    share = config.final_learning_rate + (1 - config.final_learning_rate) * cosine
    return config.learning_rate * share * min(1.0, (step + 1) / max(1, config.warmup_steps))


def progress_of(config: TrainConfig, state: TrainState) -> float:
    """The share of the schedule that is over: of the steps, or of the minutes where those run out first."""
    of_time = state.seconds / (60 * config.minutes) if config.minutes else 0.0
    return max(state.step / config.steps, of_time)


def forward_loss(
    vq: VQGAN, pictures: "UInt8[Tensor, 'n y x c']", quantized: "Float[Tensor, '']", config: TrainConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, mean squared error, codes [n*t], latents [n*t, d]). `quantized` is 0 while there is no codebook, then 1:
    a tensor, so that both phases are one compiled graph."""
    pixels = rearrange(pictures, "n y x c -> n c y x").float() / 255
    latents = vq.latents(pixels)
    grid = latents.shape[2:]
    flat = rearrange(latents, "n d h w -> (n h w) d").float()
    if config.normalize_codes:
        flat = F.normalize(flat, dim=1)
    chosen, codes, codebook_loss = quantize_for_training(
        flat, vq.quantize.embedding.weight, config.model.commitment_cost, config.normalize_codes
    )
    fed = flat + quantized * (chosen - flat)
    reconstruction = vq.pixels(rearrange(fed, "(n h w) d -> n d h w", h=grid[0], w=grid[1]))
    with torch.autocast(pixels.device.type, enabled=False):
        loss, squared = reconstruction_loss(reconstruction, pixels, config.loss)
        return loss + config.loss.codebook * quantized * codebook_loss, squared, codes, flat.detach()


def new_state(config: TrainConfig, device: torch.device) -> TrainState:
    torch.manual_seed(seed_from("tokenizer", config.seed))
    model = VQGAN(config.model).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model).eval().requires_grad_(False)
    decayed = [p for name, p in model.named_parameters() if p.ndim > 1 and not name.startswith("quantize.")]
    others = [p for name, p in model.named_parameters() if p.ndim <= 1 or name.startswith("quantize.")]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)
    counts = torch.zeros(config.model.num_embeddings, dtype=torch.int64, device=device)
    return TrainState(model, average, optimizer, counts)


@torch.no_grad()
def start_codebook(state: TrainState, config: TrainConfig, pictures: TrainingPictures, device: torch.device) -> None:
    """K-means of the latents of enough pictures for 64 latents a code (at most 4,096 pictures)."""
    tokens = state.model.tokens_per_picture
    wanted = min(4096, max(config.batch_size, 64 * config.model.num_embeddings // tokens))
    latents = []
    for start in range(0, wanted, config.batch_size):
        batch = torch.from_numpy(pictures.batch(config.seed, -1 - start, config.batch_size)).to(device)
        pixels = rearrange(batch, "n y x c -> n c y x").float() / 255
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16_pays(device)):
            latents.append(rearrange(state.model.latents(pixels), "n d h w -> (n h w) d").float())
    generator = torch.Generator().manual_seed(seed_from("kmeans", config.seed))
    centres = kmeans(torch.cat(latents), config.model.num_embeddings, config.normalize_codes, generator)
    for vq in (state.model, state.average):
        vq.quantize.embedding.weight.copy_(centres)


@torch.no_grad()
def tend_codebook(state: TrainState, config: TrainConfig, latents: Tensor) -> int:
    """Restart dead codes, in the average and the optimiser too; returns how many."""
    weight = state.model.quantize.embedding.weight
    generator = torch.Generator().manual_seed(seed_from("restart", config.seed, state.step))
    dead = restart_dead_codes(weight, state.counts, latents, config.normalize_codes, generator)
    state.average.quantize.embedding.weight[dead] = weight[dead]
    for name in ("exp_avg", "exp_avg_sq"):
        state.optimizer.state[weight][name][dead] = 0
    state.counts.zero_()
    return len(dead)


@torch.no_grad()
def update_average(state: TrainState, config: TrainConfig) -> None:
    averages: list[Tensor] = list(state.average.parameters())
    parameters: list[Tensor] = list(state.model.parameters())
    decay = min(config.ema_decay, (1 + state.step) / (10 + state.step))
    torch._foreach_lerp_(averages, parameters, 1 - decay)


def finished_tokenizer(state: TrainState, config: TrainConfig) -> VQGAN:
    """The averaged weights as they are saved: codes of length one if training had them so."""
    vq = copy.deepcopy(state.average).eval()
    if config.normalize_codes:
        with torch.no_grad():
            vq.quantize.embedding.weight.copy_(F.normalize(vq.quantize.embedding.weight, dim=1))
    return vq


def train(config: TrainConfig, out: Path, pictures: TrainingPictures, say: Callable[[str], None] = print) -> VQGAN:
    """Train until the schedule ends, or go on where `out` stopped. Raises UserError when the codebook collapses."""
    if config.threads:
        torch.set_num_threads(config.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, config)
    state = new_state(config, device)
    load_checkpoint(state, out / "checkpoint.safetensors")
    step_function = _compiled(config, say)
    started = state.step > config.continuous_steps
    saved_at = logged_at = time.monotonic()
    logged_step, restarted = state.step, 0
    log_counts = torch.zeros_like(state.counts)
    while progress_of(config, state) < 1:
        began = time.monotonic()
        if state.step >= config.continuous_steps and not started:
            start_codebook(state, config, pictures, device)
            started = True
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(config, state.step, progress_of(config, state))
        batch = torch.from_numpy(pictures.batch(config.seed, state.step, config.batch_size)).to(device)
        quantized = torch.tensor(float(started), device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16_pays(device)):
            loss, squared, codes, latents = step_function(state.model, batch, quantized, config)
        loss.backward()
        nn.utils.clip_grad_norm_(state.model.parameters(), config.clip_norm)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        if config.normalize_codes:
            with torch.no_grad():
                weight = state.model.quantize.embedding.weight
                weight.copy_(F.normalize(weight, dim=1))
        update_average(state, config)
        state.step += 1
        if started:
            used = torch.bincount(codes, minlength=len(state.counts))
            state.counts += used
            log_counts += used
            if state.step % config.restart_every_steps == 0:
                restarting = progress_of(config, state) < config.restart_until
                restarted += tend_codebook(state, config, latents) if restarting else 0
        state.seconds += time.monotonic() - began

        if state.step % config.log_every_steps == 0:
            now = time.monotonic()
            usage, perplexity = usage_of(log_counts.cpu().numpy())
            metrics = {
                "step": state.step,
                "minutes": round(state.seconds / 60, 2),
                "loss": round(float(loss.detach()), 5),
                "psnr": round(float(psnr(squared)), 2),
                "code_usage": round(usage, 4),
                "code_perplexity": round(perplexity, 1),
                "restarted": restarted,
                "pictures_per_second": round((state.step - logged_step) * config.batch_size / (now - logged_at), 1),
            }
            logged_at, logged_step, restarted = now, state.step, 0
            log_counts.zero_()
            _log(out, metrics, say)
            _check_health(config, metrics)
        if time.monotonic() - saved_at > 60 * config.save_every_minutes:
            save_checkpoint(state, out / "checkpoint.safetensors")
            _judge(state, config, out, pictures, say)
            saved_at = time.monotonic()
    save_checkpoint(state, out / "checkpoint.safetensors")
    _judge(state, config, out, pictures, say)
    vq = finished_tokenizer(state, config)
    vq.save_pretrained(out / "tokenizer", getattr(torch, config.save_dtype))
    say(f"finished: {out / 'tokenizer'} after {state.step} steps, {state.seconds / 60:.1f} minutes")
    return VQGAN.from_pretrained(out / "tokenizer")


def save_checkpoint(state: TrainState, file: Path) -> None:
    """One safetensors file, complete or absent; numbers travel in its header."""
    tensors = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in state.average.state_dict().items()}
    for name, parameter in state.model.named_parameters():
        for key, value in state.optimizer.state[parameter].items():
            tensors[f"optimizer.{key}.{name}"] = value
    tensors["counts"] = state.counts
    numbers = {"step": str(state.step), "seconds": repr(state.seconds)}
    with atomic_path(file) as aside:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, aside, numbers)


def load_checkpoint(state: TrainState, file: Path) -> bool:
    """Fill `state` from `file` if there is one."""
    if not file.is_file():
        return False
    with safe_open(file, "pt") as opened:
        numbers = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    for part, vq in (("model.", state.model), ("average.", state.average)):
        vq.load_state_dict({n.removeprefix(part): value for n, value in tensors.items() if n.startswith(part)})
    for name, parameter in state.model.named_parameters():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = tensors[f"optimizer.{key}.{name}"]
            value = value.to(parameter.device) if parameter.device.type != "cpu" else value
            if value.ndim == 4:
                value = value.contiguous(memory_format=torch.channels_last)
            state.optimizer.state[parameter][key] = value
    state.counts.copy_(tensors["counts"])
    state.step, state.seconds = int(numbers["step"]), float(numbers["seconds"])
    return True


def _claim(out: Path, config: TrainConfig) -> None:
    """Write the resolved configuration into the run's folder; another one there already is refused."""
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    file = out / "config.json"
    if not file.exists():
        return write_json(file, values)
    before = read_json(file)
    different = [key for key in values if values[key] != before.get(key)]
    if different:
        key = different[0]
        raise UserError(f"{out} holds a run with {key} = {before.get(key)}, not {values[key]}; use another out=")


def _compiled(config: TrainConfig, say: Callable[[str], None]) -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]:
    if config.compile is False:
        return forward_loss
    from lvm.runtime.machine import compile_problem

    problem = compile_problem()
    if problem is None:
        return torch.compile(forward_loss, dynamic=False)
    if config.compile is True:
        raise UserError(f"compile=true, but {problem}; use compile=auto")
    say(f"not compiled, about a quarter of the speed: {problem}")
    return forward_loss


def _log(out: Path, metrics: dict[str, Any], say: Callable[[str], None]) -> None:
    with open(out / "metrics.jsonl", "a") as file:
        file.write(json.dumps(metrics) + "\n")
    say("  ".join(f"{key} {value}" for key, value in metrics.items()))


def _check_health(config: TrainConfig, metrics: dict[str, Any]) -> None:
    step, usage = metrics["step"], metrics["code_usage"]
    if not math.isfinite(metrics["loss"]):
        raise UserError(f"the loss is {metrics['loss']} at step {step}; lower learning_rate {config.learning_rate}")
    if step >= config.usage_floor_after_steps + config.continuous_steps and usage < config.usage_floor:
        raise UserError(
            f"the codebook collapsed: {usage:.1%} of the codes in use at step {step}, below usage_floor "
            f"{config.usage_floor:.0%}; lower learning_rate or loss.gradient_l2"
        )


def _judge(
    state: TrainState, config: TrainConfig, out: Path, pictures: TrainingPictures, say: Callable[[str], None]
) -> None:
    """PSNR of held-out pictures through the averaged weights, and the sheet."""
    sample = pictures.held_out[:512]
    if not len(sample) or state.step <= config.continuous_steps:
        return
    bulk = BulkEncoder(finished_tokenizer(state, config))
    again = bulk.decode(bulk.encode(sample))
    each = [decibels(float(error)) for error in squared_errors(sample, again)]
    metrics = {"step": state.step, "held_out_psnr": round(float(np.mean(each)), 2)}
    _log(out, metrics, say)
    save_sheet(out / "sheet.png", sample, again)


def read_config(arguments: list[str]) -> tuple[TrainConfig, Path]:
    """From `experiment=NAME out=DIR key=value ...`; unknown keys are errors."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    wrong = next((a for a in arguments if "=" not in a), None)
    if wrong is not None:
        raise UserError(f"{wrong!r} is not key=value; e.g. experiment=world_48 out=runs/tokenizer pictures=FILE.npy")
    given = dict(argument.split("=", 1) for argument in arguments)
    experiment, out = given.pop("experiment", None), given.pop("out", None)
    if experiment is None or out is None:
        raise UserError(
            f"{'experiment' if experiment is None else 'out'}= is missing; e.g. experiment=world_48 out=DIR"
        )
    folder = config_folder() / "tokenizer"
    file = Path(experiment) if experiment.endswith(".yaml") else folder / f"{experiment}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        raise UserError(f"experiment={experiment}: {file} is missing; known are {known}")
    try:
        dotted = OmegaConf.from_dotlist([f"{key}={value}" for key, value in given.items()])
        values = OmegaConf.to_container(OmegaConf.merge(OmegaConf.load(file), dotted), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{file}: {error}") from None
    return build(TrainConfig, values), Path(out)  # type: ignore[arg-type]


def main() -> None:
    config, out = read_config(sys.argv[1:])
    if config.pictures is None:
        raise UserError("pictures= is missing; give FILE.npy, a folder, or a file of configs/data/source/")
    pictures = read_pictures(
        config.pictures, config.model.resolution, config.max_pictures, config.frames_per_clip, config.held_out_per_mille
    )
    print(f"{len(pictures.train)} pictures to train on, {len(pictures.held_out)} held out", flush=True)
    train(config, out, pictures, say=lambda line: print(line, flush=True))


if __name__ == "__main__":
    exit_with_one_line(main)
