"""What is to be known about S3 and stands in no environment or profile: KEY=VALUE pairs.

They are kept in one environment variable, which every process that a command starts inherits, and
which Ray hands to its workers on other machines. No key holds a secret: a command line, and what
Ray writes about a job, is read by others.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from urllib.parse import urlsplit

from igd.errors import ConfigError

VARIABLE = "IGD_STORAGE_OPTIONS"
SECRET = re.compile("access_key|secret|token|password|credential")


@dataclass(frozen=True, kw_only=True)
class StorageOptions:
    """How S3 is reached, where that differs from what environment, profile or default say.

    Attributes:
        endpoint: without the bucket, also where that is to become part of the host's name.
        virtual_hosted_style_request: the bucket is part of the host's name, not of the path.
        skip_signature: requests are anonymous; no credentials are looked for.
        request_payer: who asks pays, in buckets that want it so.
        allow_http: None: where the endpoint says http://.
    """

    region: str | None = None
    endpoint: str | None = None
    virtual_hosted_style_request: bool = False
    skip_signature: bool = False
    request_payer: bool = False
    allow_http: bool | None = None
    allow_invalid_certificates: bool = False
    proxy_url: str | None = None


KEYS = tuple(field.name for field in fields(StorageOptions))
TEXTS = ("region", "endpoint", "proxy_url")


def use(pairs: Sequence[str]) -> None:
    """Makes KEY=VALUE pairs hold in this process and those it starts, instead of any before.

    Raises:
        ConfigError: an unknown key, or a value that it cannot have.
    """
    text = "\n".join(pairs)
    _parsed(text, "--storage-option")
    os.environ[VARIABLE] = text


def given() -> StorageOptions:
    """The options that hold.

    Raises:
        ConfigError: the environment variable says what it cannot.
    """
    return _parsed(os.environ.get(VARIABLE, ""), VARIABLE)


def for_workers() -> dict[str, str]:
    """The environment variables by which the options reach a process that does not inherit them."""
    return {VARIABLE: os.environ[VARIABLE]} if os.environ.get(VARIABLE) else {}


@functools.lru_cache(maxsize=8)
def _parsed(text: str, origin: str) -> StorageOptions:
    found: dict[str, str | bool] = {}
    for pair in text.splitlines():
        key, equals, value = pair.partition("=")
        if SECRET.search(key):
            raise ConfigError(f"{origin} {key}: credentials do not belong where others can read "
                              "them; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                              "AWS_PROFILE")
        if key not in KEYS:
            raise ConfigError(f"{origin}: unknown key {key!r}; known: {', '.join(KEYS)}")
        if not equals or not value:
            raise ConfigError(f"{origin} {key}: expected {key}=VALUE")
        found[key] = _text(origin, key, value) if key in TEXTS else _flag(origin, key, value)
    return StorageOptions(**found)  # type: ignore[arg-type]


def _flag(origin: str, key: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise ConfigError(f"{origin} {key}={value}: expected true or false")
    return value == "true"


def _text(origin: str, key: str, value: str) -> str:
    if key != "region":
        if "@" in value:
            raise ConfigError(f"{origin} {key}: expected no user or password in the URL; others "
                              "can read it there. HTTPS_PROXY in every node's environment may "
                              "hold a proxy's")
        url = urlsplit(value)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ConfigError(f"{origin} {key}={value}: expected http://HOST or https://HOST")
    return value
