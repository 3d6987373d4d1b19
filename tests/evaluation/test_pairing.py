"""Which pairs stand before a query, and what the conditions and baselines make of them."""

from collections.abc import Sequence

import numpy as np
import pytest

from lvm.evaluation.annotated import HeldOut, SourceItems, WorldItems
from lvm.evaluation.cases import CONTROLS, ENSEMBLE, NONE, RIGHT, SHUFFLED, WRONG_TASK
from lvm.evaluation.pairing import PairCases, PairingConfig, jaccard, missing_controls, thumbnail
from lvm.evaluation.tasks import Task, tasks_of
from lvm.runtime import UserError
from lvm.runtime.hashing import group_hash, held_out
from lvm.sources import Item
from lvm.sources.base import BrokenItem
from lvm.sources.world import WorldConfig, WorldSource

OUT = Task("out", "image", "out", "Out")
SIZE = 4


class Squares:
    """Item i shows i everywhere; `out` is 100 + i, `other` 200 + i. Two items a group, three classes, two views."""

    name, channels = "squares", ("image", "out", "other")

    def __init__(self, number: int = 24, asked: Sequence[int] | None = None):
        self._number, self._asked = number, range(number) if asked is None else asked
        self.ids = [f"s{i}" for i in range(number)]
        self.groups = [f"g{i // 2}" for i in range(number)]
        self.labels = ["abc"[i % 3] for i in range(number)]

    def __len__(self) -> int:
        return self._number

    def has(self, i: int, channel: str) -> bool:
        return True

    def may_ask(self, i: int) -> bool:
        return i in self._asked

    def views(self, i: int) -> list[int]:
        return [0, 1, 2 + i % 2]

    def read(self, i: int, view: int, channels=None) -> dict[str, np.ndarray]:
        assert view in self.views(i)
        values = {"image": i, "out": 100 + i, "other": 200 + i}
        return {name: np.full((SIZE, SIZE, 3), value, np.uint8) for name, value in values.items()}

    def fingerprint(self) -> str:
        return "squares"


def values(pictures) -> list[int]:
    return [int(picture[0, 0, 0]) for picture in pictures]


def cases(data=None, config=None, number=30, **options):
    return PairCases(data or Squares(), [OUT], config or PairingConfig(pairs=3, pool=12), number, 5, **options)


def test_conditions_show_the_same_query_after_other_pairs():
    made = cases()
    for n in range(len(made)):
        case = made.case(n)
        right, *controls = (values(case.prompts[name].pictures) for name in (RIGHT, *CONTROLS))
        wrong, mixed, none = controls
        query = int(case.id.split("#")[0][1:])
        inputs = right[:-1:2]
        assert right[1:-1:2] == [100 + i for i in inputs] and len(set(inputs)) == 3
        assert all(found[-1] == query for found in (right, *controls)) and none == [query]
        assert wrong[:-1] == [value for i in inputs for value in (i, 200 + i)]
        assert mixed[:-1:2] == inputs and mixed[1:-1:2] == [100 + i for i in (*inputs[1:], inputs[0])]
        assert values(case.truth) == [100 + query]
        assert all(i // 2 != query // 2 for i in inputs)  # never of its group


def test_a_case_does_not_depend_on_their_number_and_queries_come_again_with_other_pairs():
    few, many = cases(number=3), cases(number=40)
    assert values(few.case(2).prompts[RIGHT].pictures) == values(many.case(2).prompts[RIGHT].pictures)
    assert [many.case(n).id for n in range(24)] != sorted(many.case(n).id for n in range(24))
    assert {many.case(n).id for n in range(24)} == {f"s{i}" for i in range(24)}
    assert many.case(24).id == f"{many.case(0).id}#1"
    assert values(many.case(24).prompts[RIGHT].pictures) != values(many.case(0).prompts[RIGHT].pictures)


def test_pairs_are_of_the_querys_class_and_of_what_may_be_asked_where_there_is_enough():
    for n in range(20):
        case = cases(same_label=True).case(n)
        assert len({value % 3 for value in values(case.prompts[RIGHT].pictures)[::2]}) == 1
    asked = range(12)
    for n in range(20):
        assert all(value < 12 for value in values(cases(Squares(asked=asked)).case(n).prompts[RIGHT].pictures)[::2])
    few = cases(Squares(asked=[3]))
    assert few.case(0).id == "s3" and max(values(few.case(0).prompts[RIGHT].pictures)[:-1:2]) >= 12
    with pytest.raises(UserError, match=r"has 1 pictures to ask about out and 4 to show .*: no query has 3"):
        cases(Squares(4, asked=[3]))


def codes_of_colour(pictures) -> np.ndarray:
    """A square of value i has the codes i .. i + 9: the nearer two squares, the more they share."""
    return np.stack([np.arange(int(picture[0, 0, 0]), int(picture[0, 0, 0]) + 10) for picture in pictures])


@pytest.mark.parametrize(("order", "sign"), [("nearest_last", -1), ("nearest_first", 1)])
def test_nearest_pairs_by_the_codes_they_share(order, sign):
    config = PairingConfig(pairs=3, pool=22, choose="nearest", order=order)
    assert jaccard(np.array([1, 2, 2, 3]), np.array([3, 4])) == 0.25
    for n in range(24):
        case = cases(config=config, encode=codes_of_colour).case(n)
        *inputs, query = values(case.prompts[RIGHT].pictures)[::2]
        far = [abs(i - query) for i in inputs]
        assert far == sorted(far)[::sign]
        assert max(far) <= min(abs(i - query) for i in range(24) if i not in inputs and i // 2 != query // 2)
    in_random_order = PairingConfig(pairs=3, pool=22, choose="nearest")
    again = [cases(config=in_random_order, encode=codes_of_colour).case(n) for n in range(24)]
    assert any(far != sorted(far) for far in ([abs(i - v[-1]) for i in v[:-1]] for v in (
        values(case.prompts[RIGHT].pictures)[::2] for case in again)))  # fmt: skip


def test_an_ensemble_has_prompts_of_other_pairs_which_join():
    case = cases(config=PairingConfig(pairs=3, pool=12, ensemble=3)).case(4)
    joined = [shown for shown in case.prompts.values() if shown.joins == ENSEMBLE]
    pairs = [values(shown.pictures)[:-1:2] for shown in joined]
    assert len({i for own in pairs for i in own}) == 9 and pairs[0] == values(case.prompts[RIGHT].pictures)[:-1:2]
    with pytest.raises(UserError, match="a pool of 8 items does not hold 3 x 3 pairs"):
        PairingConfig(pairs=3, pool=8, ensemble=3)


def test_baselines_need_no_model():
    case = cases().case(0)
    *inputs, query = values(case.prompts[RIGHT].pictures)[::2]
    found = {name: values(pictures)[0] for name, pictures in case.baselines.items()}
    assert found == {
        "copy_query": query,
        "copy_last_answer": 100 + inputs[-1],
        "mean_answer": round(np.mean([100 + i for i in inputs])),
        "nearest_pair": 100 + min(inputs, key=lambda i: (abs(i - query), inputs.index(i))),
    }
    ramp = np.arange(6 * 7 * 3).reshape(6, 7, 3).astype(np.uint8)
    assert np.allclose(thumbnail(ramp).mean(), ramp.mean(), atol=3)


def test_a_sentence_shares_a_view_that_all_have():
    views = [cases().episodes[0].view(n, [0, 2, 4]) for n in range(20)]
    assert set(views) == {1, 2} and set(cases().episodes[0].view(n, [0, 1]) for n in range(20)) == {1}


class Photos:
    """Unit 3 is broken; unit 5 a clip."""

    name, channels, labels = "photos", ("image", "gray", "masked"), ("cat", "dog")

    def __len__(self) -> int:
        return 60

    def unit_id(self, i: int) -> str:
        return f"p{i}"

    def read(self, i: int, size: int) -> list[Item]:
        if i == 3:
            raise BrokenItem("p3.jpg", "cut off")
        frames = 4 if i == 5 else 1
        picture = np.full((frames, size, size, 3), i, np.uint8)
        views = [Item(f"p{i}", f"p{i}", v, i % 2, {"masked": picture + np.uint8(100 * v)}) for v in (1, 2)]
        return [Item(f"p{i}", f"p{i}", 0, i % 2, {"image": picture, "gray": picture}), *views]

    def fingerprint(self) -> str:
        return "photos"


def test_queries_of_a_source_are_held_out_groups_and_broken_units_are_named():
    data = SourceItems(Photos(), SIZE, HeldOut(300, ("p0",)))
    assert len(data) == 58 and data.broken == ["p3.jpg: cut off"] and data.channels == Photos.channels
    is_held = lambda name: bool(held_out(np.asarray(group_hash(name), np.uint64), 300)) or name == "p0"
    assert [data.may_ask(i) for i in range(58)] == [is_held(name) for name in data.ids]
    assert data.labels[data.ids.index("p7")] == "dog"
    made = PairCases(data, tasks_of(data.channels), PairingConfig(pairs=2), 9, 0)
    for n in range(len(made)):
        case = made.case(n)
        assert is_held(case.id.split("#")[0])
        if case.task == "inpainting":
            difference = (
                np.array(values(case.prompts[RIGHT].pictures)[:-1:2]) - values(case.prompts[RIGHT].pictures)[1:-1:2]
            )
            assert len(set(difference)) == 1 and set(difference) < {100, 200}  # one view a sentence


def test_the_worlds_items_are_of_the_test_split():
    world = WorldSource(WorldConfig(split="test", num_scenes=9, num_clips=0, num_objects=51, num_puzzles=4))
    scenes, objects = (WorldItems(world, kind, 16) for kind in ("scene", "object"))
    assert len(scenes) == 9 and scenes.may_ask(0) and "object_mask" not in scenes.channels
    assert len(set(objects.labels)) == 17 and {"object_mask", "object_box"} < {*objects.channels}
    assert set(scenes.views(0)) == {1 + v for v in range(world.num_trained_latents)}
    np.testing.assert_array_equal(scenes.read(4, 7)["edge"], world.draw(4, [6], 16)[1]["edge"])
    with pytest.raises(UserError, match="split test"):
        WorldItems(WorldSource(WorldConfig()), "scene", 16)


def test_controls_are_left_out_where_the_data_have_no_other_task():
    data = Squares()
    data.channels = ("image", "out")  # type: ignore[assignment]
    assert set(cases(data).case(0).prompts) == {RIGHT, SHUFFLED, NONE} and WRONG_TASK in cases().case(0).prompts
    assert missing_controls([cases(data)]) == {WRONG_TASK: {"out": "none: the pictures have channels of no other task"}}
    assert missing_controls([cases()]) == {}
    of_one_class = cases(data, same_label=True)
    assert WRONG_TASK in of_one_class.case(0).prompts and missing_controls([of_one_class]) == {}
    data.labels = ["a"] * len(data)
    (why,) = missing_controls([cases(data, same_label=True)])[WRONG_TASK].values()
    assert why.endswith("of no other task, and pairs enough of no other class")
