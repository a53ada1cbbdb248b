"""Every way a request can fail, as a status, a code for programs and a line for people."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from igd.errors import IgdError, ImageError
from igd.serve.gate import (
    RETRY_AFTER_S,
    NotReadyError,
    OverloadedError,
    UnknownCategoryError,
)


class RequestError(Exception):
    """A request that is refused for what it is."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What a client is told.

    Attributes:
        headers: beside those of every reply.
    """

    status: int
    code: str
    message: str
    headers: dict[str, str] = field(default_factory=dict)


CLOSES = {400, 408, 413, 431}
"""Of these the rest of the body may still be on its way, so the connection is closed."""
CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}


def fault_of(error: Exception) -> Fault:
    """What is told of an exception; of one that nobody foresaw, nothing."""
    if isinstance(error, RequestError):
        headers = _closing(error.status)
        if error.status == 401:
            headers["www-authenticate"] = "Bearer"
        return Fault(status=error.status, code=error.code, message=error.message, headers=headers)
    if isinstance(error, ImageError):
        return Fault(status=422, code=error.reason, message=error.detail)
    if isinstance(error, UnknownCategoryError):
        return Fault(status=404, code="unknown_category", message=str(error))
    if isinstance(error, OverloadedError):
        return _later("overloaded", str(error))
    if isinstance(error, NotReadyError):
        return _later("not_ready", str(error))
    if isinstance(error, IgdError):
        return _later("unavailable", "this image cannot be scored at present")
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        return Fault(status=422, code="invalid_request",
                     message=f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
    if isinstance(error, HTTPException):
        return Fault(status=error.status_code, code=CODES.get(error.status_code, "http_error"),
                     message=str(error.detail),
                     headers={**_closing(error.status_code), **(error.headers or {})})
    return Fault(status=500, code="internal_error", message="the endpoint failed; its log says "
                                                            "why")


def _closing(status: int) -> dict[str, str]:
    return {"connection": "close"} if status in CLOSES else {}


def _later(code: str, message: str) -> Fault:
    return Fault(status=503, code=code, message=message,
                 headers={"retry-after": str(RETRY_AFTER_S)})
