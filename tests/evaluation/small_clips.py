"""Clips whose frames say what they are: red is the clip's number, green the frame's."""

from pathlib import Path

import numpy as np
from PIL import Image
from tiny_prompter import SIZE


def frame(clip: int, number: int) -> np.ndarray:
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = 10 * clip, 5 * number
    return pixels


def write_clips(folder: Path, *lengths: int) -> Path:
    """folder/frames/a/00.png ...: a clip for each length."""
    for clip, frames in enumerate(lengths, 1):
        home = folder / "frames" / chr(ord("a") + clip - 1)
        home.mkdir(parents=True)
        for number in range(frames):
            Image.fromarray(frame(clip, number)).save(home / f"{number:02}.png")
    return folder


def seen(pictures) -> list[tuple[int, int]]:
    """(clip, frame) of each."""
    return [(int(picture[0, 0, 0]) // 10, int(picture[0, 0, 1]) // 5) for picture in pictures]
