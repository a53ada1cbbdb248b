"""Kind `disk`: an output on a local disk that is full, or that fails."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chaos.commands import Order
from chaos.found import Found
from chaos.night import Night
from chaos.places import Place

SIZE_MIB = 8
ROOM_BYTES = (64 << 10, 200 << 10, 400 << 10)
"""What is free on it: for less than the plan, and for some of the shards."""
STRIKES = {"fsync": (1, 3, 6), "rename": (1, 3, 6), "link": (1, 2, 3)}
"""Which of a thread's calls fail."""


def disk(night: Night) -> Iterator[Found]:
    yield from _full(night)
    yield from _failing(night)


def _full(night: Night) -> Iterator[Found]:
    """It ends cleanly, and completes once there is room."""
    for room in ROOM_BYTES:
        name = f"full after {room >> 10} KiB"
        folder = night.work / f"disk{room}"
        with _small_disk(folder) as mounted:
            if not mounted:
                yield Found(kind="disk", case=name, skipped="a tmpfs cannot be mounted here")
                continue
            order = _on(night, folder)
            with night.case("disk", name, order) as found:
                filler = folder / "filler"
                filler.write_bytes(b"\0" * (shutil.disk_usage(folder).free - room))
                _fails(night, order, found)
                filler.unlink()
                night.finish(order, found)
            yield found


def _failing(night: Night) -> Iterator[Found]:
    """A call of the driver's returns EIO once: it ends cleanly, and completes afterwards."""
    for call, strikes in STRIKES.items():
        for strike in strikes:
            name = f"EIO of {call} number {strike}"
            if shutil.which("strace") is None:
                yield Found(kind="disk", case=name, skipped="there is no strace here")
                continue
            folder = night.work / f"{call}{strike}"
            trace = night.work / f"{call}{strike}.strace"
            plain = _on(night, folder)
            order = dataclasses.replace(plain, prefix=(
                "strace", "-f", "--seccomp-bpf", "-qq", "-o", str(trace), "-e", f"trace={call}",
                "-e", f"inject={call}:error=EIO:when={strike}"))
            with night.case("disk", name, plain) as found:
                _fails(night, order, found)
                struck = trace.read_text().count("(INJECTED)")
                found.expect(struck > 0, "no call was struck")
                night.finish(plain, found)
            yield found


def _fails(night: Night, order: Order, found: Found) -> None:
    attempt = night.give(order)
    code = night.end(attempt, found)
    found.expect(code == 5, f"exit code {code}, not 5: {attempt.said}")


def _on(night: Night, folder: Path) -> Order:
    return dataclasses.replace(night.order("disk"), place=Place(
        uri=str(folder / "out"), settings=night.place.settings))


@contextmanager
def _small_disk(folder: Path) -> Iterator[bool]:
    """A folder of a few MiB; False where it cannot be had."""
    folder.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "tmpfs", str(folder)],
        capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)
