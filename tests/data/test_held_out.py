"""The held-out plan: the same mixture over the groups that no window of training shows."""

import numpy as np
import pytest
from fakes import FakeStore
from mixtures import STAGES, mixture

from lvm.data import TokenPlan, held_out_plan
from lvm.runtime import UserError
from lvm.runtime.hashing import group_hash, held_out

STORE = FakeStore(scenes=300, clips=60, frames=(16, 40))


def items_of(plan, windows=60):
    return {
        (picture["id"], sentence["entry"])
        for window in range(windows)
        for sentence in plan.explain(window)
        for picture in sentence["pictures"]
    }


@pytest.mark.parametrize("packing", ["aligned", "concat"])
def test_held_out_windows_show_only_groups_that_training_never_shows(packing):
    plan = TokenPlan.from_config(mixture(packing), {"world": STORE})
    held = held_out_plan(plan)
    shown, trained = ({item for item, _ in items_of(p)} for p in (held, plan))
    assert shown and not shown & trained
    assert held_out(np.array([group_hash(item) for item in shown], np.uint64), 100).all()
    assert held.names == plan.names and held.fingerprint != plan.fingerprint
    assert held.facts["split"] == "held_out" and "split" not in plan.facts
    shares = [{row["entry"]: row["token_share"] for row in p.describe()} for p in (plan, held)]
    assert shares[0] == pytest.approx(shares[1], abs=0.03)


def test_an_entry_that_the_held_out_groups_cannot_fill_is_left_out_and_named_and_the_others_keep_their_places():
    config = mixture(held_out_per_mille=40)
    config["entries"]["kind"]["pictures"] = 16
    plan = TokenPlan.from_config(config, {"world": STORE})
    with pytest.warns(UserWarning, match="not validated, too little is held out: segmentation, masked, kind$"):
        held = held_out_plan(plan)
    used = {entry for _, entry in items_of(held)}
    assert used == {"depth", "clip", "single"}
    sources = np.unique(held.windows(0, 60).source)
    assert set(sources.tolist()) - {-1} == {plan.names.index(name) for name in used}


def test_stages_epochs_and_groups_held_out_by_name():
    config = mixture(stages=STAGES, held_out_per_mille=0)
    config["sources"]["world"]["exclude_groups"] = [f"world-scene-{i}" for i in range(60)]
    plan = TokenPlan.from_config(config, {"world": STORE})
    with pytest.warns(UserWarning, match="too little is held out: clip"):
        held = held_out_plan(plan)
    assert {item for item, _ in items_of(held)} <= set(config["sources"]["world"]["exclude_groups"])
    limited = mixture(total_tokens=1e6)
    limited["entries"]["clip"] |= {"max_epochs": 2.0}
    assert len(held_out_plan(TokenPlan.from_config(limited, {"world": STORE})).stages) == 1


@pytest.mark.filterwarnings("ignore:not validated")
def test_nothing_held_out_is_one_line():
    plan = TokenPlan.from_config(mixture(held_out_per_mille=0), {"world": STORE})
    with pytest.raises(UserError, match="0 per mille that are held out fill no sentence"):
        held_out_plan(plan)
