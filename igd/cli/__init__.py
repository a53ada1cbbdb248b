"""The command line: thin over the library. Imports stand inside the commands, so that --help
is quick."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

import typer

from igd.cli import data, evaluate, models, plan, score, serve, tables, train
from igd.cli.app import app
from igd.cli.output import say
from igd.errors import IgdError

__all__ = ["app", "data", "evaluate", "main", "models", "plan", "score", "serve",
           "tables", "train"]


def main() -> NoReturn:
    """Runs the command line and exits with its code."""
    terminated: list[int] = []

    def terminate(number: int, frame: object) -> None:
        terminated.append(number)
        raise KeyboardInterrupt  # of a SystemExit within a call of Ray the code would be lost

    signal.signal(signal.SIGTERM, terminate)
    try:
        code = app(standalone_mode=False) or 0  # an exit code, where a command raised Exit
        if code == 130:  # what Typer makes of an interrupt
            raise KeyboardInterrupt
    except IgdError as error:
        say(f"igd-ray: {error}")
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        for number in (signal.SIGTERM, signal.SIGINT):  # a second one would take the code away
            signal.signal(number, signal.SIG_IGN)
        say("igd-ray: interrupted; run the same command again to go on")
        # not sys.exit: C++ may abort in a thread that was cut off, and the code would be lost
        sys.stdout.flush()
        os._exit(143 if terminated else 130)
    except typer.TyperException as error:
        error.show()  # type: ignore[attr-defined]
        code = error.exit_code
    except Exception as error:  # a defect: one line, the traceback on request
        if os.environ.get("IGD_TRACEBACK"):
            raise
        say(f"igd-ray: unexpected {type(error).__name__}: {error} (set IGD_TRACEBACK=1 for the "
             "traceback)")
        code = 1
    sys.exit(code)
