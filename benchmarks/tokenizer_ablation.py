"""Quantizers or losses of a tokenizer, trained for equal time:
python -m benchmarks.tokenizer_ablation what=quantizers|losses [minutes=10 json=FILE key=value ...]

Each contestant trains the net of configs/tokenizer/world_48.yaml from the same weights on the same pictures for
`minutes` of training time (reading and judging left out, compiling from a warm cache); learning rate and revival follow
the clock. Each is judged by its final averaged weights on the same held-out pictures: PSNR, SSIM, codes in use, the
distance of the perceptual filters, and sharpness, the mean absolute difference of neighbours as a share of the
pictures' own. `pictures` as in tokenizer.train, `only` is a list of names with ; between them, and `config.KEY=VALUE`
changes the training's configuration, e.g. config.batch_size=16. Run it on a machine with nothing else to do.
"""

import dataclasses
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from einops import rearrange

from lvm.runtime import UserError, build, exit_with_one_line, write_json
from lvm.runtime.machine import compile_problem, git_commit, machine_description
from tokenizer import VQGAN, BulkEncoder
from tokenizer.evaluate import evaluate_tokenizer
from tokenizer.losses import LossWeights, gradient_errors
from tokenizer.perceptual import FilterBank
from tokenizer.pictures import TrainingPictures, read_pictures
from tokenizer.quantizer import QuantizerConfig
from tokenizer.settings import TrainConfig
from tokenizer.train import read_config, train

if TYPE_CHECKING:
    from jaxtyping import UInt8

# On the sphere scores lie in [-1, 1]: a temperature of 1 would be next to uniform over 1,024 codes.
QUANTIZERS = {
    "plain": QuantizerConfig(normalize=False),
    "plain, beta on the codebook": QuantizerConfig(normalize=False, beta_on="codebook"),
    "plain, unit length": QuantizerConfig(),
    "ema": QuantizerConfig(kind="ema", normalize=False),
    "ema, unit length": QuantizerConfig(kind="ema"),
    "ibq": QuantizerConfig(kind="ibq", normalize=False, beta_on="codebook"),
    "ibq, unit length": QuantizerConfig(kind="ibq", beta_on="codebook", temperature=0.1),
    "ibq, unit length, entropy": QuantizerConfig(
        kind="ibq", beta_on="codebook", temperature=0.1, entropy_weight=0.05, entropy_temperature=0.1
    ),
}
_L1 = LossWeights(l1=3.0, l2=0.0, gradient_l1=0.0, gradient_l2=0.0, half_l1=0.0, quarter_l1=0.0)
LOSSES = {
    "plain l1": _L1,
    "plain l1 + filters": dataclasses.replace(_L1, perceptual=0.2),
    "shipped": LossWeights(),
    "shipped + filters": LossWeights(perceptual=0.2),
}
CONTESTANTS: dict[str, dict[str, Any]] = {"quantizers": QUANTIZERS, "losses": LOSSES}
FIELDS = {"quantizers": "quantizer", "losses": "loss"}  # of TrainConfig
ENDLESS = 10**9  # steps; the minutes end a run


@dataclass(frozen=True)
class Options:
    what: Literal["quantizers", "losses"] = "quantizers"
    minutes: float = 10.0  # of training, each
    experiment: str = "world_48"  # of configs/tokenizer
    pictures: str | None = None  # null: those of the experiment
    only: tuple[str, ...] = ()  # which, by name; empty: all
    json: Path | None = None


def train_one(config: TrainConfig, minutes: float, pictures: TrainingPictures, folder: Path) -> tuple[VQGAN, int]:
    """The tokenizer after `minutes`, and its steps."""
    endless = dataclasses.replace(config, steps=ENDLESS, minutes=minutes, usage_floor=0.0, save_every_minutes=1e9)
    if config.compile is not False and compile_problem() is None:  # what is compiled stays in the cache on disk
        train(dataclasses.replace(endless, steps=2, minutes=None), folder / "compile", pictures, lambda line: None)
    trained = train(endless, folder / "run", pictures, lambda line: None)
    if trained.tokenizer is None:
        raise UserError("stopped by a signal; what was finished is in the table")
    return trained.tokenizer, trained.step


def judge(vq: VQGAN, pictures: "UInt8[np.ndarray, 'n y x c']") -> dict[str, float]:
    scores = evaluate_tokenizer(vq, pictures)
    bulk, filters = BulkEncoder(vq, precision="exact", batch_size=64), FilterBank()
    distances, sharp, true_sharp = [], 0.0, 0.0
    for start in range(0, len(pictures), 64):
        batch = pictures[start : start + 64]
        pair = np.stack([bulk.decode(bulk.encode(batch)), batch])
        decoded, original = rearrange(torch.from_numpy(pair), "two n y x c -> two n c y x").float() / 255
        distances.append(filters(decoded, original))
        sharp += float(gradient_errors(decoded)[0]) * len(batch)
        true_sharp += float(gradient_errors(original)[0]) * len(batch)
    return scores | {"filters": float(torch.cat(distances).mean()), "sharpness": sharp / true_sharp}


def run(options: Options, changes: list[str]) -> list[dict[str, Any]]:
    contestants = CONTESTANTS[options.what]
    for name in options.only:
        if name not in contestants:
            raise UserError(f"only names {name!r}; known are {', '.join(map(repr, contestants))}")
    given = [f"experiment={options.experiment}", "out=.", *changes]
    config, _ = read_config([*given, f"pictures={options.pictures}"] if options.pictures else given)
    if not config.pictures:
        raise UserError("pictures= is missing; give FILE.npy, a folder, or a file of configs/data/source/")
    pictures = read_pictures(
        config.pictures, config.model.resolution, config.max_pictures, config.frames_per_clip, config.held_out_per_mille
    )
    rows: list[dict[str, Any]] = []
    for name in options.only or contestants:
        with tempfile.TemporaryDirectory() as folder:
            changed = dataclasses.replace(config, **{FIELDS[options.what]: contestants[name]})
            vq, steps = train_one(changed, options.minutes, pictures, Path(folder))
        row = {"name": name, **dataclasses.asdict(contestants[name]), "steps": steps, **judge(vq, pictures.held_out)}
        rows.append(row)
        print(
            f"{name:28s} PSNR {row['psnr']:6.2f} dB   SSIM {row['ssim']:.3f}   filters {row['filters']:.4f}   "
            f"sharpness {row['sharpness']:5.1%}   usage {row['code_usage']:6.1%}   "
            f"perplexity {row['code_perplexity']:7.1f}   {steps} steps",
            flush=True,
        )
        if options.json is not None:
            report = {"minutes": options.minutes, "config": dataclasses.asdict(config), options.what: rows}
            write_json(options.json, report | {"machine": machine_description(), "commit": git_commit()})
    return rows


def main() -> None:
    changes = [argument.removeprefix("config.") for argument in sys.argv[1:] if argument.startswith("config.")]
    others = [argument for argument in sys.argv[1:] if not argument.startswith("config.")]
    wrong = next((argument for argument in others if "=" not in argument), None)
    if wrong is not None:
        raise UserError(f"{wrong!r} is not key=value; e.g. minutes=10 what=losses")
    values: dict[str, Any] = dict(argument.split("=", 1) for argument in others)
    if "minutes" in values:
        values["minutes"] = float(values["minutes"])
    if "only" in values:
        values["only"] = [name.strip() for name in values["only"].split(";")]
    run(build(Options, values), changes)


if __name__ == "__main__":
    exit_with_one_line(main)
