"""Kills this process when it stands still: hung in C code, waiting for ever, or stopped.

A hung decoder may hold the interpreter's lock, and a stopped process runs no thread; so another
process looks. It is a bare interpreter that loads nothing of igd.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
import subprocess
import sys

FETCH_S = 300
DECODE_S = 120
"""How long a reader of images may be at one member. Storage gives up sooner by itself."""

_SECONDS = struct.Struct("<d")


class Watchdog:
    """Use it in a `with`; until the first `allow`, this process may take any time."""

    def __enter__(self) -> Watchdog:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid())], bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True)  # an interrupt from the keyboard is for its parent
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def allow(self, limit_s: float) -> None:
        """The next call comes within so many seconds, or this process is killed."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # itself killed: no reason to lose the work
            self._process.stdin.write(_SECONDS.pack(limit_s))


def watch(parent: int) -> None:
    """Waits for word on standard input, or for its end; kills the parent where none comes."""
    limit_s: float | None = None
    while select.select([0], [], [], limit_s)[0]:
        said = os.read(0, 4096)
        if not said:
            return
        limit_s, = _SECONDS.unpack(said[-_SECONDS.size:])
    os.kill(parent, signal.SIGKILL)


if __name__ == "__main__":
    watch(int(sys.argv[1]))
