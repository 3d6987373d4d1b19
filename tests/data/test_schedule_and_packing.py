"""Slots follow the weights; packing loses nothing and cuts nothing it should not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvm.data.mixture import Wish, sentence_shares
from lvm.data.packing import OPEN_BINS, make_packing, pack_bins
from lvm.data.schedule import make_schedule, slot_counts
from lvm.runtime import UserError

WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=12)


@given(WEIGHTS, st.integers(20, 3000))
@settings(max_examples=100, deadline=None)
def test_each_entry_is_within_one_sentence_of_its_weight_and_has_at_least_one(weights, period):
    shares = np.array(weights) / sum(weights)
    try:
        counts = slot_counts(shares, period, [str(i) for i in range(len(weights))])
    except UserError as error:
        needed = int(str(error).rsplit("=", 1)[1])
        assert shares.min() * period < 1
        counts = slot_counts(shares, needed, [str(i) for i in range(len(weights))])  # the remedy works
        period = needed
    assert counts.sum() == period and counts.min() >= 1
    assert np.abs(counts - shares * period).max() <= 1 + 1e-6


@given(WEIGHTS, st.integers(0, 2**62))
@settings(max_examples=30, deadline=None)
def test_slots_are_spread_evenly(weights, seed):
    counts = slot_counts(np.array(weights) / sum(weights), 2000, ["e"] * len(weights)) if min(weights) > 1 else None
    if counts is None:
        return
    schedule = make_schedule(counts, seed)
    assert np.array_equal(np.bincount(schedule.slots, minlength=len(counts)), counts)
    for entry, count in enumerate(counts):
        mine = np.flatnonzero(schedule.slots == entry)
        assert np.array_equal(schedule.rank[mine], np.arange(count))
        assert np.abs(mine - (np.arange(count) + 0.5) * 2000 / count).max() <= 2000 / count + len(counts) + 1


def test_token_weights_count_picture_tokens_and_sentence_weights_sentences():
    wishes = [Wish("pairs", 16, 1000, 1), Wish("single", 1, 1000, 1)]
    shares = sentence_shares(wishes, "tokens")
    assert np.isclose(shares[0] * 16, shares[1])
    assert sentence_shares(wishes, "sentences").tolist() == [0.5, 0.5]


def test_entries_of_weight_zero_get_no_slot():
    assert slot_counts(np.array([0.5, 0, 0.5]), 7, "abc")[1] == 0


LENGTHS = st.lists(st.integers(3, 40), min_size=1, max_size=300).map(lambda values: np.array(values, np.int64))


@given(LENGTHS, st.integers(40, 90))
@settings(max_examples=80, deadline=None)
def test_bins_hold_every_sentence_once_and_are_never_over_full(lengths, size):
    bins = pack_bins(lengths, size)
    assert np.bincount(bins, lengths).max() <= size
    first = [int(np.flatnonzero(bins == b)[0]) for b in range(bins.max() + 1)]  # no bin is empty
    assert first == sorted(first)  # emitted by their first sentence
    assert len(first) <= 2 * lengths.sum() / size + OPEN_BINS


@given(LENGTHS, st.integers(40, 90), st.integers(0, 50), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_aligned_windows_hold_whole_sentences_back_to_back_from_their_start(lengths, seq_len, window, n):
    packing = make_packing("aligned", lengths, seq_len)
    placed = packing.place(window, n)
    end = placed.start + lengths[placed.sentence % len(lengths)]
    row = placed.start // (seq_len + 1)
    assert np.array_equal(row, (end - 1) // (seq_len + 1))
    for w in range(n):
        mine = row == w
        starts = placed.start[mine] - w * (seq_len + 1)
        assert starts[0] == 0 and np.array_equal(starts[1:], (end[mine] - w * (seq_len + 1))[:-1])


@given(LENGTHS, st.integers(40, 90))
@settings(max_examples=40, deadline=None)
def test_an_aligned_period_holds_each_sentence_exactly_once(lengths, seq_len):
    packing = make_packing("aligned", lengths, seq_len)
    for period in (0, 3):
        sentences = packing.place(period * packing.num_bins, packing.num_bins).sentence
        assert np.array_equal(np.sort(sentences), period * len(lengths) + np.arange(len(lengths)))


def test_a_sentence_of_one_token_too_many_is_written_without_its_eos():
    packing = make_packing("aligned", np.array([42, 42]), 40)
    assert packing.num_bins == 2 and packing.written(42) == 41 and packing.waste() == 0
    assert packing.written(41) == 41


@given(LENGTHS, st.integers(5, 90), st.integers(0, 400), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_concat_windows_are_cut_from_one_endless_stream(lengths, seq_len, window, n):
    placed = make_packing("concat", lengths, seq_len).place(window, n)
    of = placed.sentence % len(lengths)
    total, before = int(lengths.sum()), np.cumsum(lengths) - lengths
    starts = placed.sentence // len(lengths) * total + before[of]
    assert np.array_equal(placed.start, starts - window * seq_len)
    assert placed.start[0] <= 0 and (placed.start + lengths[of])[-1] >= n * seq_len + 1
    assert (placed.start + lengths[of])[0] > 0 and placed.start[-1] <= n * seq_len


@given(LENGTHS, st.integers(5, 90), st.integers(0, 300), st.sampled_from(["aligned", "concat"]))
@settings(max_examples=60, deadline=None)
def test_started_counts_the_sentences_of_the_windows_before(lengths, seq_len, windows, kind):
    if kind == "aligned":
        lengths = np.minimum(lengths, seq_len + 2)
    packing = make_packing(kind, lengths, seq_len)
    periods, slots = packing.started(windows)
    expected = np.sort(packing.place(0, windows).sentence) if windows else np.zeros(0, np.int64)
    counted = np.concatenate([np.arange(periods * len(lengths)), periods * len(lengths) + np.sort(slots)])
    assert np.array_equal(counted, expected)


def test_too_short_a_period_names_the_remedy():
    with pytest.raises(UserError, match=r"entry 'rare'; use data\.period=1000"):
        slot_counts(np.array([0.001, 0.002, 0.002, 0.995]), 3, ["rare", "b", "c", "d"])
