"""The HTTP surface: an application over an endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from igd import __version__
from igd.errors import IgdError
from igd.serve import v1, v2
from igd.serve.endpoint import Endpoint
from igd.serve.faults import RequestError, fault_of
from igd.serve.guard import Guard, error_body
from igd.serve.metrics import CONTENT_TYPE, page
from igd.serve.page import router as page_router
from igd.serve.schemas import ErrorReply, ReadyReply

log = logging.getLogger(__name__)

ANYWHERE: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": description} for status, description in (
        (400, "The request makes no sense."), (401, "A token is missing or wrong."),
        (403, "Called by another name, or by another site."),
        (431, "Too many headers, or too long ones."), (500, "The endpoint failed."),
        (504, "No answer in time."))}
"""What any request may be answered, whatever its route."""


def create_app(endpoint: Endpoint, *, proxied: bool = False) -> FastAPI:
    """The application over an endpoint; while it runs, it follows what is in production.

    It starts when it has looked once, so that a replica is sent nothing before it has its models.

    Args:
        proxied: as `igd.serve.guard.Guard`.
    """
    @contextlib.asynccontextmanager
    async def following(app: FastAPI) -> AsyncIterator[None]:
        while True:
            await endpoint.catalogue.look()
            if endpoint.catalogue.looked_at is not None:
                break
            await asyncio.sleep(endpoint.config.follow_s)
        task = asyncio.create_task(endpoint.catalogue.follow(endpoint.config.follow_s))
        yield
        task.cancel()

    app = FastAPI(title="igd-ray", version=__version__, lifespan=following, docs_url=None,
                  redirect_slashes=False, responses=ANYWHERE,
                  redoc_url=None,  # both would take scripts from somewhere else
                  description="One image in; score, decision and heatmap out.")
    app.include_router(v1.router(endpoint))
    app.include_router(v2.router(endpoint))
    app.include_router(page_router(endpoint.config))
    _answer_health(app, endpoint)
    _answer_errors(app)
    app.add_middleware(Guard, endpoint=endpoint, proxied=proxied)
    return app


def _answer_health(app: FastAPI, endpoint: Endpoint) -> None:
    @app.get("/healthz", summary="Whether the process answers", tags=["health"])
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Whether there is a point in sending images here",
             tags=["health"], responses={503: {"model": ReadyReply}})
    async def readyz(response: Response) -> ReadyReply:
        entries = endpoint.catalogue.entries
        ready = endpoint.ready
        response.status_code = 200 if ready else 503
        return ReadyReply(ready=ready, draining=endpoint.draining,
                          categories={entry.category: entry.state for entry in entries})

    @app.get("/metrics", summary="Metrics for Prometheus", tags=["health"],
             response_class=Response,
             responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
    async def metrics() -> Response:
        others = await endpoint.scorers.collect()
        return Response(page({**others, **endpoint.metrics.collect()}), media_type=CONTENT_TYPE)


def _answer_errors(app: FastAPI) -> None:
    """Every error in one shape; no path and no traceback in any."""
    async def answer(request: Request, error: Exception) -> Response:
        fault = fault_of(error)
        request_id = request.scope["state"]["request_id"]
        if fault.code == "unavailable":
            log.error("%s: %s", request_id, error)
        return Response(error_body(fault, request_id), status_code=fault.status,
                        headers=fault.headers, media_type="application/json")

    for kind in (IgdError, RequestError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer)
