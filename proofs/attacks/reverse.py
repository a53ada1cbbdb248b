"""`deploy/nginx.conf` in front of an endpoint on this machine."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

CONF = Path(__file__).parents[2] / "deploy" / "nginx.conf"
NAME = "igd.example"


def nginx_binary() -> str | None:
    return shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")


@contextlib.contextmanager
def prefix(upstream: int, listen: int) -> Iterator[Path]:
    """A folder as nginx wants it: the file with ports of this machine, and a certificate."""
    with tempfile.TemporaryDirectory(prefix="igd-nginx-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # nginx gives up root's rights
        text = CONF.read_text().replace(NAME, "localhost")
        text = text.replace("listen 8443", f"listen 127.0.0.1:{listen}")
        text = re.sub(r"server 127\.0\.0\.1:8000;", f"server 127.0.0.1:{upstream};", text)
        (folder / "nginx.conf").write_text(text)
        (folder / "tls").mkdir()
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
                        "-subj", "/CN=localhost", "-keyout", folder / "tls" / "tls.key",
                        "-out", folder / "tls" / "tls.crt"], check=True, capture_output=True)
        yield folder


def command(folder: Path, *words: str) -> list[str]:
    return [str(nginx_binary()), "-p", f"{folder}/", "-c", "nginx.conf", "-e", "stderr", *words]


@contextlib.contextmanager
def in_front(upstream: int, listen: int) -> Iterator[None]:
    """nginx before a port."""
    with prefix(upstream, listen) as folder, subprocess.Popen(
            command(folder, "-g", "daemon off;"), stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 10
            while True:
                try:
                    socket.create_connection(("127.0.0.1", listen), 1).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.wait(20)
