"""Where an endpoint's log goes: to standard error, whatever Ray Serve makes of that."""

from __future__ import annotations

import logging
import sys

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_to_stderr() -> None:
    """Logs what igd warns of. Serve, told not to log there, keeps `sys.stderr` for itself too."""
    ours = logging.getLogger("igd")
    if not ours.handlers:
        handler = logging.StreamHandler(sys.__stderr__)
        handler.setFormatter(logging.Formatter(FORMAT))
        ours.addHandler(handler)
