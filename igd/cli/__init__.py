"""The command line: thin over the library. Imports stand inside the commands, so that --help
is quick."""

from __future__ import annotations

import contextlib
import errno
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
from igd.errors import IgdError, StorageError

__all__ = ["app", "data", "evaluate", "main", "models", "plan", "run", "score", "serve",
           "tables", "train"]


def main() -> NoReturn:
    """Runs the command line of this process and exits with its code.

    Without the interpreter's own end: threads of Arrow or Ray that are still at work would abort
    the process, and the code would be lost.
    """
    _open_what_is_closed()
    code = run(sys.argv[1:])
    with contextlib.suppress(OSError):  # of a command that failed; nobody may read it
        sys.stdout.flush()
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
    code, failure = 0, None
    try:
        code = _invoke(words)
    except BaseException as error:  # an interrupt may end in an error of what it interrupts
        failure = error
    for number in (signal.SIGTERM, signal.SIGINT):  # from here on one would take the code away
        signal.signal(number, signal.SIG_IGN)
    if failure is None:
        return code
    if not signals:
        return _failed(failure)
    say("igd-ray: interrupted; run the same command again to go on")
    return 128 + signals[0]


def _invoke(words: Sequence[str]) -> int:
    """Runs a command to its end, with all that it prints; returns the exit code.

    Not by `app()`, which takes every broken pipe, of a socket even, for an unread output.
    """
    command = typer.main.get_command(app)
    code = 0
    try:
        with command.make_context("igd-ray", list(words)) as context:
            command.invoke(context)
    except typer.Exit as done:
        code = done.exit_code
    sys.stdout.flush()
    return code


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
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # storage says so otherwise
        say(f"igd-ray: {error.filename or 'an output'}: {error.strerror}")
        return StorageError.exit_code
    # a defect: one line, the traceback on request
    if os.environ.get("IGD_TRACEBACK"):
        traceback.print_exception(error)
    else:
        say(f"igd-ray: unexpected {type(error).__name__}: {error} (set IGD_TRACEBACK=1 for the "
            "traceback)")
    return 1


def _open_what_is_closed() -> None:
    """Whoever started this process may have closed its outputs (`2>&-`), which is no error."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w"))


def _unread() -> bool:
    """Whether whoever read what we print has left, such as `head`."""
    poll = select.poll()
    for output in (1, 2):
        poll.register(output, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
