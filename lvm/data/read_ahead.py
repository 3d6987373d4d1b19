"""Tars of remote stores, fetched before the windows that need them are read. A `WindowLoader` has one where it helps.

Which shards the windows ahead are read from is known without reading a token (`TokenPlan.shards`). As many of them as
the cache holds are fetched, those needed first before the others, by a few threads. What is needed next is never
dropped for what is needed later: where the bound is reached, reading ahead waits until windows were read.

An entry reads the tars of one block of `shuffle_block` units and then those of another. A cache that holds both, for
each entry 2 (shuffle_block / units of a tar + 1) tars, never makes the reader wait; a smaller one does at such borders.
"""

import contextlib
import math
import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from lvm.data.base import Plan
from lvm.runtime import UserError
from lvm.store import TokenStore
from lvm.store.remote import Stopped

HORIZON = 4096  # windows, of all ranks, that are looked ahead at most
LEAST_STEPS = 4  # of a step of very many windows
LOOKED_AT = 64  # windows whose shards are found together, and forgotten together when they were read
THREADS = 4  # tars fetched at once, each by several requests
CLOSING = 5.0  # seconds that `close` waits for requests under way
PATIENCE = 0.5  # seconds until a tar is asked for again that another process fetches, or had no room


@dataclass(frozen=True)
class Tar:
    """Equal for two sources that are of one store."""

    path: Path
    bytes: int
    store: TokenStore = field(compare=False)
    shard: int = field(compare=False)


def remote_stores(plan: Plan) -> dict[str, TokenStore]:
    """Source -> store, of those whose tars are fetched."""
    stores = {name: store for name, store in plan.stores.items() if isinstance(store, TokenStore)}
    return {name: store for name, store in stores.items() if store.cache_bytes is not None}


class ReadAhead:
    """Runs from its making to `close`; `advance` says how far the reader has come.

    `runs(w, s)` gives the windows that this reader reads in the `s` steps from window `w` on, as (first, how many).
    What cannot be fetched is left to the reader, who needs it later and then says why it is missing.
    """

    def __init__(
        self,
        plan: Plan,
        runs: Callable[[int, int], Iterable[tuple[int, int]]],
        windows_per_step: int,
        next_window: int,
        horizon: int = HORIZON,
        threads: int = THREADS,
    ):
        self._plan = plan
        self._runs, self._windows_per_step, self._threads = runs, windows_per_step, threads
        self._stores = remote_stores(plan)
        self._bound = min(store.cache_bytes or 0 for store in self._stores.values())
        self._largest = max(shard["bytes"] for store in self._stores.values() for shard in store.info["shards"])
        self._horizon = max(horizon, LEAST_STEPS * windows_per_step)
        self._steps = max(1, min(LOOKED_AT, self._horizon) // windows_per_step)  # looked at together
        self._read = self._seen = next_window
        self._ahead: deque[tuple[int, dict[Tar, None]]] = deque()  # (first window after them, tars that steps need)
        self._fetching: dict[Tar, Future[bool]] = {}
        self._settled: dict[Tar, float] = {}  # there, or given up: not to be asked for before this time
        self._touched = 0.0
        self.problem: BaseException | None = None  # a mistake of the program
        self._changed, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="read ahead", daemon=True)
        self._thread.start()

    def advance(self, next_window: int) -> None:
        """The windows before `next_window` were read."""
        self._read = next_window
        if not self._ahead or self._ahead[0][0] <= next_window:
            self._changed.set()

    def close(self) -> None:
        """Fetch nothing more. Requests under way are waited for, but not long: their threads end with the program."""
        self._stop.set()
        self._changed.set()
        self._thread.join()
        wait(self._fetching.values(), timeout=CLOSING)

    def _run(self) -> None:
        try:
            self._warn_of_small_cache()
            while not self._stop.is_set():
                self._changed.clear()
                more = self._look_ahead()
                self._collect()
                self._fetch()
                if not more:
                    self._changed.wait(PATIENCE)
        except UserError:
            pass  # the reader meets it too
        except BaseException as error:
            self.problem = error

    def _look_ahead(self) -> bool:
        """Forget what was read and look at a few more steps; whether there are more within the horizon."""
        while self._ahead and self._ahead[0][0] <= self._read:
            self._ahead.popleft()
        if self._seen < self._read:  # overtaken
            self._seen = self._read
        if self._seen >= self._read + self._horizon:
            return False
        tars = self._tars(self._seen, self._steps)
        self._seen += self._steps * self._windows_per_step
        self._ahead.append((self._seen, tars))
        return True

    def _tars(self, window: int, steps: int) -> dict[Tar, None]:
        """What the reader needs for the steps from a window on, in the order of the first use."""
        tars: dict[Tar, None] = {}
        for first, count in self._runs(window, steps):
            for source, shard in self._plan.shards(first, count):
                if source in self._stores:
                    store = self._stores[source]
                    tars[Tar(*store.tar(shard), store, shard)] = None
        return tars

    def needed(self) -> dict[Tar, None]:
        """As many tars of the windows ahead as the cache holds beside one more, in the order of their first use."""
        room = self._bound - self._largest
        needed: dict[Tar, None] = {}
        for tar in dict.fromkeys(chain(*(tars for _, tars in self._ahead))):
            room -= tar.bytes
            if room < 0:
                break
            needed[tar] = None
        return needed

    def _fetch(self) -> None:
        needed = self.needed()
        self._settled = {tar: until for tar, until in self._settled.items() if tar in needed}
        self._touch(needed)
        paths = {tar.path for tar in needed}
        for tar in self._wanted(needed):
            if len(self._fetching) == self._threads:
                break
            self._fetching[tar] = Future()
            threading.Thread(target=self._bring, args=(tar, paths, self._fetching[tar]), daemon=True).start()

    def _touch(self, needed: dict[Tar, None]) -> None:
        """Make them the last to leave the cache, whoever makes room there; what is needed first last of all."""
        if time.monotonic() < self._touched + PATIENCE:
            return
        self._touched = time.monotonic()
        for tar in reversed(needed):
            with contextlib.suppress(FileNotFoundError):
                os.utime(tar.path)

    def _bring(self, tar: Tar, paths: set[Path], fetched: "Future[bool]") -> None:
        try:
            fetched.set_result(tar.store.bring(tar.shard, paths, self._stop.is_set))
        except BaseException as error:
            fetched.set_exception(error)
        self._changed.set()

    def _wanted(self, needed: dict[Tar, None]) -> Iterator[Tar]:
        now = time.monotonic()
        for tar in needed:
            if tar in self._fetching or self._settled.get(tar, 0) > now:
                continue
            if tar.path.is_file():
                self._settled[tar] = math.inf
            else:
                yield tar

    def _collect(self) -> None:
        """Look at what the threads have done."""
        for tar, future in list(self._fetching.items()):
            if future.done():
                del self._fetching[tar]
                error = future.exception()
                if isinstance(error, UserError | OSError):
                    self._settled[tar] = math.inf
                elif isinstance(error, Stopped):  # `close` was called
                    pass
                else:
                    self._settled[tar] = math.inf if future.result() else time.monotonic() + PATIENCE

    def _warn_of_small_cache(self) -> None:
        tars = self._tars(self._read, 1)
        if (total := sum(tar.bytes for tar in tars)) > self._bound:
            warnings.warn(
                f"one step reads {len(tars)} tars of {total} bytes together, and the cache holds {self._bound}: each "
                "is fetched for every step; raise LVM_REMOTE_CACHE_BYTES or lower data.shuffle_block",
                stacklevel=2,
            )
