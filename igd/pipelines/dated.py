"""Sources whose place depends on the date."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from datetime import date as Date

from igd.errors import ConfigError

PLACE = re.compile(r"\{date(?::([^{}]*))?\}")
DIRECTIVES = re.compile(r"(?:[^%]|%[aAbBdGjmuUVwWyY%])*")
"""Forms of strftime that a date fills; it would fill the hours with zeros."""


def dated(sources: Sequence[str], date: Date | None) -> list[str]:
    """Sources with the ISO date for `{date}`, and a form of strftime for `{date:%Y/%m/%d}`.

    Raises:
        ConfigError: there is a place for a date and no date, or a form that is none of a date.
    """
    return [PLACE.sub(functools.partial(_written, source, date), source) for source in sources]


def _written(source: str, date: Date | None, place: re.Match[str]) -> str:
    form = "%Y-%m-%d" if place[1] is None else place[1]
    if "%" not in form or not DIRECTIVES.fullmatch(form):
        raise ConfigError(f"source {source!r}: {place[0]} is no form of a date; expected {{date}}, "
                          "or directives of strftime as in {date:%Y/%m/%d}")
    if date is None:
        raise ConfigError(f"source {source!r} needs --date, which {place[0]} stands for")
    return date.strftime(form)
