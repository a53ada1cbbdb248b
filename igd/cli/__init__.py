"""The command line: thin over the library. Imports stand inside the commands, so that --help
is quick."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import typer

from igd.cli import data, evaluate, models, plan, score, serve, tables, train
from igd.cli.app import app
from igd.cli.output import say
from igd.errors import IgdError

__all__ = ["app", "data", "evaluate", "main", "models", "plan", "run", "score", "serve",
           "tables", "train"]


def main() -> NoReturn:
    """Runs the command line of this process and exits with its code.

    Without the interpreter's own end: threads of Arrow or Ray that are still at work would abort
    the process, and the code would be lost.
    """
    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it, or it is closed
            stream.flush()
    if "ray" in sys.modules:
        from igd.pipelines.cluster import end_agents

        end_agents()
    os._exit(code)


def run(words: Sequence[str]) -> int:
    """Runs a command; what goes wrong is said in a line.

    Returns:
        The exit code.
    """
    signals: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        signals.append(number)
        raise KeyboardInterrupt  # of a SystemExit within a call of Ray the code would be lost

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as by nohup
        signal.signal(signal.SIGINT, interrupt)
    try:
        # not app(), which takes every broken pipe, of a socket even, for an unread output
        command = typer.main.get_command(app)
        with command.make_context("igd-ray", list(words)) as context:
            command.invoke(context)
        return 0
    except typer.Exit as done:
        return done.exit_code
    except BaseException as error:  # an interrupt may end in an error of what it interrupts
        if not signals:
            return _failed(error)
    for number in (signal.SIGTERM, signal.SIGINT):  # a second one would take the code away
        signal.signal(number, signal.SIG_IGN)
    say("igd-ray: interrupted; run the same command again to go on")
    return 128 + signals[0]


def _failed(error: BaseException) -> int:
    """Says what went wrong; returns the exit code."""
    if isinstance(error, IgdError):
        say(f"igd-ray: {error}")
        return error.exit_code
    if isinstance(error, typer.TyperException):
        error.show()  # type: ignore[attr-defined]
        return error.exit_code
    if isinstance(error, SystemExit) or (isinstance(error, BrokenPipeError) and _unread()):
        return 1  # rich makes the one of the other
    # a defect: one line, the traceback on request
    if os.environ.get("IGD_TRACEBACK"):
        traceback.print_exception(error)
    else:
        say(f"igd-ray: unexpected {type(error).__name__}: {error} (set IGD_TRACEBACK=1 for the "
            "traceback)")
    return 1


def _unread() -> bool:
    """Whether whoever read what we print has left, such as `head`."""
    poll = select.poll()
    for output in (1, 2):
        poll.register(output, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
