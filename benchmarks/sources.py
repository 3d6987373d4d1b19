"""Files to pictures on one core: python -m benchmarks.sources [count=200 frames=400 size=256 rounds=5 json=FILE]

Ours: `read` of a folder of JPEGs, of the same in a tar, and of a video. The alternatives: a bare PIL loop (open, to
RGB, bicubic) and a bare PyAV loop (decode every frame, scale the kept ones, stack 64), both of one thread. Pictures
are blurred noise, 500 x 375, quality 90; the video pans over such noise, 640 x 360, H.264. Seconds are the process's,
not the wall clock's, and of the fastest round: what else runs on the machine only makes a process slower.
"""

import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image, ImageFilter

from lvm.commands._options import options_from
from lvm.commands.bench import take_turns
from lvm.runtime import UserError, exit_with_one_line, write_json
from lvm.runtime.machine import git_commit, machine_description
from lvm.sources import Source
from lvm.sources.pictures import PicturesConfig, PicturesSource
from lvm.sources.tars import TarsConfig, TarsSource
from lvm.sources.videos import VideosConfig, VideosSource, import_av


@dataclass(frozen=True)
class Options:
    count: int = 200  # pictures
    frames: int = 400  # of the video
    size: int = 256  # side of what is drawn, in pixels
    rounds: int = 5
    json: str = ""  # file for the result

    def __post_init__(self) -> None:
        if min(self.count, self.frames, self.size, self.rounds) < 1:
            raise UserError("count, frames, size and rounds must be 1 or more")


def noise(width: int, height: int, seed: int) -> Image.Image:
    """Something with the detail of a photo."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))


def write_pictures(folder: Path, count: int) -> None:
    (folder / "pictures").mkdir()
    for n in range(count):
        noise(500, 375, n).save(folder / "pictures" / f"{n:05d}.jpg", quality=90)
    with tarfile.open(folder / "pictures.tar", "w") as tar:
        for file in sorted((folder / "pictures").iterdir()):
            tar.add(file, file.name)


def write_video(file: Path, frames: int) -> None:
    av, world = import_av(), np.asarray(noise(1280, 720, 0))
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for n in range(frames):
            x, y = n * 3 % 640, n * 2 % 360
            pixels = np.ascontiguousarray(world[y : y + 360, x : x + 640])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())


# The contestants.


def bare_pictures(files: list[Path], size: int) -> None:
    for file in files:
        with Image.open(file) as image:
            np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def bare_video(file: Path, size: int, every: int) -> None:
    with import_av().open(str(file)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        kept = []
        for number, frame in enumerate(container.decode(stream)):
            if number % every == 0:
                kept.append(frame.reformat(size, size, "rgb24").to_ndarray())
            if len(kept) == 64:
                np.stack(kept)
                kept = []
        if kept:
            np.stack(kept)


def read_all(source: Source, size: int) -> None:
    for unit in range(len(source)):
        source.read(unit, size)


def seconds_of(function: Callable[[], None]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def run(options: Options) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder, size = Path(temporary), options.size
        write_pictures(folder, options.count)
        write_video(folder / "video.mp4", options.frames)
        pictures, video = str(folder / "pictures"), str(folder / "video.mp4")
        files = sorted((folder / "pictures").iterdir())
        with patch.dict(os.environ, LVM_CACHE=str(folder / "cache")):  # what is remembered of these files goes too
            sources: dict[str, Source] = {
                "pictures": PicturesSource(PicturesConfig(path=pictures, derived=())),
                "pictures with drawn channels": PicturesSource(PicturesConfig(path=pictures)),
                "tar": TarsSource(TarsConfig(path=f"{pictures}.tar", derived=())),
                "video, every 8th frame": VideosSource(VideosConfig(path=video)),
                "video, every frame": VideosSource(VideosConfig(path=video, every=1)),
            }
        bare: dict[str, Callable[[], None]] = {
            "bare PIL": lambda: bare_pictures(files, size),
            "bare PyAV, every 8th frame": lambda: bare_video(folder / "video.mp4", size, 8),
            "bare PyAV, every frame": lambda: bare_video(folder / "video.mp4", size, 1),
        }
        ours = {name: lambda source=source: read_all(source, size) for name, source in sources.items()}
        contestants = {name: lambda work=work: seconds_of(work) for name, work in {**bare, **ours}.items()}
        seconds = take_turns(contestants, options.rounds)
        items = sources["pictures with drawn channels"].read(0, size)
    rows = {}
    for name in contestants:
        of_video = "frame" in name
        amount, unit = (options.frames, "frames/s") if of_video else (options.count, "pictures/s")
        alternative = f"bare PyAV, {name.split(', ')[1]}" if of_video else "bare PIL"
        best, ratio = min(seconds[name]), min(seconds[alternative]) / min(seconds[name])
        rows[name] = {"rate": amount / best, "unit": unit, "ratio": ratio, "seconds": best, "rounds": seconds[name]}
    rows["pictures with drawn channels"]["pictures_each"] = sum(len(item.channels) for item in items)
    return {
        "benchmark": "sources",
        "results": rows,
        "options": asdict(options),
        "machine": machine_description(),
        "commit": git_commit(),
    }


def main() -> None:
    options = options_from(Options, sys.argv[1:])
    found = run(options)
    print(f"sources: on one core, pictures of {options.size} px")
    for name, row in found["results"].items():
        each = f" ({row['pictures_each']} of each)" if "pictures_each" in row else ""
        print(f"  {row['rate']:>10,.1f} {row['unit']:<11} {row['ratio']:.2f}x  {name}{each}")
    if options.json:
        write_json(options.json, found)


if __name__ == "__main__":
    exit_with_one_line(main)
