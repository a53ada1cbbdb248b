"""Who may ask: named bearer tokens, of which only hashes are kept."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from igd.errors import ConfigError

VARIABLE = "IGD_SERVE_TOKENS"
SHORTEST = 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SECRET = re.compile(rf"[!-~]{{{SHORTEST},}}")
"""Without spaces, in ASCII: as an Authorization header can bear it."""


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token.

    Attributes:
        name: whose it is, or what it is for; in the log of what it asked (INFO; WARNING where that
            took too long), and no secret.
        sha256: of the token, hex.
    """

    name: str
    sha256: str


def tokens_of(path: str | None) -> tuple[Token, ...]:
    """The tokens of a file, or of the environment where no file is named.

    Both hold `NAME:TOKEN` pairs, one in a line. Two names are two tokens that hold at once, so
    that one can replace the other without a refused request.

    Raises:
        ConfigError: the file can be read by others, or a line is no pair.
    """
    if path is None:
        return _parsed(os.environ.get(VARIABLE, ""), VARIABLE)
    try:
        with open(path, encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigError(f"{path} can be read by others (mode {mode & 0o777:04o}); run "
                                  f"chmod 600 {path}")
            found = _parsed(file.read(), path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"tokens file {path} cannot be read: {error}") from error
    if not found:
        raise ConfigError(f"{path} holds no token; write lines of NAME:TOKEN")
    return found


def name_of(tokens: Sequence[Token], authorization: str) -> str | None:
    """Whose token an `Authorization` header bears; None where it is nobody's.

    Takes as long for every wrong token: all are compared, in constant time.
    """
    scheme, _, token = authorization.partition(" ")
    said = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).hexdigest()
    found = None
    for known in tokens:
        if hmac.compare_digest(known.sha256, said):
            found = known.name
    return found if scheme.lower() == "bearer" else None


def _parsed(text: str, origin: str) -> tuple[Token, ...]:
    found: dict[str, Token] = {}
    lines = [line.strip() for line in text.splitlines()]
    for number, line in enumerate(lines, start=1):
        if not line or line.startswith("#"):
            continue
        name, colon, secret = line.partition(":")
        if not colon or not _NAME.fullmatch(name) or not _SECRET.fullmatch(secret) or name in found:
            raise ConfigError(f"{origin}, line {number}: expected NAME:TOKEN, a new name and at "
                              f"least {SHORTEST} characters of token in ASCII without spaces "
                              "(say, from openssl rand -hex 32)")
        found[name] = Token(name=name, sha256=hashlib.sha256(secret.encode()).hexdigest())
    return tuple(found.values())
