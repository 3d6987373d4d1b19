"""Stop signals set a flag, and all ranks agree on the step at which they stop."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from lvm.runtime.distributed import Distributed, LostPeer, RankError, StopAgreement, lost_peers_named
from lvm.runtime.signals import STOP_SIGNALS, StopFlag


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_signal_sets_the_flag_and_the_former_handler_returns(number):
    former = signal.getsignal(number)
    with StopFlag() as flag:
        assert not flag.requested
        os.kill(os.getpid(), number)
        assert flag.requested and flag.received == number
    assert signal.getsignal(number) == former


def test_a_second_interrupt_interrupts(monkeypatch):
    with StopFlag() as flag:
        os.kill(os.getpid(), signal.SIGINT)
        assert flag.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_workers_ignore_stop_signals():
    script = (
        "import os, signal; from lvm.runtime.signals import ignore_signals, STOP_SIGNALS; ignore_signals(0)\n"
        "for number in STOP_SIGNALS: os.kill(os.getpid(), number)\n"
        "print('alive')"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "alive\n"


def test_one_rank_agrees_with_itself_one_step_later():
    stop = StopAgreement(Distributed())
    history = []
    for wanted in (False, True, False, False):
        history.append(stop.agreed())
        stop.submit(wanted)
    assert [*history, stop.agreed()] == [False, False, True, True, True]


def test_one_rank_alone_is_main_and_talks_to_itself():
    alone = Distributed()
    alone.barrier()
    assert (alone.rank, alone.world_size, alone.is_main) == (0, 1, True)
    assert alone.broadcast("x") == "x" and alone.gather(3) == [3]
    alone.together(None)
    with pytest.raises(KeyError):
        alone.together(KeyError("mine"))


RANK = """
import os, sys, time, torch.distributed as dist
from lvm.runtime.distributed import Distributed, RankError, StopAgreement
from lvm.runtime.errors import UserError, end_rank, is_user_error
dist.init_process_group("gloo")
me = Distributed()
assert me.broadcast(["from", me.rank]) == ["from", 0]
assert me.gather(me.rank) == [0, 1]
stop = StopAgreement(me)
for step in range(1000):
    if stop.agreed():
        break
    stop.submit(me.rank == 1 and step >= 3)  # only one rank saw the signal
    time.sleep(0.01 * me.rank)
assert me.gather(step) == [4, 4], step
try:
    me.together(UserError("no such file") if me.rank == 0 else None)
except Exception as error:
    assert is_user_error(error) and "no such file" in str(error)
    assert isinstance(error, RankError) == (me.rank == 1)
else:
    raise AssertionError
dist.destroy_process_group()
end_rank()
"""


def test_two_ranks_stop_at_the_same_step_and_fail_together():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [subprocess.Popen([sys.executable, "-c", RANK], env=common | {"RANK": str(rank)}) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]


def test_the_error_of_another_rank_keeps_whose_it_is_to_mend():
    assert RankError("x", user_error=True).user_error and not RankError("x", user_error=False).user_error


def test_what_another_rank_says_is_not_taken_for_a_lost_rank_whatever_its_words():
    two = Distributed()
    two.world_size = 2
    with pytest.raises(RankError, match="runs/timeout"), lost_peers_named(two):
        raise RankError("rank 0 failed with UserError: runs/timeout/x is missing", user_error=True)
    with pytest.raises(LostPeer), lost_peers_named(two):
        raise RuntimeError("Connection closed by peer")


ENDS_BEFORE_GLOO = """
import os, sys, threading, time, weakref, torch, torch.distributed as dist
from lvm.runtime import exit_with_one_line
from lvm.runtime.distributed import Distributed
rank = int(os.environ["RANK"])
in_a_thread, kept = threading.Event(), []
def let_go():
    if threading.current_thread() is not threading.main_thread():
        in_a_thread.set()
        time.sleep(0.1)  # and then it asks for Python's lock again
def main():
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/meet", rank=rank, world_size=2)
    Distributed()
    kept.extend(dist.new_group([r], backend="gloo") for r in range(2))  # one that nobody holds waits for its threads
    until = time.monotonic() + 60
    while not in_a_thread.is_set() and time.monotonic() < until:
        tensor = torch.ones(1)
        weakref.finalize(tensor, let_go)
        dist.all_reduce(tensor, group=kept[rank], async_op=True).wait()
        del tensor
        in_a_thread.wait(0.001)
    dist.destroy_process_group()
    print("at work" if in_a_thread.is_set() else "idle", flush=True)
    return 7
exit_with_one_line(main)
"""


def test_a_rank_ends_as_it_says_while_a_thread_of_gloo_still_lets_go_of_tensors(tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", ENDS_BEFORE_GLOO, str(tmp_path)],
            env=os.environ | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert [(rank.communicate(timeout=120)[0], rank.returncode) for rank in ranks] == [("at work\n", 7)] * 2


LEAVES = """
import sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from lvm.runtime.errors import exit_with_one_line, is_one_of_many_ranks
is_one_of_many_ranks()
pool = ThreadPoolExecutor(1)
pool.submit(int)
def late():
    time.sleep(0.5)
    open(sys.argv[1], "w").write("submitted")
def main():
    threading.Thread(target=late).start()
    print("x" * 100)
    if sys.argv[2] == "raises":
        raise KeyError("unforeseen")
    return 3
exit_with_one_line(main)
"""


@pytest.mark.parametrize(("how", "code"), [("returns", 3), ("raises", 1)])
def test_a_rank_that_ends_waits_for_its_threads_and_a_closed_pipe_is_no_error(tmp_path, how, code):
    out, into = os.pipe()
    os.close(out)
    command = [sys.executable, "-c", LEAVES, str(tmp_path / "late"), how]
    with os.fdopen(into, "w") as nobody_reads:
        buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
        done = subprocess.run(command, stdout=nobody_reads, stderr=subprocess.PIPE, text=True, timeout=60, env=buffered)
    assert done.returncode == code and (tmp_path / "late").read_text() == "submitted"
    assert ("KeyError: 'unforeseen'" in done.stderr) == (how == "raises") and "BrokenPipe" not in done.stderr
