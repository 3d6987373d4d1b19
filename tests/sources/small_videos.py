"""Tiny videos whose frames say their number: the red of frame i is 2 i, the top left quarter is green."""

import numpy as np
import pytest

av = pytest.importorskip("av")


def frame_pixels(i, height=48, width=64):
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = (2 * i) % 256
    pixels[: height // 2, : width // 2, 1] = 255
    return pixels


def write_video(path, frames=40, size=(64, 48), codec=None, rate=30, rotation=0, **options):
    """`options` are the encoder's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = codec or {".webm": "libvpx-vp9", ".gif": "gif", ".avi": "mpeg4"}.get(path.suffix, "libx264")
    fast = {
        "mpeg4": {"b": "4000000"},
        "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
        "libx264": {"preset": "ultrafast"},
    }
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        stream.options = {**fast.get(codec, {}), **{name: str(value) for name, value in options.items()}}
        if rotation:
            stream.set_display_rotation(rotation)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(frame_pixels(i, size[1], size[0]), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers_seen(pictures):
    """Which frames these are, by their red."""
    return [round(float(np.median(picture[-2:, -2:, 0])) / 2) for picture in pictures]
