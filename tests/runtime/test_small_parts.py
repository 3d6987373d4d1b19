"""Files, hashing, seeding, progress and the machine."""

import errno
import fcntl
import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lvm.runtime import UserError, atomic_folder, atomic_path, atomic_write, read_json, sha256_file, write_json
from lvm.runtime.files import claimed
from lvm.runtime.hashing import group_hash, hash64, held_out, mix64, seed_from, uniform
from lvm.runtime.machine import bf16_is_fast, compile_problem, git_commit, machine_description, set_threads
from lvm.runtime.progress import Progress, duration
from lvm.runtime.seeding import generator_for


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    atomic_write(tmp_path / "a.txt", "old")
    with pytest.raises(KeyError), atomic_path(tmp_path / "a.txt") as aside:
        aside.write_text("half")
        raise KeyError
    assert (tmp_path / "a.txt").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_appears_complete_or_not_at_all(tmp_path):
    with pytest.raises(KeyError), atomic_folder(tmp_path / "f") as aside:
        (aside / "x").write_text("1")
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(tmp_path / "f") as aside:
        (aside / "x").write_text("1")
        assert not (tmp_path / "f").exists()
    assert (tmp_path / "f" / "x").read_text() == "1"
    with pytest.raises(UserError, match="appeared while it was being written"), atomic_folder(tmp_path / "f"):
        pass


def test_json_round_trips_and_what_is_not_json_is_named(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, None]})
    assert read_json(tmp_path / "a.json") == {"b": [1, None]}
    with pytest.raises(UserError, match=r"no\.json is missing"):
        read_json(tmp_path / "no.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.json is not JSON"):
        read_json(tmp_path / "a.json")


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_mix64_is_the_finaliser_of_splitmix64():
    # First output of SplitMix64 seeded with 0, from the authors' C code.
    assert int(mix64(0x9E3779B97F4A7C15)) == 0xE220A8397B1DCDAF


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=50, unique=True))
def test_mix64_never_maps_two_numbers_to_one(numbers):
    assert len(set(mix64(np.array(numbers, dtype=np.uint64)).tolist())) == len(numbers)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**63), min_size=1, max_size=4), st.integers(0, 2**63))
def test_a_hash_of_an_array_is_the_hash_of_each_of_its_elements(numbers, counter):
    array = np.array(numbers, dtype=np.uint64)
    assert hash64(5, array, counter).tolist() == [int(hash64(5, number, counter)) for number in numbers]


def test_noise_is_uniform_and_depends_on_the_order_of_counters():
    draws = uniform(3, np.arange(20000))
    assert draws.min() >= 0 and draws.max() < 1
    assert abs(np.histogram(draws, 10, (0, 1))[0] - 2000).max() < 200
    assert int(hash64(1, 2)) != int(hash64(2, 1))


def test_held_out_shares_are_what_was_asked_and_nested():
    groups = np.array([group_hash(f"photo {i}") for i in range(20000)], dtype=np.uint64)
    assert abs(held_out(groups, 50).mean() - 0.05) < 0.006
    assert not (held_out(groups, 50) & ~held_out(groups, 100)).any()
    assert not held_out(groups, 0).any() and held_out(groups, 1000).all()


def test_seeds_tell_numbers_from_text_and_stay_the_same_for_ever():
    assert seed_from(1, "a") == seed_from(1, "a") != seed_from("1", "a")
    assert seed_from("a", "b") != seed_from("ab")
    assert seed_from(np.int64(1), "a") == seed_from(1, "a")
    assert 0 <= seed_from(0) < 2**63
    assert seed_from(0, "embed.weight") == 2801198052034936869


def test_a_parameters_draw_depends_on_seed_and_name_alone():
    draw = lambda seed, name: torch.randn(4, generator=generator_for(seed, name))
    assert torch.equal(draw(0, "a"), draw(0, "a"))
    assert not torch.equal(draw(0, "a"), draw(1, "a")) and not torch.equal(draw(0, "a"), draw(0, "b"))


def test_progress_in_a_log_file_is_plain_lines_and_ends_with_the_last():
    stream = io.StringIO()
    with Progress(3, "tokenise", stream=stream) as progress:
        for i in range(3):
            progress.update(loss=0.5 * i)
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("tokenise: 3/3  ") and line.endswith("loss 1")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0s"), (59.7, "1m00s"), (187, "3m07s"), (19200, "5h20m"), (183600, "2d03h")]
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_the_machine_is_described_in_json():
    description = json.loads(json.dumps(machine_description()))
    assert description["torch"] == torch.__version__ and description["cores"] >= 1 and description["cpu"]
    assert isinstance(bf16_is_fast("cpu"), bool) and not bf16_is_fast("meta")
    assert git_commit() == "unknown" or len(git_commit().removesuffix("-dirty")) == 40


def test_a_missing_compiler_is_a_reason_not_to_compile(monkeypatch):
    compile_problem.cache_clear()
    monkeypatch.setenv("CXX", "/nowhere/g++")
    assert "/nowhere/g++" in str(compile_problem())
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    compile_problem.cache_clear()
    assert "no C++ compiler" in str(compile_problem())
    compile_problem.cache_clear()


def test_threads_are_shared_among_the_ranks_of_a_machine(monkeypatch):
    before = torch.get_num_threads()
    try:
        assert set_threads(2) == torch.get_num_threads() == 2
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "100000")
        assert set_threads(None) == torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_claim_leaves_no_folder_behind_and_holds_among_those_that_come_and_go(tmp_path, monkeypatch):
    out = tmp_path / "a" / "b" / "out"
    with claimed(out) as alone:
        assert alone
        with pytest.raises(UserError, match="out is being made by pid"), claimed(out):
            pass
        with claimed(tmp_path / "a" / "other"):
            pass
    assert not any(tmp_path.iterdir())

    lock, calls = fcntl.flock, []

    def after_the_holder_left(descriptor, how):
        if not calls:  # its holder removed the file between our opening and locking it
            (file,) = (tmp_path / "a" / "b").iterdir()
            file.unlink()
            file.parent.rmdir()
        calls.append(how)
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", after_the_holder_left)
    with claimed(out) as alone:
        assert alone and len(calls) == 2
        assert len(list((tmp_path / "a" / "b").iterdir())) == 1
    assert not any(tmp_path.iterdir())

    def without_locks(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without_locks)
    with claimed(out) as alone:
        assert not alone
