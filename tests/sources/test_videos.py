"""Videos: every so many-th frame, however one comes to it; damage and lying headers are counted."""

import builtins
import json
import pickle
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from small_videos import av, numbers_seen, write_video

from lvm.commands.bench import benchmark
from lvm.runtime import UserError, build
from lvm.runtime.config_files import load_config
from lvm.sources import BrokenItem, open_source, videos
from lvm.sources.videos import VideosConfig, VideosSource


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LVM_CACHE", str(folder))
    return folder


def open_videos(path, **options):
    return VideosSource(VideosConfig(path=str(path), **options))


def clips_of(source, size=16):
    return [source.read(i, size)[0] for i in range(len(source))]


def outcome(source, i):
    """The frames of a unit, or why there are none."""
    try:
        return source.read(i, 16)[0].meta["frames"]
    except BrokenItem as broken:
        assert broken.reason and "\n" not in str(broken)
        return str(broken)


CONTAINERS = {
    "a.mp4": {"g": 12, "bf": 2, "preset": "medium"},
    "b.webm": {},
    "c.avi": {"bf": 2, "g": 12},
    "d.mkv": {"g": 250},
    "e.mov": {"codec": "mpeg4"},
    "f.gif": {"rate": 25},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_frames_asked_for_by_seeking_and_by_decoding_on(tmp_path, name):
    write_video(tmp_path / name, 100, **CONTAINERS[name])
    source = open_videos(tmp_path, every=4, frames=4, frames_per_item=10)
    assert [source.unit_id(i) for i in range(len(source))] == [f"{name[0]}:{n}" for n in (0, 32, 64)]
    clips = clips_of(source)
    assert [clip.num_pictures for clip in clips] == [8, 8, 9] and {clip.group for clip in clips} == {name[0]}
    first = 1 if name == "c.avi" else 0  # its decoder gives no time for frame 0
    assert clips[0].meta["frames"] == [first, *range(4, 32, 4)]
    assert clips[1].meta == {"frames": list(range(32, 64, 4)), "fps": CONTAINERS[name].get("rate", 30)}
    for clip in clips:
        assert np.abs(np.subtract(numbers_seen(clip.channels["image"]), clip.meta["frames"])).max() <= 5
    for i in (2, 1, 0):
        alone = pickle.loads(pickle.dumps(source)).read(i, 16)[0]
        assert np.array_equal(alone.channels["image"], clips[i].channels["image"]) and alone.meta == clips[i].meta


def test_a_short_video_is_kept_denser_as_in_the_reference(tmp_path):
    for name, frames in (("long", 130), ("short", 40), ("tiny", 10), ("one", 1)):
        write_video(tmp_path / f"{name}.mp4", frames)
    frames = {clip.id: clip.meta["frames"] for clip in clips_of(open_videos(tmp_path))}
    assert frames == {
        "long": list(range(0, 130, 8)),
        "short": list(range(0, 40, 2)),  # (40 - 1) // (16 - 1) = 2
        "tiny": list(range(10)),
        "one": [0],
    }


def test_folders_are_classes_a_file_is_a_source_and_folders_of_videos_are_recognised(tmp_path):
    for name in ("jump/a.mp4", "run/a.mp4", "run/.hidden.mp4"):
        write_video(tmp_path / name, 20)
    (tmp_path / "notes.txt").write_text("no video")
    source = open_source(tmp_path)
    assert isinstance(source, VideosSource) and source.labels == ("jump", "run") and source.channels == ("image",)
    assert [(clip.id, clip.label, clip.origin) for clip in clips_of(source)] == [
        ("jump/a", 0, "jump/a.mp4"),
        ("run/a", 1, "run/a.mp4"),
    ]
    one = open_source(tmp_path / "run/a.mp4", ["every=4"])
    assert one.name == "a" and len(one) == 1 and one.unit_id(0) == "a"
    assert len(open_source({"kind": "videos", "path": str(tmp_path), "include": ["run/*"]})) == 1
    assert open_source(tmp_path).fingerprint() == source.fingerprint() != one.fingerprint()


def test_frames_are_turned_upright(tmp_path):
    if not hasattr(av.video.stream.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write rotations")
    for degrees in (0, 90, 180, -90):
        write_video(tmp_path / f"{degrees}.mp4", 4, size=(64, 32), rotation=degrees)
    source = open_videos(tmp_path, resize="crop")
    green = {}
    for clip in clips_of(source, 32):
        picture = clip.channels["image"][0]
        green[clip.id] = [(y, x) for y in (4, 28) for x in (4, 28) if picture[y, x, 1] > 128]
        assert clip.meta["geometry"]["left"] == (16 if clip.id in ("0", "180") else 0)
    assert green == {"0": [(4, 4)], "90": [(28, 4)], "180": [(28, 28)], "-90": [(4, 28)]}


def test_listing_decodes_nothing_and_is_remembered_until_a_file_changes(tmp_path, monkeypatch, cache):
    write_video(tmp_path / "a.mp4", 20)
    write_video(tmp_path / "b.mp4", 20)
    looked = []
    look_at = videos.look_at
    monkeypatch.setattr(videos, "look_at", lambda root, path, most: looked.append(path) or look_at(root, path, most))
    monkeypatch.setattr(videos.Player, "_decode", None)
    first = open_videos(tmp_path)
    assert open_videos(tmp_path).fingerprint() == first.fingerprint() and sorted(looked) == ["a.mp4", "b.mp4"]
    write_video(tmp_path / "b.mp4", 30)
    assert open_videos(tmp_path).units[1].video.frames == 30 and looked[2:] == ["b.mp4"]
    for file in (cache / "videos").iterdir():
        file.write_text("[1]")
    assert len(open_videos(tmp_path)) == 2


def test_a_webm_without_a_duration_is_counted(tmp_path):
    with av.open(str(tmp_path / "live.webm"), "w", options={"live": "1"}) as container:
        stream = container.add_stream("libvpx-vp9", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")))
        container.mux(stream.encode())
    assert open_videos(tmp_path).units[0].video.frames == 20


def test_a_header_that_promises_too_much_is_counted_and_windows_past_the_end_are_broken(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mkv", 60)
    monkeypatch.setattr(videos, "count_frames", lambda file, max_pixels: 200)
    source = open_videos(tmp_path, every=4, frames_per_item=10)
    found = [outcome(source, i) for i in range(len(source))]
    assert found[:2] == [list(range(0, 40, 4)), list(range(40, 60, 4))]
    assert all("has no frames from frame" in reason for reason in found[2:]) and len(found) == 5
    monkeypatch.undo()
    size = (tmp_path / "a.mkv").stat().st_size
    monkeypatch.setattr(videos, "MIN_BYTES_PER_FRAME", size)  # as if it promised more than its bytes can hold
    assert videos.count_frames(tmp_path / "a.mkv", 2**26) == 60


def test_damage_costs_the_windows_it_is_in_and_no_others(tmp_path):
    noise = np.random.default_rng(0)
    file = write_video(tmp_path / "a.mp4", 90, size=(160, 128), g=10, preset="medium", crf=5)
    whole = file.read_bytes()
    source = open_videos(tmp_path, every=3, frames_per_item=10)
    assert len(source) == 3
    good = [clip.channels["image"] for clip in clips_of(source)]
    with av.open(str(file)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.pos]
    start, end = places[40], places[45]
    file.write_bytes(whole[:start] + noise.bytes(end - start) + whole[end:])
    source = open_videos(tmp_path, every=3, frames_per_item=10)
    assert np.array_equal(source.read(0, 16)[0].channels["image"], good[0])
    with pytest.raises(BrokenItem, match=r"a.mp4: is damaged at frame 4\d"):
        source.read(1, 16)
    assert np.array_equal(source.read(2, 16)[0].channels["image"], good[2])


@pytest.mark.parametrize("name", ["a.mp4", "b.webm", "c.avi", "d.mkv", "f.gif"])
def test_torn_and_scribbled_files_are_clips_or_one_line(tmp_path, name, capfd):
    whole = write_video(tmp_path / name, 60, g=10).read_bytes()
    write_video(tmp_path / "whole.mp4", 20)
    rng = np.random.default_rng(1)
    damaged = [whole[: len(whole) * part // 5] for part in range(5)]
    for _ in range(12):
        scribbled = bytearray(whole)
        for place in rng.integers(0, len(whole), 40):
            scribbled[place] = rng.integers(256)
        damaged.append(bytes(scribbled))
    for number, data in enumerate(damaged):
        (tmp_path / f"{number}{name}").write_bytes(data)
    source = open_videos(tmp_path, every=2, frames_per_item=10)
    found = {source.unit_id(i): outcome(source, i) for i in range(len(source))}
    files = {unit.video.path for unit in source.units}
    assert files == {name, "whole.mp4", *(f"{n}{name}" for n in range(len(damaged)))}  # each is counted
    assert any(isinstance(reason, str) for reason in found.values())
    assert isinstance(found["whole:0"], list)
    assert capfd.readouterr().err == ""


def test_frames_of_another_size_later_are_broken(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        packets = []
        for width, height in ((64, 48), (32, 32)):
            codec = av.CodecContext.create("mjpeg", "w")
            codec.width, codec.height, codec.pix_fmt, codec.time_base = width, height, "yuvj420p", Fraction(1, 25)
            for _ in range(10):
                packets += codec.encode(av.VideoFrame(width, height, "yuvj420p"))
        for number, packet in enumerate(packets):
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 25)
            container.mux(packet)
    with pytest.raises(BrokenItem, match=r"a.mkv: has frames of different sizes \(\(64, 48\), \(32, 32\)\)"):
        open_videos(tmp_path).read(0, 16)


def test_large_frames_are_refused_by_their_header(tmp_path):
    write_video(tmp_path / "a.mp4", 4)
    write_video(tmp_path / "big.mp4", 4, size=(160, 128))
    source = open_videos(tmp_path, max_pixels=64 * 48)
    assert outcome(source, 0) == [0, 1, 2, 3]
    assert outcome(source, 1).endswith("big.mp4: is 160 x 128 pixels; at most 3,072 are decoded")


def test_a_long_clip_is_drawn_a_frame_at_a_time(tmp_path):
    write_video(tmp_path / "a.mp4", 30, size=(640, 480))
    source = open_videos(tmp_path, every=1)
    tracemalloc.start()
    source.read(0, 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 640 * 480 * 3  # 30 frames in RAM would be 30


@pytest.mark.parametrize(
    "files, options, message",
    [
        ({}, {}, r"holds no videos \(.mp4 .m4v"),
        ({"a.mp4": b""}, {}, r"holds no video that can be used; .*a.mp4: cannot be read \(Invalid data"),
        ({"a.mp4": b"#EXTM3U\nhttp://localhost/x.ts\n"}, {}, "holds no video that can be used"),
        ({"a.mkv": b"ffconcat version 1.0\nfile /etc/passwd\n"}, {}, "holds no video that can be used"),
        ({"a.mp4": b"RIFF"}, {"exclude": ("*",)}, "holds no videos that `include` and `exclude` admit"),
        ({"a.mp4": b"", "a.webm": b""}, {}, "a.mp4 and .*a.webm have the same stem"),
        ({}, {"path": "/nowhere/at/all"}, "/nowhere/at/all does not exist"),
        ({}, {"every": 0}, "every 0 and frames 16 must be 1 or more"),
        ({}, {"frames_per_item": 4096}, "frames_per_item 4096 must be from 1 to 2048"),
    ],
)
def test_what_makes_no_sense_is_one_line(tmp_path, files, options, message):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        VideosSource(VideosConfig(**{"path": str(tmp_path), **options}))
    assert "\n" not in str(caught.value)


def test_a_sound_file_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(UserError, match="holds no video stream"):
        open_videos(tmp_path)


def test_without_pyav_the_remedy_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"x")
    imported = builtins.__import__

    def without_av(name, *arguments):
        if name == "av":
            raise ImportError(name)
        return imported(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_av)
    with pytest.raises(UserError, match=r'pip install "lvm\[video\]"'):
        open_videos(tmp_path)


def test_the_commented_yaml_shows_every_option_with_its_default():
    config = load_config("data/source/videos")
    assert config.pop("kind") == "videos"
    assert set(config) == set(VideosConfig.__dataclass_fields__)
    assert build(VideosConfig, config) == VideosConfig(path=config["path"])
    assert json.dumps(config)


def test_the_benchmark_of_sources_compares_like_with_like():
    module = benchmark("sources")
    found = module.run(module.Options(count=2, frames=20, size=32, rounds=1))
    assert set(found) == {"benchmark", "results", "options", "machine", "commit"}
    assert len(found["results"]) == 8 and all(row["ratio"] > 0 for row in found["results"].values())
    assert found["results"]["pictures with drawn channels"]["pictures_each"] == 8
