"""A store in a bucket that is 50 ms away: python -m benchmarks.remote [seconds=30 pace=1.1e6 latency=0.05 json=FILE]

A server of S3 (moto) runs in a process of its own behind a proxy that holds each request back for `latency` seconds.
Of the store's 50 tars the cache holds 20, so they are fetched again and again. Ours: `WindowLoader` with its tars
read ahead. The alternative: the same without. Limit: the same store on this machine. Each is read as training does, a
step of `pace` tokens/s at a time, with the share of the time that was spent waiting for windows after the first step;
and, as `unpaced`, as fast as it goes, when the server takes part of the same cores.

Needs the extra `bench`: pip install -e '.[bench]'.
"""

import asyncio
import contextlib
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.data import Options as StoreOptions
from benchmarks.data import write_store
from lvm.commands._options import options_from
from lvm.commands.bench import measured, result, table
from lvm.data import TokenPlan, WindowLoader
from lvm.data.read_ahead import HORIZON
from lvm.runtime import UserError, exit_with_one_line, write_json
from lvm.store import TokenStore

BUCKET = "bench"


@dataclass(frozen=True)
class Options:
    pictures: int = 102_400  # of each of two channels in the store
    shard_pictures: int = 2048  # of each of two channels in a tar
    shuffle_block: int = 4096  # neighbouring pictures shuffled together
    cached_tars: int = 20  # what the cache holds at most
    seq_len: int = 4096
    batch_size: int = 8  # windows a step
    seconds: float = 30.0  # of each reading
    pace: float = 1.1e6  # tokens/s that a training step takes in
    latency: float = 0.05  # seconds, of each request
    json: str = ""  # file for the result


def make_plan(store: TokenStore, options: Options) -> TokenPlan:
    """Single pictures of both channels, and sentences of eight pairs."""
    pairs = {"recipe": "pairs", "input": "image", "output": "depth", "agree": "none"}
    entries = {
        "image": {"source": "bucket", "weight": 1.0, "recipe": "single", "channel": "image"},
        "depth": {"source": "bucket", "weight": 1.0, "recipe": "single", "channel": "depth"},
        "pairs": {"source": "bucket", "weight": 1.0, **pairs},
    }
    config = {
        "seq_len": options.seq_len,
        "shuffle_block": options.shuffle_block,
        "sources": {"bucket": {}},
        "entries": entries,
    }
    return TokenPlan.from_config(config, {"bucket": store})


# The server.


@dataclass
class Traffic:
    requests: int = 0
    bytes: int = 0


async def forward_late(reader: Any, writer: Any, seconds: float, traffic: Traffic) -> None:
    """From the client to the server: each piece arrives `seconds` later, the next one not waiting for it."""
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def deliver() -> None:
        while True:
            due, content = await under_way.get()
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if not content:
                writer.close()
                return
            writer.write(content)
            await writer.drain()

    delivery = asyncio.create_task(deliver())
    while content := await reader.read(1 << 16):
        traffic.requests += content.startswith((b"GET ", b"HEAD "))
        await under_way.put((time.monotonic() + seconds, content))
    await under_way.put((0.0, b""))
    await delivery


async def forward(reader: Any, writer: Any, traffic: Traffic) -> None:
    while content := await reader.read(1 << 18):
        traffic.bytes += len(content)
        writer.write(content)
        await writer.drain()
    writer.close()


async def proxy(server_port: int, latency: float, connection: Connection) -> None:
    """Serve on a port that is sent to `connection`; whatever arrives there is answered with the traffic so far."""
    traffic = Traffic()

    async def serve(reader: Any, writer: Any) -> None:
        with contextlib.suppress(ConnectionError):
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", server_port)
            await asyncio.gather(
                forward_late(reader, server_writer, latency, traffic), forward(server_reader, writer, traffic)
            )

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    connection.send((server_port, server.sockets[0].getsockname()[1]))
    while await asyncio.to_thread(connection.recv):
        connection.send((traffic.requests, traffic.bytes))


def serve(latency: float, connection: Connection) -> None:
    """The process of the server."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    asyncio.run(proxy(server.get_host_and_port()[1], latency, connection))


class Server:
    """Addresses of the server, direct and late, and what went through the late one."""

    def __init__(self, connection: Connection):
        self._connection = connection
        direct, late = connection.recv()
        self.direct, self.late = f"http://127.0.0.1:{direct}", f"http://127.0.0.1:{late}"

    def traffic(self) -> Traffic:
        self._connection.send(True)
        return Traffic(*self._connection.recv())


@contextmanager
def served(latency: float) -> Iterator[Server]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(latency, there), daemon=True)
    process.start()
    there.close()
    try:
        yield Server(here)
    finally:
        process.kill()
        process.join()


def use_endpoint(address: str) -> dict[str, Any]:
    """What fsspec is to use for s3://."""
    from fsspec.config import conf

    conf["s3"] = {"endpoint_url": address, "key": "bench", "secret": "bench"}
    return conf["s3"]


def upload(folder: Path, server: Server) -> None:
    import s3fs

    files = s3fs.S3FileSystem(**use_endpoint(server.direct))
    files.mkdir(BUCKET)
    files.put(f"{folder}/", f"{BUCKET}/store/", recursive=True)
    use_endpoint(server.late)


# The reader.


def read(plan: TokenPlan, options: Options, seconds: float, pace: float | None, horizon: int) -> dict[str, Any]:
    """Steps for so long; with a pace each is followed by the rest of the time that training would take."""
    tokens_per_step = options.batch_size * options.seq_len
    start = time.perf_counter()
    with WindowLoader(plan, options.batch_size, read_ahead=horizon) as loader:
        next(loader)
        begin = time.perf_counter()
        waits = []
        while (asked := time.perf_counter()) < begin + seconds:
            next(loader)
            waits.append(time.perf_counter() - asked)
            if pace:
                time.sleep(tokens_per_step / pace)
        spent = time.perf_counter() - begin
    return {
        "tokens": len(waits) * tokens_per_step,
        "seconds": spent,
        "tokens_per_second": len(waits) * tokens_per_step / spent,
        "waited_share": sum(waits) / spent,
        "longest_wait_seconds": max(waits),
        "seconds_to_first_batch": begin - start,
    }


def read_both_ways(address: str, options: Options, cache_bytes: int, horizon: int, server: Server) -> dict[str, Any]:
    """Open the store with an empty cache, then read it as fast as it goes and at training's pace."""
    found: dict[str, Any] = {}
    for name, pace in (("unpaced", None), ("at_pace", options.pace)):
        with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, LVM_CACHE=cache):
            before, start = server.traffic(), time.perf_counter()
            plan = make_plan(TokenStore(address, cache_bytes=cache_bytes), options)
            opened, seconds_to_open = server.traffic(), time.perf_counter() - start
            one = read(plan, options, options.seconds, pace, horizon)
            after = server.traffic()
            kept = sum(path.stat().st_size for path in Path(cache).rglob("*.tar"))
            one |= {
                "seconds_to_open": seconds_to_open,
                "requests_to_open": opened.requests - before.requests,
                "requests_per_second": (after.requests - opened.requests) / one["seconds"],
                "bytes_fetched": after.bytes - opened.bytes,
                "bytes_fetched_per_byte_used": (after.bytes - opened.bytes) / (2 * one["tokens"]),
                "bytes_in_cache_at_the_end": kept,
            }
        found[name] = one
        print(
            f"  {name}: {one['tokens_per_second']:,.0f} tokens/s, waited {one['waited_share']:.1%}, first batch after "
            f"{one['seconds_to_first_batch']:.2f} s, opened in {one['seconds_to_open']:.2f} s and "
            f"{one['requests_to_open']} requests, {one['requests_per_second']:.1f} requests/s, "
            f"{one['bytes_fetched_per_byte_used']:.2f} bytes fetched a byte used",
            flush=True,
        )
    return found


def run(options: Options) -> dict[str, Any]:
    if min(options.seconds, options.pace, options.latency) <= 0:
        raise UserError("seconds, pace and latency must be above 0")
    found, whats = {}, {}
    with tempfile.TemporaryDirectory() as temporary, served(options.latency) as server:
        folder = Path(temporary) / "store"
        store = write_store(folder, StoreOptions(pictures=options.pictures), options.shard_pictures)
        upload(folder, server)
        cache_bytes = options.cached_tars * max(shard["bytes"] for shard in store.info["shards"])
        remote = f"s3://{BUCKET}/store"
        for name, what, address, horizon in (
            ("limit", "the store on this machine", str(folder), 0),
            ("ours", "tars read ahead", remote, HORIZON),
            ("alternative", "tars fetched when needed", remote, 0),
        ):
            print(what, flush=True)
            whats[name] = what
            found[name] = read_both_ways(address, options, cache_bytes, horizon, server)
        rows = {
            name: measured(whats[name], one["at_pace"]["tokens"], "tokens/s", [one["at_pace"]["seconds"]], **one)
            for name, one in found.items()
        }
        return result(
            "remote",
            options,
            rows["ours"],
            rows["alternative"],
            rows["limit"],
            store_bytes=sum(shard["bytes"] for shard in store.info["shards"]),
            tars=len(store.shards),
            cache_bytes=cache_bytes,
            load_average=os.getloadavg(),
        )


def main() -> None:
    options = options_from(Options, sys.argv[1:])
    found = run(options)
    print(table(found))
    if options.json:
        write_json(options.json, found)


if __name__ == "__main__":
    exit_with_one_line(main)
