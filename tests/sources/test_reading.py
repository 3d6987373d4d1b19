"""Reading in several processes gives what reading in one gives, errors included."""

from dataclasses import dataclass

import numpy as np
import pytest

from lvm.runtime import UserError
from lvm.sources import BrokenItem, Item, read_units


@dataclass(frozen=True)
class CountingSource:
    fails_at: int = -1
    error: str = ""
    name: str = "counting"
    channels: tuple[str, ...] = ("image", "depth")

    def __len__(self):
        return 40

    def unit_id(self, i):
        return str(i)

    def fingerprint(self):
        return "counting"

    def read(self, i, size):
        if i == self.fails_at:
            if self.error == "broken":
                raise BrokenItem("a.jpg", "is torn")
            if self.error == "user":
                raise UserError("the disk is not there")
            if self.error == "dies":
                raise SystemExit(3)
            raise KeyError("a bug")
        n = 1 + i % 3
        image = np.full((n, size, size, 3), i, np.uint8)
        items = [
            Item(str(i), str(i), 0, i, {"image": image, "depth": image + 100}, caption=f"number {i}", meta={"n": n})
        ]
        return items if i % 5 else []


def flat(reads):
    found = []
    for unit, items in reads:
        if isinstance(items, BrokenItem):
            found.append((unit, str(items)))
        else:
            for x in items:
                arrays = tuple((c, a.shape, a.tobytes()) for c, a in x.channels.items())
                found.append((unit, x.id, x.group, x.view, x.label, x.caption, x.licence, str(x.meta), arrays))
    return found


def test_processes_yield_the_same_units_in_the_given_order():
    units = [7, 3, *range(10, 40), 5]
    source = CountingSource(fails_at=12, error="broken")
    assert flat(read_units(source, units, 8, workers=2, chunk_units=3)) == flat(read_units(source, units, 8, workers=0))
    reads = list(read_units(source, units, 8, workers=1))
    assert [unit for unit, _ in reads] == units and str(dict(reads)[12]) == "a.jpg: is torn"


@pytest.mark.parametrize(
    "error, raised, message",
    [
        ("user", UserError, "the disk is not there"),
        ("bug", RuntimeError, r"(?s)a process that reads pictures failed.*KeyError: 'a bug'.*units \d+\.\."),
        ("dies", UserError, r"a process that reads pictures ended \(code 3\)"),
    ],
)
def test_errors_of_a_process_are_raised_here(error, raised, message):
    with pytest.raises(raised, match=message):
        list(read_units(CountingSource(20, error), range(40), 8, workers=2))


def test_stopping_early_ends_the_processes():
    reads = read_units(CountingSource(), range(40), 8, workers=2)
    next(reads)
    workers = reads.gi_frame.f_locals["pool"]
    reads.close()
    assert all(worker.process.poll() is not None for worker in workers)
