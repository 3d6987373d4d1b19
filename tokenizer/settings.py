"""What is asked of a tokenizer's training, and its schedules: functions of that and of how far a run is."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from tokenizer.adversarial import ramp
from tokenizer.losses import LossWeights
from tokenizer.model import TokenizerError, VQGANConfig
from tokenizer.quantizer import QuantizerConfig


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Of a patch discriminator; it exists where loss.adversarial is above 0."""

    start_step: int = 0  # from this step on it is trained
    ramp_steps: int = 1000  # over which its weight grows linearly up to loss.adversarial
    max_weight: float = 1e4  # of the adaptive weight; taming's bound
    width: int = 64  # channels of its first layer
    num_layers: int = 3  # of stride 2; the patch it judges grows with them
    learning_rate: float = 1e-4  # at its height; follows the net's schedule


@dataclass(frozen=True)
class TrainConfig:
    model: VQGANConfig = field(default_factory=VQGANConfig)  # beside init_from: that tokenizer's
    loss: LossWeights = field(default_factory=LossWeights)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    init_from: str | None = None  # a tokenizer (folder, .ckpt or shipped name) whose weights the net starts from
    grow_from: str | None = None  # a tokenizer of fewer levels whose weights the inner levels start from
    pictures: str | tuple[str, ...] | None = None  # FILE.npy, a folder, or a source's configuration; or several
    picture_weights: tuple[float, ...] | None = None  # share of each in a batch; null: equal
    max_pictures: int = 100_000  # held in memory, of all sources; more are left out, whole units at a time
    frames_per_clip: int = 4  # of a clip's frames, evenly spaced: neighbours look alike
    held_out_per_mille: int = 20  # of the groups; judged by the sheet and the held-out PSNR, never trained on
    readers: int | None = None  # processes that read pictures; null: one a core
    crop: int | None = None  # side in pixels of random crops of the pictures, which have model.resolution; null: whole
    full_size_share: float = 0.1  # with crop: last share of the schedule on whole pictures, whose GroupNorms differ
    flip: bool = False  # mirror half of the pictures; the world's have a left and a right
    steps: int = 6000
    minutes: float | None = None  # end the schedule early when this much training time has passed; null: steps alone
    batch_size: int = 64  # of an optimiser step, over all ranks
    accumulate: int = 1  # micro-batches a step: less memory, the same step
    learning_rate: float = 1e-3
    final_learning_rate: float = 0.02  # as a share of learning_rate, at the end of the cosine
    warmup_steps: int = 100
    weight_decay: float = 0.01  # of convolutions alone
    clip_norm: float = 1.0
    usage_floor: float = 0.3  # a smaller share of codes in use stops the run
    usage_floor_after_steps: int = 1000
    ema_decay: float = 0.999  # of the weights that are judged and saved
    compile: bool | Literal["auto"] = "auto"  # auto: where a compiler is at hand
    threads: int | None = None  # of torch on the CPU, a rank; null: the cores shared among this machine's ranks
    seed: int = 0
    log_every_steps: int = 50
    save_every_minutes: float = 3.0  # checkpoint and sheet, at the next step that logs; 0: at each of them
    judged_pictures: int = 512  # of the held-out ones, at each save
    keep_checkpoints: int = 2  # the newest ones
    save_dtype: Literal["float16", "float32"] = "float16"
    accelerator: str = "auto"  # auto, cpu, cuda
    devices: int | Literal["auto"] = 1  # processes on this machine
    num_nodes: int = 1
    wandb: dict[str, Any] | None = None  # arguments of wandb.init, e.g. wandb.project=lvm; null: JSON lines alone

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every_steps", "keep_checkpoints", "max_pictures"):
            if getattr(self, name) < 1:
                raise TokenizerError(f"{name} is {getattr(self, name)}; use 1 or more")
        side, factor = self.model.resolution, self.model.factor
        if self.model.code_grid != self.model.square_grid:
            rows, columns = self.model.code_grid
            raise TokenizerError(
                f"model.grid is {rows} x {columns}, but pictures are read as squares of model.resolution {side}, which "
                f"fill {side // factor} x {side // factor}; use model.grid=null"
            )
        if self.crop is not None and (self.crop % factor or not 0 < self.crop <= side):
            rounded = min(side, max(factor, self.crop // factor * factor))
            raise TokenizerError(
                f"crop {self.crop} must divide by {factor}, the net's reduction, and be at most {side}; use {rounded}"
            )
        if self.init_from is not None and self.grow_from is not None:
            raise TokenizerError("init_from and grow_from exclude each other; leave one out")
        least = 3 * 2**self.discriminator.num_layers
        if self.loss.adversarial > 0 and (self.crop or side) < least:
            raise TokenizerError(
                f"discriminator.num_layers {self.discriminator.num_layers} takes pictures of {least} pixels and more, "
                f"not {self.crop or side}; use fewer layers"
            )
        if self.loss.perceptual > 0 and (self.crop or side) < 16:
            raise TokenizerError(
                f"loss.perceptual takes pictures of 16 pixels and more, not {self.crop or side}; use 0 for it"
            )
        if not 0 <= self.full_size_share <= 1:
            raise TokenizerError(f"full_size_share is {self.full_size_share:g}; it is a share of the schedule, 0 to 1")


def progress_of(config: TrainConfig, step: int, seconds: float) -> float:
    """The share of the schedule that is over: of the steps, or of the minutes where those run out first."""
    of_time = seconds / (60 * config.minutes) if config.minutes else 0.0
    return max(step / config.steps, of_time)


def schedule(config: TrainConfig, step: int, progress: float) -> float:
    """Share of the learning rate: linear warm-up, then a cosine of `progress` in [0,1] down to the final share."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    share = config.final_learning_rate + (1 - config.final_learning_rate) * cosine
    return share * min(1.0, (step + 1) / max(1, config.warmup_steps))


def adversarial_weight(config: TrainConfig, step: int) -> float | None:
    """None before the discriminator starts; then a linear ramp from 0 up to loss.adversarial."""
    settings = config.discriminator
    if config.loss.adversarial <= 0 or step < settings.start_step:
        return None
    return config.loss.adversarial * ramp(step, settings.start_step, settings.ramp_steps)


def crop_of(config: TrainConfig, progress: float) -> int | None:
    """Side of the crops, or None where whole pictures are trained on."""
    return config.crop if progress < 1 - config.full_size_share else None


def micro_batches(config: TrainConfig, ranks: int, crop: int | None) -> int:
    """Micro-batches a step and rank; whole pictures after crops get more, so that they fit where the crops did.

    Raises TokenizerError where batch_size does not divide.
    """
    if config.batch_size % (ranks * config.accumulate):
        least = ranks * config.accumulate
        raise TokenizerError(
            f"batch_size {config.batch_size} is no multiple of {ranks} ranks x {config.accumulate} micro-batches; "
            f"use {least * max(1, round(config.batch_size / least))}"
        )
    each = config.batch_size // ranks
    larger = math.ceil((config.model.resolution / config.crop) ** 2) if config.crop and crop is None else 1
    wanted = min(each, config.accumulate * larger)
    return next(number for number in range(wanted, each + 1) if each % number == 0)
