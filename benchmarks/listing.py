"""Listing a tar on S3: hopping over bodies, streaming past them, and what the walk chooses.

    python benchmarks/listing.py [--mebibytes 64]

Tars of members of one size lie on SeaweedFS, behind a proxy that holds every piece of data back
for 0, 5 and 20 ms, half of it each way. Each is walked three times each way, interleaved; stated
are headers a second (median) and the bytes asked for per header. A tar has at least 24 members, and
always hopping ends after 60. Results go to benchmarks/results/listing.json with commit and machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import queue
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from spine import commit, machine

from igd import storage
from igd.data.hops import Hops
from igd.data.members import ArchiveEnd
from igd.data.tarindex import nothing, walk_headers
from igd.storage import s3

RESULT = Path(__file__).parent / "results" / "listing.json"
SIZES = {"4 KiB": 4 << 10, "100 KiB": 100 << 10, "1 MiB": 1 << 20, "8 MiB": 8 << 20}
LATENCIES_MS = 0, 5, 20
REPEATS = 3
HOPS = 60
BUCKET = "listing"


class AlwaysHop(Hops):
    def prefers_stream(self) -> bool:
        return False


class AlwaysStream(Hops):
    def prefers_stream(self) -> bool:
        return True


WAYS = {"hop": AlwaysHop, "stream": AlwaysStream, "chosen": Hops}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mebibytes", type=int, default=64, help="of each tar, about")
    options = parser.parse_args()
    document: dict[str, Any] = {"commit": commit(), "machine": machine(), "runs": []}
    with server() as endpoint:
        for label, size in SIZES.items():
            count = max(24, min(4000, (options.mebibytes << 20) // size))
            storage.write_bytes(f"s3://{BUCKET}/{size}.tar", tar_of(size, count))
            for latency_ms in LATENCIES_MS:
                with delayed(endpoint, latency_ms / 1000):
                    document["runs"].append({"member": label, "members": count,
                                             "latency_ms": latency_ms, **measured(size)})
                print(document["runs"][-1], flush=True)
    RESULT.write_text(json.dumps(document, indent=1) + "\n")


def measured(size: int) -> dict[str, Any]:
    """Headers a second, and how much is asked for, of each way."""
    entry = storage.stat(f"s3://{BUCKET}/{size}.tar")
    assert entry is not None
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    asked: dict[str, float] = {}
    for _ in range(REPEATS):
        for way, content in WAYS.items():
            with counted() as reads:
                began = time.perf_counter()
                walked = walk_headers(content(entry.uri, entry.size, entry.version), entry,
                                      ArchiveEnd(), kind="tar", wants=nothing)
                headers = sum(1 for _ in islice(walked, HOPS if way == "hop" else None))
                seconds[way].append((time.perf_counter() - began) / headers)
            asked[way] = sum(reads) / headers
    return {way: {"headers_per_s": round(1 / statistics.median(seconds[way])),
                  "kibibytes_per_header": round(asked[way] / 1024, 1)} for way in WAYS}


@contextlib.contextmanager
def counted() -> Iterator[list[int]]:
    """The length of each range that is asked for."""
    lengths: list[int] = []
    read_range = storage.read_range

    def read(uri: str, offset: int, length: int, *, version: str | None = None) -> bytes:
        lengths.append(length)
        return read_range(uri, offset, length, version=version)

    storage.read_range = read
    try:
        yield lengths
    finally:
        storage.read_range = read_range


def tar_of(size: int, count: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for i in range(count):
            info = tarfile.TarInfo(f"{i}.png")
            info.size = size
            archive.addfile(info, io.BytesIO(os.urandom(size)))
    return out.getvalue()


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A SeaweedFS with an empty bucket; the environment's AWS_* point at it."""
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or "weed"
    folder = tempfile.mkdtemp(prefix="weed")
    ports = {"s3": 21333, "master": 21334, "filer": 21335, "volume": 21336, "admin": 21337}
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    os.environ.update({"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
                       "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": endpoint})
    process = subprocess.Popen(
        [weed, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
         *(f"-{name}.port={port}" for name, port in ports.items()), "-s3.port.iceberg=0",
         "-webdav=false", "-admin.ui=false", f"-bucket={BUCKET}", "-master.telemetry=false"],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        storage.write_bytes(f"s3://{BUCKET}/ready", b"")  # tries again until it answers
        yield endpoint
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def delayed(endpoint: str, latency_s: float) -> Iterator[None]:
    """Storage is reached through a proxy that adds a round trip of so many seconds."""
    to = urlsplit(endpoint).port
    assert to is not None
    started: queue.Queue[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = queue.Queue()
    thread = threading.Thread(target=lambda: asyncio.run(_proxy(to, latency_s / 2, started)))
    thread.start()
    loop, stop, port = started.get(timeout=10)
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
    _forget_clients()
    try:
        yield
    finally:
        os.environ["AWS_ENDPOINT_URL"] = endpoint
        _forget_clients()
        loop.call_soon_threadsafe(stop.set)
        thread.join()


async def _proxy(to: int, delay_s: float, started: queue.Queue[Any]) -> None:
    stop = asyncio.Event()
    server = await asyncio.start_server(
        lambda reader, writer: _forward_both(reader, writer, to, delay_s), "127.0.0.1", 0,
        limit=1 << 20)
    started.put((asyncio.get_running_loop(), stop, server.sockets[0].getsockname()[1]))
    await stop.wait()


def _forget_clients() -> None:
    s3._bucket.cache_clear()
    s3._session.cache_clear()


async def _forward_both(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int,
                        delay_s: float) -> None:
    to_reader, to_writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    with contextlib.suppress(asyncio.CancelledError):  # the proxy ends before its connections
        await asyncio.gather(_forward(reader, to_writer, delay_s),
                             _forward(to_reader, writer, delay_s))


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
                   delay_s: float) -> None:
    """Each piece `delay_s` after it came: latency, at any bandwidth."""
    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=64)

    async def send() -> None:
        data = b"-"
        while data:
            due, data = await pieces.get()
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            writer.write(data)
            await writer.drain()
        writer.close()

    sending = asyncio.create_task(send())
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 18):
            await pieces.put((time.monotonic() + delay_s, data))
    await pieces.put((0.0, b""))
    with contextlib.suppress(ConnectionError):
        await sending


if __name__ == "__main__":
    main()
