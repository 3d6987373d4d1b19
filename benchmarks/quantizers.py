"""Quantizers trained for equal time: python -m benchmarks.quantizers [minutes=10 json=FILE key=value ...]

Each trains the net of configs/tokenizer/world_48.yaml from the same weights on the same pictures for `minutes` of
training time (reading and judging left out, compiling from a warm cache); learning rate and revival follow the clock.
Each is judged by its final averaged weights on the same held-out pictures. `pictures` as in tokenizer.train, `only` is
a list of names with ; between them, and `config.KEY=VALUE` changes the training's configuration, e.g.
config.batch_size=16. Run it on a machine with nothing else to do.
"""

import dataclasses
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvm.runtime import UserError, build, exit_with_one_line, write_json
from lvm.runtime.machine import compile_problem, git_commit, machine_description
from tokenizer.evaluate import evaluate_tokenizer
from tokenizer.pictures import TrainingPictures, read_pictures
from tokenizer.quantizer import QuantizerConfig
from tokenizer.settings import TrainConfig
from tokenizer.train import read_config, train

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
ENDLESS = 10**9  # steps; the minutes end a run


@dataclass(frozen=True)
class Options:
    minutes: float = 10.0  # of training, each
    experiment: str = "world_48"  # of configs/tokenizer
    pictures: str | None = None  # null: those of the experiment
    only: tuple[str, ...] = tuple(QUANTIZERS)  # which, by name
    json: Path | None = None


def train_one(
    name: str, config: TrainConfig, minutes: float, pictures: TrainingPictures, folder: Path
) -> dict[str, Any]:
    """A row of the table."""
    endless = dataclasses.replace(
        config, quantizer=QUANTIZERS[name], steps=ENDLESS, minutes=minutes, usage_floor=0.0, save_every_minutes=1e9
    )
    if config.compile is not False and compile_problem() is None:  # what is compiled stays in the cache on disk
        train(dataclasses.replace(endless, steps=2, minutes=None), folder / "compile", pictures, lambda line: None)
    trained = train(endless, folder / "run", pictures, lambda line: None)
    if trained.tokenizer is None:
        raise UserError("stopped by a signal; nothing was written")
    scores = evaluate_tokenizer(trained.tokenizer, pictures.held_out)
    return {"name": name, **dataclasses.asdict(QUANTIZERS[name]), "steps": trained.step, **scores}


def run(options: Options, changes: list[str]) -> list[dict[str, Any]]:
    for name in options.only:
        if name not in QUANTIZERS:
            raise UserError(f"only names {name!r}; known are {', '.join(map(repr, QUANTIZERS))}")
    given = [f"experiment={options.experiment}", "out=.", *changes]
    config, _ = read_config([*given, f"pictures={options.pictures}"] if options.pictures else given)
    if not config.pictures:
        raise UserError("pictures= is missing; give FILE.npy, a folder, or a file of configs/data/source/")
    pictures = read_pictures(
        config.pictures, config.model.resolution, config.max_pictures, config.frames_per_clip, config.held_out_per_mille
    )
    rows = []
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            row = train_one(name, config, options.minutes, pictures, Path(folder))
        rows.append(row)
        print(
            f"{name:28s} PSNR {row['psnr']:6.2f} dB   usage {row['code_usage']:6.1%}   "
            f"perplexity {row['code_perplexity']:7.1f}   {row['steps']} steps",
            flush=True,
        )
        if options.json is not None:
            report = {"minutes": options.minutes, "config": dataclasses.asdict(config), "quantizers": rows}
            write_json(options.json, report | {"machine": machine_description(), "commit": git_commit()})
    return rows


def main() -> None:
    changes = [argument.removeprefix("config.") for argument in sys.argv[1:] if argument.startswith("config.")]
    others = [argument for argument in sys.argv[1:] if not argument.startswith("config.")]
    wrong = next((argument for argument in others if "=" not in argument), None)
    if wrong is not None:
        raise UserError(f"{wrong!r} is not key=value; e.g. minutes=10 json=quantizers.json")
    values: dict[str, Any] = dict(argument.split("=", 1) for argument in others)
    if "minutes" in values:
        values["minutes"] = float(values["minutes"])
    if "only" in values:
        values["only"] = [name.strip() for name in values["only"].split(";")]
    run(build(Options, values), changes)


if __name__ == "__main__":
    exit_with_one_line(main)
