"""Clips: which are asked, which frames stand in a prompt, and what is known before a frame is read."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from small_clips import seen, write_clips
from tiny_prompter import SIZE

from lvm.evaluation.annotated import HeldOut
from lvm.evaluation.clips import ClipCases, Clips, Cut, headers, make_cut, one_of_each_group_first
from lvm.evaluation.suites.base import Context, open_clips
from lvm.runtime import UserError
from lvm.sources import open_source
from lvm.sources.base import BrokenItem
from lvm.sources.world import WorldConfig, WorldSource

ALL = HeldOut()


def clips_of(folder, kept_out=ALL, seed=0):
    return Clips(open_source(folder), SIZE, kept_out, seed)


def cases_of(clips, shown=(1, 3, 5), frames=1, stride=1, num_cases=100, seed=0, answered=False):
    return ClipCases(clips, make_cut(clips, 8, shown, frames, stride), num_cases, seed, "next", answered)


def test_prompts_end_in_the_same_frame_and_are_followed_by_the_same_frames(tmp_path):
    cases = cases_of(clips_of(write_clips(tmp_path, *[16] * 6)), stride=2, frames=2)
    starts = set()
    for i in range(len(cases)):
        case = cases.case(i)
        right = seen(case.prompts["right"].pictures)
        clip, start = right[0]
        starts.add(start)
        assert right == [(clip, start + 2 * k) for k in range(5)]
        assert seen(case.truth) == [(clip, start + 10), (clip, start + 12)] and case.tuple_size == 1
        assert seen(case.prompts["3"].pictures) == right[-3:] and seen(case.prompts["none"].pictures) == right[-1:]
        *earlier, last = seen(case.prompts["shuffled"].pictures)
        assert last == right[-1] and sorted(earlier) == right[:-1] and earlier != right[:-1]
        *earlier, last = seen(case.prompts["wrong_task"].pictures)
        (other,) = {found for found, _ in earlier}
        assert (
            last == right[-1] and other != clip and [n for _, n in earlier] == [earlier[0][1] + 2 * k for k in range(4)]
        )
        assert set(case.prompts) == {"right", "3", "none", "wrong_task", "shuffled"}
    assert len(cases) == 6 and len(starts) > 1
    assert cases.condition_of() == {"1": "none", "3": "3", "5": "right"}


def test_a_case_does_not_change_with_their_number_and_each_clip_is_asked_once(tmp_path):
    clips = clips_of(write_clips(tmp_path, *[9] * 7))
    few, many = cases_of(clips, num_cases=2), cases_of(clips)
    assert len(few) == 2 and len({many.case(i).id for i in range(len(many))}) == 7
    for i in range(2):
        one, other = few.case(i), many.case(i)
        assert one.id == other.id and one.prompts.keys() == other.prompts.keys()
        for name in one.prompts:
            assert seen(one.prompts[name].pictures) == seen(other.prompts[name].pictures)
    assert [cases_of(clips_of(tmp_path, seed=1), seed=1).case(i).id for i in range(7)] != [
        many.case(i).id for i in range(7)
    ]


def test_a_clip_alone_has_no_wrong_one_and_two_frames_no_other_order(tmp_path):
    case = cases_of(clips_of(write_clips(tmp_path, 6)), shown=(1, 2)).case(0)
    assert set(case.prompts) == {"right", "none"}
    assert set(cases_of(clips_of(tmp_path), shown=(1,)).case(0).prompts) == {"right"}


def test_only_clips_whose_group_was_never_trained_on_are_asked_or_shown(tmp_path):
    write_clips(tmp_path, *[6] * 20)
    kept_out = HeldOut(300, ("c",))
    clips = clips_of(tmp_path, kept_out)
    asked = {clip.group for clip in clips.clips}
    assert asked == {name for name in map(chr, range(ord("a"), ord("u"))) if name in kept_out} and 2 < len(asked) < 15
    cases = cases_of(clips)
    numbers = {ord(name) - ord("a") + 1 for name in asked}
    shown = {clip for i in range(len(cases)) for clip, _ in seen(cases.case(i).prompts["wrong_task"].pictures)}
    assert len(shown) > 2 and shown <= numbers


def test_windows_of_one_clip_come_after_a_window_of_each(tmp_path):
    clips = clips_of(write_clips(tmp_path, 48, 16, 16))
    groups = [clip.group for clip in clips.clips]
    assert sorted(groups[:3]) == ["a", "b", "c"] and groups[3:] == ["a", "a"]
    assert one_of_each_group_first(clips.clips) == clips.clips
    cases = cases_of(clips)
    for i in range(len(cases)):
        (other,) = {clip for clip, _ in seen(cases.case(i).prompts["wrong_task"].pictures[:-1])}
        assert chr(ord("a") + other - 1) != groups[i]


def test_numbers_of_frames_are_those_that_fit_the_context_and_half_of_the_clips(tmp_path):
    clips = clips_of(write_clips(tmp_path, 4, 4, 9, 9, 16))
    assert make_cut(clips, 16, (1, 3, 7, 11), 1, 1).shown == (1, 3, 7)
    assert make_cut(clips, 6, (1, 3, 7, 11), 1, 1).shown == (1, 3)
    assert make_cut(clips, 16, (1, 3, 7, 11), 1, 2).shown == (1, 3)
    cases = ClipCases(clips, make_cut(clips, 16, (1, 3, 7), 1, 1), 9, 0, "next", False)
    assert len(cases) == 3 and cases.describe()["clips_too_short"] == 2 and cases.describe()["clips"] == 5
    with pytest.raises(UserError, match=r"fewer than 16 frames, the longest 16; lower stride"):
        make_cut(clips, 16, (3,), 1, 5)
    with pytest.raises(UserError, match="holds 6 pictures; 3 shown and 4 to follow"):
        make_cut(clips, 6, (3, 5), 4, 1)
    with pytest.raises(UserError, match="at least 1"):
        make_cut(clips, 6, (0, 5), 1, 1)


def test_a_cut_starts_wherever_it_fits():
    cut = Cut((1, 3), 2, 3)
    starts = {int(cut.places(16, 5, n)[0]) for n in range(60)}
    assert starts == {0, 1, 2, 3} and cut.span == 13
    assert all(cut.places(16, 5, n)[-1] <= 15 for n in range(60))


def test_without_clips_the_error_says_what_to_give(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(tmp_path / "photos" / "a.png")
    with pytest.raises(UserError, match=r"photos has no clip; give a folder of videos, or one of frames/CLIP/\*.jpg"):
        clips_of(tmp_path / "photos")
    write_clips(tmp_path / "clips", 6, 6)
    with pytest.raises(UserError, match="none of the 2 clips of clips is held out; --held-out 1000"):
        clips_of(tmp_path / "clips", HeldOut(0))
    context = Context(str(tmp_path / "clips"), SIZE, 6)
    with pytest.raises(UserError, match="kind=turntable is of the world"):
        open_clips(context, "turntable")
    with pytest.raises(UserError, match="num_turntables is 0"):
        open_clips(Context(None, SIZE, 6, world={"kind": "world", "num_scenes": 4, "num_clips": 4}), "turntable")


def test_the_world_is_asked_of_its_test_split_and_its_objects_turn():
    world = {"kind": "world", "num_scenes": 3, "num_clips": 5, "num_turntables": 2, "num_frames": 7}
    context = Context(None, SIZE, 8, world=world)
    clips, turntables = open_clips(context, "clip"), open_clips(context, "turntable")
    assert [clip.frames for clip in clips.clips] == [7] * 5 and [clip.frames for clip in turntables.clips] == [24] * 2
    case, turn = cases_of(clips).case(0), cases_of(turntables).case(0)
    assert case.id.startswith("world-0-test-clip-") and case.label in ("slide", "orbit", "bounce", "cross", "pan")
    item = clips.source.read(clips.clips[0].unit, SIZE)[0]
    assert any((case.truth[0] == frame).all() for frame in item.channels["image"])
    assert (
        turn.id.startswith("world-0-test-turntable-")
        and not (turn.truth[0] == turn.prompts["right"].pictures[-1]).all()
    )


def write_sources(folder) -> dict[str, dict]:
    """One source of each kind that holds clips."""
    write_clips(folder / "clips", 20, 6)
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(folder / "still.png")
    lines = [
        {"file": [f"clips/frames/b/{n:02}.png" for n in range(5)], "group": "drive", "id": "one"},
        {"file": "still.png"},
        {"file": ["still.png", "still.png"], "id": 7},
    ]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = {"kind": "manifest", "path": str(folder / "manifest.jsonl"), "image": "file", "views": 0}
    pictures = {"kind": "pictures", "path": str(folder / "clips"), "frames": 8}
    return {"pictures": pictures, "manifest": manifest}


def compare_headers(source):
    found = list(headers(source))
    assert [header.unit for header in found] == list(range(len(source)))
    for header in found:
        item = source.read(header.unit, SIZE)[0]
        assert (header.id, header.group, header.frames) == (item.id, item.group, item.num_pictures)
    return found


def test_headers_say_what_reading_finds(tmp_path):
    sources = write_sources(tmp_path)
    for options in sources.values():
        compare_headers(open_source(options))
    found = compare_headers(open_source({"kind": "collection", "sources": sources}))
    assert [header.frames for header in found] == [8, 8, 8, 6, 5, 1, 2]
    assert {header.group for header in found} == {
        "pictures/a", "pictures/b", "manifest/drive", "manifest/still", "manifest/7",
    }  # fmt: skip
    world = WorldSource(WorldConfig(split="test", num_scenes=2, num_clips=3, num_frames=4))
    assert [(h.unit, h.frames, h.id) for h in headers(world)] == [(n, 4, world.unit_id(n)) for n in (2, 3, 4)]


def test_videos_in_folders_of_classes_are_asked_every_eighth_frame(tmp_path):
    """Kinetics' layout; a header says how many frames there are."""
    av = pytest.importorskip("av")
    (tmp_path / "juggling").mkdir()
    (tmp_path / "yoga").mkdir()
    for name, frames in (("juggling/x", 40), ("yoga/y", 70)):
        with av.open(str(tmp_path / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=30)
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv420p"
            for n in range(frames):
                pixels = np.full((32, 32, 3), 3 * n, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
            container.mux(stream.encode())
    (tmp_path / "yoga" / "z.mp4").write_bytes(b"no video")
    source = open_source({"kind": "videos", "path": str(tmp_path), "every": 8, "frames": 5, "frames_per_item": 5})
    found = list(headers(source))
    assert [header.frames for header in found if not header.problem] == [5, 4, 5] and found[-1].problem
    clips = Clips(source, SIZE, ALL)
    cases = cases_of(clips, shown=(1, 3))
    assert len(cases) == 4  # the one that is no video is a case that fails
    failed = 0
    for i in range(4):
        try:
            case = cases.case(i)
        except BrokenItem as broken:
            failed += 1
            assert broken.file.endswith("z.mp4")
            continue
        assert case.label == case.id.split("/")[0] in ("juggling", "yoga")
        levels = [int(np.median(picture)) // 3 for picture in (*case.prompts["right"].pictures, *case.truth)]
        assert np.abs(np.diff(levels) - 8).max() <= 1, "frames are eight apart"
    assert failed == 1


def test_a_clip_shorter_than_its_header_says_or_damaged_is_a_case_that_fails_and_no_other_shows_it(tmp_path):
    clips = clips_of(write_clips(tmp_path, 6, 4, 6, 6, 6))
    clips.clips = [replace(clip, frames=6) for clip in clips.clips]  # headers that promise more
    (tmp_path / "frames" / "c" / "03.png").write_bytes(b"\x89PNG no more")
    cases = cases_of(clips)
    failed, shown = [], set()
    for i in range(5):
        try:
            shown |= {clip for clip, _ in seen(cases.case(i).prompts["wrong_task"].pictures)}
        except BrokenItem as broken:
            failed.append(str(broken))
    assert sorted(failed)[1] == "b: has 4 of 6 promised frames; 6 are needed" and "c/03.png" in sorted(failed)[0]
    assert shown == {1, 4, 5}


def test_a_line_that_cannot_be_used_is_a_case_that_fails(tmp_path):
    options = write_sources(tmp_path)["manifest"]
    with open(options["path"], "a") as file:
        file.write("no json\n")
    clips = Clips(open_source(options), SIZE, ALL)
    assert [clip.id for clip in clips.clips if clip.problem] == ["line-4"]
    with pytest.raises(BrokenItem, match="is no JSON"):
        clips.read(next(clip for clip in clips.clips if clip.problem))
