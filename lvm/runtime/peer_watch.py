"""The ranks of a run watch each other: one that is gone, stopped or stuck is named, and all end.

    gone            its process is no more, which its host sees at once; or a collective failed, and it beats no more.
    stopped         no beats for `silent_seconds`. One of the same host is made to write down its stacks and killed; of
                    one of another host the last beat is shown.
    stuck           its threads live but the loop gets nowhere for `hung_seconds`. All wait for it: it is the one that
                    went through the fewest phases, and of those that are equal one that is in no collective.

Whoever finds it prints rank, phase, step and stacks; then every rank ends with one line, that of who found it first
(`Word`), and says there that it does: a rank that ended because of another is blamed by nobody. Time in which this
process was itself suspended (a suspended job) counts as no time. After that, and on rank 0 always, the lease is looked
at: a rank whose run was taken over meanwhile ends before it writes anything.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist

from lvm.runtime import whereabouts
from lvm.runtime.distributed import Distributed, LostPeer, ends_too, tells_of_lost_peer
from lvm.runtime.lease import process_start
from lvm.runtime.whereabouts import Whereabouts

EXIT_CODE = 1  # not the user's error: what restarts runs shall do so
FIRST_TIME = 6  # times hung_seconds for a phase that was never gone through before: compilation, cold caches
LONGEST = 3  # times the longest stay in a phase so far
INTERVAL = 2.5  # seconds between beats, or less for short limits
NO_NEIGHBOUR = 1.1  # times silent_seconds before another host speaks of a rank: its neighbour there sees more
BEATS_TO_NAME = 3  # after a collective failed: who does not beat meanwhile is gone
BEATS_TO_READ = 1.5  # that a process gives the others before it ends, if the store ends with it
ROUND = 0.2  # seconds between looks at what is said meanwhile
FOR_THE_REPORT = 8.0  # seconds that others give the one who prints
FOR_THE_LEASE = 5.0  # seconds in which to give it back: its file system may be what is stuck
UNKNOWN = {"step": 0, "phase": "start-up", "stacks": ""}  # of a rank that was never heard
SHOWN = 4  # ranks whose stacks are printed


class Beat(NamedTuple):
    number: int  # so that no two are equal
    phases: int  # entered so far
    overdue: bool  # longer in its phase than allowed


DONE = "done"


class Word:
    """What the ranks tell each other about an end, in the store of their beats; the first word on whose it is stands.

    Every method raises `RuntimeError` where the process of the store is gone.
    """

    def __init__(self, store: Any, ranks: Distributed) -> None:
        self._store, self._ranks = store, ranks

    def verdict(self) -> str | None:
        return self._read("verdict")[0]

    def propose(self, verdict: str, culprits: list[int]) -> str:
        """The verdict that stands: this one, or what another rank said before."""
        return str(json.loads(self._store.compare_set("verdict", "", json.dumps([verdict, culprits])))[0])

    def fails(self, error: BaseException) -> None:
        """This rank ends because of an error of its own."""
        text = " ".join(str(error).split())[:200]
        line = f"{self._ranks.named(self._ranks.rank)} ended with {type(error).__name__}" + (
            f": {text}" if text else ""
        )
        self._store.compare_set("failure", "", json.dumps([line, [self._ranks.rank]]))
        self._store.set(f"leaves {self._ranks.rank}", "failure")

    def failure(self) -> tuple[str | None, list[int]]:
        """The first rank that ended with an error of its own."""
        return self._read("failure")

    def leaves(self) -> None:
        """This rank ends because of another, and has read or said why."""
        self._store.set(f"leaves {self._ranks.rank}", "another")

    def left(self, rank: int) -> bool:
        return bool(self._store.check([f"leaves {rank}"]))

    def all_leave(self) -> bool:
        """All but those that the verdict names."""
        culprits = self._read("verdict")[1]
        others = [rank for rank in range(self._ranks.world_size) if rank not in culprits]
        return bool(self._store.check([f"leaves {rank}" for rank in others]))

    def _read(self, key: str) -> tuple[str | None, list[int]]:
        if not self._store.check([key]):
            return None, []
        line, culprits = json.loads(self._store.get(key))
        return line, culprits


class PeerWatch:
    """A context around the work of all ranks; `silent_seconds` and `hung_seconds` of 0 mean: for ever.

    Rank 0 holds the lease of `run_dir` by then. A rank calls `before_exit` (which releases it) before it ends because
    of another; the one that found a rank that hangs or is stopped calls `after_hang` before, whose text is printed.
    """

    def __init__(
        self,
        ranks: Distributed,
        where: Whereabouts,
        run_dir: Path,
        silent_seconds: float,
        hung_seconds: float,
        before_exit: Callable[[], None] = lambda: None,
        after_hang: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._ranks, self._where, self._run_dir, self._silent = ranks, where, run_dir, silent_seconds
        self._before_exit, self._after_hang = before_exit, after_hang
        limits = [seconds for seconds in (silent_seconds, hung_seconds) if seconds > 0]
        self._interval = min(INTERVAL, *(seconds / 5 for seconds in limits)) if limits else 0.0
        self._done = threading.Event()
        self._threads: list[threading.Thread] = []
        self._exchanges = 0  # of beats, that the store answered
        self._heard: dict[int, dict[str, Any]] = {}  # where the watched ranks were at their last beat
        self._stay = Stay(hung_seconds)
        self._ending = threading.Lock()
        self._reporting = threading.Event()
        self._asking = threading.Event()  # the main thread asks who is lost, and will end this process
        self._decided = False  # it knows
        self._to_kill: list[tuple[int, str | None]] = []

    def __enter__(self) -> "PeerWatch":
        where = self._where
        if not self._interval:
            return self
        self._lost_run = TakenOver(self._run_dir / "lease.json", self._ranks)
        where.is_ours = self._end_if_taken_over
        where.open()
        self._files = self._ranks.gather(where.file)
        self._watched = watched_by(self._ranks.rank, [host for host, *_ in self._ranks.processes], self._silent)
        if self._ranks.world_size > 1:
            store: Any = dist.distributed_c10d._get_default_store()
            # A connection of its own: a wait of the main thread on the other would hold up the beats. When the process
            # of the store is stopped, torch's calls on it return never, whatever their timeout: `_look_after` sees it.
            store = store.clone()
            store.set_timeout(timedelta(days=7))
        else:
            store = dist.HashStore()
        self._store = dist.PrefixStore("peers", store)
        self._word = Word(self._store, self._ranks)
        where.patience = 2 * self._interval + 1.0
        for name, target in (("peers", self._beat), ("watch", self._look_after), ("lease", self._look_at_lease)):
            self._threads.append(threading.Thread(target=target, name=name, daemon=True))
            self._threads[-1].start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        lost = self._after(error) if error is not None and self._threads and self._ranks.world_size > 1 else None
        self._done.set()
        self._where.attended = whereabouts.NEVER
        for thread in self._threads:
            thread.join(None if thread.name == "watch" else FOR_THE_REPORT)
        self._where.close()
        if self._threads and kind is None:
            with contextlib.suppress(RuntimeError):  # rank 0, whose process holds it, may have ended before
                self._store.set(str(self._ranks.rank), DONE)
        if lost is not None:
            raise LostPeer(ends_too(lost, self._ranks.rank)) from error

    # The main thread, when it fails.

    def _after(self, error: BaseException) -> str | None:
        """Whose fault it is that this rank ends, if it is another's; the others are told that it ends."""
        lost = tells_of_lost_peer(error)
        if not lost and not isinstance(error, dist.DistError):
            with contextlib.suppress(RuntimeError):
                self._word.fails(error)
            return None
        self._asking.set()
        verdict = self._who_is_lost(error if lost else None)
        with self._ending:  # else the watch ends this process
            self._decided = True
        self._take_leave(self._ranks.is_main).join(BEATS_TO_READ * self._interval)
        return verdict

    def _who_is_lost(self, error: BaseException | None) -> str | None:
        """Who is known to this host or to another rank, or beats no more; None for nobody, and without `error`."""
        word, ranks = self._word, self._ranks
        began = answered = time.monotonic()
        failure: str | None = None
        try:
            before = self._newest_beats()
            while time.monotonic() - began < BEATS_TO_NAME * self._interval or self._reporting.is_set():
                if (verdict := word.verdict()) is not None:
                    return verdict
                if gone := [rank for rank in ranks.ended() if self._ended_unasked(rank)]:
                    return word.propose(self._names(gone, "gone"), gone)
                failure, by = word.failure()
                answered = time.monotonic()
                time.sleep(min(ROUND, self._interval / 5))
            beats = self._newest_beats()
            silent = [rank for rank, beat in beats.items() if beat == before[rank] and rank != ranks.rank]
            if silent := [rank for rank in silent if beats[rank] != DONE.encode() and not word.left(rank)]:
                return word.propose(self._names(silent, "gone or out of reach, without any sign of life"), silent)
            if failure is not None:
                return word.propose(failure, by)
            if error is None:
                return None
            text = " ".join(str(error).split())[:200]
            return word.propose(f"a connection between ranks failed though all of them live ({text})", [])
        except RuntimeError:
            if failure is not None or answered - began < 1:
                return failure or f"{ranks.named(0)}, or what launched it, is gone"
            return "a rank is gone, and so is the process group's store, before anybody could say which"

    def _newest_beats(self) -> dict[int, bytes]:
        """Of all ranks; empty of one that has not begun."""
        keys = [str(rank) for rank in range(self._ranks.world_size)]
        if self._store.check(keys):
            return dict(enumerate(self._store.multi_get(keys)))
        return {rank: self._newest_beat(rank) for rank in range(self._ranks.world_size)}

    def _newest_beat(self, rank: int) -> bytes:
        return self._store.get(str(rank)) if self._store.check([str(rank)]) else b""

    def _ended_unasked(self, rank: int) -> bool:
        """Whether a process that is gone was neither done nor ended for a reason that it told."""
        return self._newest_beat(rank) != DONE.encode() and not self._word.left(rank)

    def _names(self, ranks: list[int], state: str) -> str:
        more = [f"{len(ranks) - SHOWN} more ranks"] if len(ranks) > SHOWN else []
        names = [*map(self._ranks.named, ranks[:SHOWN]), *more]
        return f"{' and '.join(names)} {'is' if len(ranks) == 1 else 'are'} {state}"

    def _take_leave(self, last: bool) -> threading.Thread:
        """A thread that says that this rank ends, and goes on until all do if it must be the `last`.

        A thread, since who calls is to wait so long and no longer: a store that is stopped returns never.
        """

        def leave() -> None:
            until = time.monotonic() + BEATS_TO_READ * self._interval
            with contextlib.suppress(RuntimeError):  # of a store that is gone nobody reads anything
                self._word.leaves()
                while last and not self._word.all_leave() and time.monotonic() < until:
                    time.sleep(min(ROUND, self._interval / 5))

        thread = threading.Thread(target=leave, daemon=True)
        thread.start()
        return thread

    # One thread looks at the lease: when the file system is what is stuck, it is too, and the others see that.

    def _look_at_lease(self) -> None:
        clock = Clock(self._interval)
        while not self._done.wait(self._interval):
            _, suspended = clock.passed()
            if suspended or self._ranks.is_main:
                self._end_if_taken_over()
            self._where.attended = time.monotonic()

    # One looks at this process alone and at the clock.

    def _look_after(self) -> None:
        clock, exchanges, unanswered = Clock(self._interval), 0, 0.0
        while not self._done.wait(self._interval):
            passed, _ = clock.passed()
            self._stay.look(self._where, passed)
            unanswered = unanswered + passed if self._exchanges == exchanges else 0.0
            exchanges = self._exchanges
            if 0 < self._silent < unanswered and not self._reporting.is_set():
                self._store_is_silent(unanswered)
            elif 0 < self._silent < unanswered - 1.5 * FOR_THE_REPORT:  # the report itself waits for the store
                self._end(f"{self._ranks.named(0)}, or what launched it, is stopped", tell=False)

    def _store_is_silent(self, seconds: float) -> None:
        """It is in rank 0's process, or in that of its launcher."""
        host, pid, _ = self._ranks.processes[0]
        stopped = host == socket.gethostname() and is_stopped(pid)
        if 0 in self._watched and (stopped or host != socket.gethostname()):
            why = f"the process group's store, which it holds, is silent for {seconds:.0f} s"
            self._found([0], why, tell=False)
        time.sleep(FOR_THE_REPORT)
        self._end(f"{self._ranks.named(0)}, or what launched it, is stopped", tell=False)

    def _end_if_taken_over(self) -> None:
        other = self._lost_run()
        if other is not None:
            # What is in the run folder is another's now, even if it is the file that this process prints to.
            if not prints_into(self._run_dir):
                print(f"error: {other}; this process wrote nothing more", file=sys.stderr, flush=True)
            os._exit(EXIT_CODE)

    # The third speaks with the other ranks.

    def _beat(self) -> None:
        silence = {rank: Silence(limit) for rank, limit in self._watched.items()}
        clock = Clock(self._interval)
        while not self._done.wait(self._interval):
            passed, _ = clock.passed()
            try:
                self._say()
                beats = self._hear(list(silence))
                verdict = self._word.verdict()
                if verdict is None and not self._asking.is_set():
                    self._look_for_others(silence, beats, passed)
            except RuntimeError:  # the store's process is gone
                lost = f"{self._ranks.named(0)}, or what launched it, is gone"
                verdict = None if self._where.phase == "ending" else lost
            self._exchanges += 1
            if verdict is not None and not self._done.is_set() and not self._asking.is_set():
                self._end(verdict)

    def _look_for_others(self, silence: Mapping[int, "Silence"], beats: Mapping[int, bytes], passed: float) -> None:
        ended = self._ranks.ended()
        for rank, quiet in silence.items():
            if quiet.too_long(beats[rank], passed):
                self._found([rank], f"no sign of life for {quiet.seconds:.0f} s")
            elif rank in ended and self._ended_unasked(rank):
                self._found([rank], "its process is gone")
        if self._stay.overdue:
            self._judge()

    def _say(self) -> None:
        where, rank = self._where, self._ranks.rank
        at = {"step": where.step, "phase": where.phase, "stacks": whereabouts.sample_stacks()}
        self._store.set(f"at {rank}", json.dumps(at))
        beat = Beat(time.monotonic_ns(), where.count, self._stay.overdue)
        self._store.set(str(rank), json.dumps(beat))

    def _hear(self, of: Sequence[int]) -> dict[int, bytes]:
        """The newest beats; empty of a rank that has not begun."""
        self._heard |= {rank: self._at(rank) for rank in of}
        return {rank: self._newest_beat(rank) for rank in of}

    def _judge(self) -> None:
        """This rank makes no progress; it may be the fault of another, which then is late by its own measure too."""
        everybody = [str(rank) for rank in range(self._ranks.world_size)]
        if not self._store.check(everybody):
            return
        texts = dict(enumerate(self._store.multi_get(everybody)))
        beats = {rank: Beat(*json.loads(text)) for rank, text in texts.items() if text.decode() != DONE}
        late = holding_up(beats)
        if late and self._store.add("judges", 1) == 1:
            at_work = [rank for rank in late[:64] if not whereabouts.waits_for_others(self._at(rank)["stacks"])]
            self._found(at_work or late, f"no progress for {self._stay.seconds:.0f} s")

    def _at(self, rank: int) -> dict[str, Any]:
        key = f"at {rank}"
        return json.loads(self._store.get(key)) if self._store.check([key]) else UNKNOWN

    # What follows when one is found.

    def _found(self, culprits: list[int], why: str, tell: bool = True) -> None:
        self._reporting.set()
        texts = self._report(culprits, why, ask=tell)
        more = f" and {len(culprits) - len(texts)} more ranks" if len(culprits) > len(texts) else ""
        verdict = "; ".join(texts) + more
        if not all(" is gone" in text for text in texts):
            note = self._after_hang()
            if note:
                print(note, file=sys.stderr, flush=True)
        if tell:
            verdict = self._proposed(verdict, culprits)
        self._end(verdict, tell)

    def _proposed(self, verdict: str, culprits: list[int]) -> str:
        """The verdict that stands; this one if the store does not answer: the report may have stopped its process."""
        stands = [verdict]

        def propose() -> None:
            with contextlib.suppress(RuntimeError):  # of a store that is gone nobody reads anything
                stands.append(self._word.propose(verdict, culprits))

        thread = threading.Thread(target=propose, daemon=True)
        thread.start()
        thread.join(BEATS_TO_READ * self._interval)
        return stands[-1]

    def _report(self, culprits: list[int], why: str, ask: bool) -> list[str]:
        """Print where they are; a line about each that was printed. `ask` the store, if it answers."""
        texts = []
        for rank in culprits[:SHOWN]:
            state, at = self._state_and_place(rank, ask)
            place = whereabouts.in_words(at["step"], at["phase"], at["stacks"])
            texts.append(f"{self._ranks.named(rank)} {state} {place}")
            print(f"{texts[-1]}: {why}; its stacks:\n{at['stacks']}", file=sys.stderr, flush=True)
        return texts

    def _state_and_place(self, rank: int, ask: bool) -> tuple[str, dict[str, Any]]:
        _, pid, start = self._ranks.processes[rank]
        heard = self._heard.get(rank) or (self._at(rank) if ask else UNKNOWN)
        if not self._ranks.sees(rank) or rank not in self._watched:
            return "hangs", heard
        if process_start(pid) != start:
            return "is gone; it was last seen", heard
        state = "is stopped" if is_stopped(pid) else "hangs"
        try:
            step, phase = whereabouts.read_whereabouts(pid, self._files[rank])
            stacks = whereabouts.stacks_of(pid, self._files[rank])
        except (OSError, ValueError):  # of another user, in another container, or it has closed that file
            return state, heard
        self._to_kill.append((pid, start))
        return state, {"step": step, "phase": phase, "stacks": stacks or heard["stacks"]}

    def _end(self, verdict: str, tell: bool = True) -> None:
        """The main thread may wait in a collective for ever, so the process ends from here."""
        with self._ending:
            if self._decided:
                return
            release = threading.Thread(target=self._before_exit, daemon=True)
            release.start()
            # What is killed below may hold the store, as rank 0 does.
            leave = self._take_leave(self._ranks.is_main or bool(self._to_kill)) if tell else None
            release.join(FOR_THE_LEASE)
            print(f"error: {ends_too(verdict, self._ranks.rank)}", file=sys.stderr, flush=True)
            if leave is not None:
                leave.join(BEATS_TO_READ * self._interval)
            for pid, start in self._to_kill:  # so that they write nothing later
                whereabouts.kill(pid, start)
            os._exit(EXIT_CODE)


def holding_up(beats: Mapping[int, Beat]) -> list[int]:
    """Of ranks that wait for each other those that all wait for, if each of them is late by its own measure."""
    least = min((beat.phases for beat in beats.values()), default=0)
    last = [rank for rank, beat in beats.items() if beat.phases == least]
    return last if all(beats[rank].overdue for rank in last) else []


def watched_by(rank: int, hosts: Sequence[str], seconds: float) -> dict[int, float]:
    """The ranks whose beats `rank` looks for, each with the silence after which it speaks.

    The next one of the same host; the first of each host also looks after the first of the next host.
    """
    here = [other for other, host in enumerate(hosts) if host == hosts[rank]]
    after = here[(here.index(rank) + 1) % len(here)]
    watched = {after: seconds} if after != rank else {}
    firsts = [hosts.index(host) for host in dict.fromkeys(hosts)]
    if rank in firsts and len(firsts) > 1:
        other = firsts[(firsts.index(rank) + 1) % len(firsts)]
        watched[other] = seconds * (NO_NEIGHBOUR if hosts.count(hosts[other]) > 1 else 1)
    return watched


def is_stopped(pid: int) -> bool:
    """Whether a process of this host was stopped by a signal or a debugger."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    return False


def prints_into(folder: Path | None) -> bool:
    """Whether this process's errors go to a file in `folder`."""
    with contextlib.suppress(OSError):
        return folder is not None and Path(os.readlink("/proc/self/fd/2")).is_relative_to(folder.resolve())
    return False


class TakenOver:
    """Whether another incarnation has the run now; every rank may ask. A lease that cannot be read is not lost."""

    def __init__(self, lease: Path, ranks: Distributed) -> None:
        self._lease = lease
        self._token = ranks.broadcast(self._read().get("token") if ranks.is_main else None)

    def _read(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads(self._lease.read_text()))
        return {}

    def __call__(self) -> str | None:
        """A line, if so."""
        owner = self._read()
        if owner.get("token", self._token) == self._token:
            return None
        return (
            f"the run was taken over by pid {owner.get('pid')} on {owner.get('host')} at {owner.get('since')} "
            f"({self._lease}) while this process was suspended or out of sight"
        )


class Clock:
    """Time that passed since the last look, as far as this process was there to see it."""

    def __init__(self, interval: float) -> None:
        self._most, self._last = 2 * interval, time.monotonic()

    def passed(self) -> tuple[float, bool]:
        """(seconds, whether it was longer than that: suspended, or short of processor time)"""
        now = time.monotonic()
        elapsed, self._last = now - self._last, now
        return min(elapsed, self._most), elapsed > self._most


class Silence:
    """For how long a rank's beat has been the same."""

    def __init__(self, limit: float) -> None:
        self._limit, self._beat, self.seconds = limit, b"", 0.0

    def too_long(self, beat: bytes, passed: float) -> bool:
        self.seconds = self.seconds + passed if beat == self._beat != DONE.encode() else 0.0
        self._beat = beat
        return 0 < self._limit < self.seconds


class Stay:
    """How long this rank has been where it is, and whether that is longer than it may be."""

    def __init__(self, hung_seconds: float) -> None:
        self._hung, self._count, self._phase = hung_seconds, -1, ""
        self._longest: dict[str, float] = {}
        self.seconds, self.overdue = 0.0, False

    def look(self, where: Whereabouts, passed: float) -> None:
        if where.count != self._count:
            self._longest[self._phase] = max(self._longest.get(self._phase, 0.0), self.seconds)
            self._count, self._phase, self.seconds = where.count, where.phase, 0.0
        else:
            self.seconds += passed
        usual = self._hung * (1 if self._phase in where.left else FIRST_TIME)
        self.overdue = self._hung > 0 and self.seconds > max(usual, LONGEST * self._longest.get(self._phase, 0.0))
