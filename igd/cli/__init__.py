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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        code = app(standalone_mode=False) or 0  # an exit code, where a command raised Exit
    except IgdError as error:
        say(f"igd-ray: {error}")
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        say("igd-ray: interrupted; run the same command again to go on")
        code = 130
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
