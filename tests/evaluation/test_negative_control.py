"""What the controls say of a net that reads its pairs, and of one whose training pairs were mixed up."""

import numpy as np
import pytest
from shifted_pairs import ShiftedItems, one_code_tokenizer, train

from lvm.evaluation.ask import ask
from lvm.evaluation.cases import Measure
from lvm.evaluation.pairing import PairCases, PairingConfig
from lvm.evaluation.rows import row_of
from lvm.evaluation.suites.base import PairSuite
from lvm.evaluation.summary import summarise
from lvm.evaluation.tasks import Task
from lvm.inference.prompter import Prompter

TASK = Task("out", "image", "out", "Out")


@pytest.fixture(scope="module")
def reports():
    vq = one_code_tokenizer()
    cases = PairCases(ShiftedItems(vq), [TASK], PairingConfig(pairs=4), 64, seed=0)
    equal = lambda case, pictures: {"right": float(np.abs(pictures[0].astype(int) - held(vq, case)).max() <= 1)}
    suite = PairSuite("shifted", "Shifted", [Measure("right", True)], cases, equal, {})
    asked = [suite.case(i) for i in range(len(suite))]
    said = {mixed_up: ask(Prompter(train(vq, mixed_up), vq), asked, "exact") for mixed_up in (False, True)}
    rows = {mixed_up: [row_of(suite, each) for each in found] for mixed_up, found in said.items()}
    return {mixed_up: summarise(suite, found)["tasks"]["out"] for mixed_up, found in rows.items()}


def held(vq, case) -> np.ndarray:
    """The truth through the tokenizer."""
    prompter = Prompter.__new__(Prompter)
    prompter.vq = vq
    return prompter.decode(prompter.encode(case.truth[0][None]))[0].astype(int)


def test_a_net_that_reads_its_pairs_gains_by_right_ones(reports):
    controls, right = reports[False]["controls"], reports[False]["conditions"]["right"]
    assert right["right"]["mean"] > 0.8
    for control in ("wrong_task", "shuffled", "none"):
        assert controls[control]["nats"]["low"] > 0 and controls[control]["right"]["low"] > 0, control
    assert reports[False]["over_baselines"]["copy_last_answer"]["right"]["low"] > 0
    assert reports[False]["baselines"]["tokenizer_ceiling"]["right"]["mean"] == 1.0


def test_a_net_trained_on_mixed_up_pairs_gains_nothing_by_right_ones(reports):
    gain = reports[True]["controls"]["shuffled"]
    assert abs(gain["nats"]["mean"]) < 0.05 and gain["nats"]["low"] < 0.02
    assert gain["right"]["low"] <= 0 <= gain["right"]["high"]
    assert reports[True]["conditions"]["right"]["right"]["mean"] < 0.75  # of the two answers shown it cannot tell
    assert reports[True]["controls"]["none"]["nats"]["low"] > 0  # which answers there are the pairs do say
