"""A process that stands still is killed, whatever holds it; one that goes on is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

STILL = {
    "hung in C": "ctypes.PyDLL(None).sleep(3600)",  # keeps the interpreter's lock
    "stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
    "waiting": "time.sleep(3600)",
}
GOING_ON = "[(watchdog.allow(2), time.sleep(0.1)) for _ in range(30)]"


def started(what: str, *, allow: str = "watchdog.allow(1)") -> subprocess.Popen:
    code = ("import ctypes, os, signal, sys, time\n"
            "from igd.pipelines.watchdog import Watchdog\n"
            f"with Watchdog() as watchdog:\n    {allow}; print('on', flush=True); {what}\n"
            "print('off', flush=True); time.sleep(2.5)")
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
                            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})


@pytest.mark.parametrize("what", STILL)
def test_a_process_that_stands_still_is_killed(what: str) -> None:
    process = started(STILL[what])
    said, _ = process.communicate(timeout=30)
    assert (process.returncode, said) == (-signal.SIGKILL, "on\n")


@pytest.mark.parametrize(("what", "allow"), [
    (GOING_ON, "pass"), ("time.sleep(1.5)", "pass"),
    ("time.sleep(1.5)", "watchdog.allow(1); watchdog.allow(60)"),
    ("time.sleep(1.5)", "watchdog._process.kill(); watchdog._process.wait(); watchdog.allow(1)")])
def test_one_that_goes_on_or_may_take_its_time_is_not(what: str, allow: str) -> None:
    """Also after the end, which comes later here than was allowed last."""
    process = started(what, allow=allow)
    said, _ = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "on\noff\n")


def test_the_watchdog_goes_with_its_process() -> None:
    process = started("time.sleep(3600)", allow="watchdog.allow(3600)")
    assert process.stdout is not None and process.stdout.readline() == "on\n"
    watchdog, = psutil.Process(process.pid).children()
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while watchdog.is_running() and watchdog.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)
