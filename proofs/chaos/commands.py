"""Commands of `igd-ray`, as they are given to a shell."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chaos.dump import Dump
from chaos.places import Place

RUN_TIMEOUT_S = 400


@dataclass(frozen=True, kw_only=True)
class Order:
    """A run of `score`, to be asked for as often as it takes.

    Attributes:
        options: of `score`, besides those that all have.
        alone: whether igd-ray starts a cluster of its own.
        prefix: a command that runs this one.
    """

    place: Place
    date: str
    dump: Dump
    options: tuple[str, ...] = ()
    alone: bool = False
    env: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()


class Attempt:
    """One run of a command, and what it says."""

    def __init__(self, words: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        self.began, self.log = time.monotonic(), log
        self.done: set[str] = set()
        self.first_request = 0
        with open(log, "wb") as file:
            self.process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=env)

    def wait(self, timeout_s: float = RUN_TIMEOUT_S) -> int:
        """The exit code; of a run that has not ended by then, that of its kill."""
        try:
            return self.process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.wait()

    def kill(self) -> None:
        self.process.kill()

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")[-1500:]


def igd_ray(*words: str) -> list[str]:
    return [sys.executable, "-m", "igd.cli", *words]


@functools.cache
def igd_ray_offers(options: tuple[str, ...]) -> bool:
    """Whether this version's `score` has some options."""
    help_text = subprocess.run(igd_ray("score", "--help"), capture_output=True, text=True,
                               check=True, env={**os.environ, "COLUMNS": "200"}).stdout
    return all(option in help_text for option in options)


def check(attempt: Attempt) -> None:
    """Raises where a command that nothing disturbs does not exit with 0."""
    if (code := attempt.wait()) != 0:
        raise RuntimeError(f"exit code {code}: {attempt.said}")
