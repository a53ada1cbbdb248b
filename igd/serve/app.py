"""The HTTP surface: routes, limits and the one shape of errors."""

from __future__ import annotations

import uuid
from typing import Literal

from fastapi import FastAPI, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from igd import __version__
from igd.errors import IgdError, ImageError
from igd.serve.endpoint import Endpoint, UnknownCategoryError
from igd.serve.schemas import CategoriesReply, ErrorDetail, ErrorReply, ScoreReply

ERRORS: dict[int | str, dict[str, object]] = {
    status: {"model": ErrorReply} for status in (404, 413, 422, 503)}


class BodyTooLargeError(Exception):
    """A request body went past the limit."""


def create_app(endpoint: Endpoint) -> FastAPI:
    """The application over an endpoint."""
    app = FastAPI(title="igd-ray", version=__version__,
                  description="One image in; score, decision and heatmap out.")

    @app.get("/healthz", summary="Whether the process answers")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/categories", summary="Categories that can be scored")
    async def categories() -> CategoriesReply:
        return CategoriesReply(categories=await run_in_threadpool(endpoint.categories))

    @app.post("/v1/categories/{category}/score", responses=ERRORS, response_model=ScoreReply,
              summary="Score one image, sent as the request body",
              openapi_extra={"requestBody": {"required": True, "content": {
                  "image/*": {"schema": {"type": "string", "format": "binary"}}}}})
    async def score(request: Request, category: str,
                    heatmap: Literal["png"] | None = Query(
                        None, description="Add the heatmap, a grey PNG in base64.")) -> Response:
        data = await _body(request, endpoint.config.max_body_bytes)
        as_png = request.headers.get("accept", "").startswith("image/png")
        reply, png = await run_in_threadpool(
            endpoint.score, category, data, with_heatmap=as_png or heatmap is not None)
        if as_png:
            return Response(png, media_type="image/png", headers={
                "x-igd-score": repr(reply.score), "x-igd-decision": reply.decision,
                "x-igd-model-version": reply.model_version})
        return JSONResponse(reply.model_dump())

    _answer_errors(app)
    return app


async def _body(request: Request, limit: int) -> bytes:
    """The request body, refused as soon as it is seen to be too large."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise BodyTooLargeError
    chunks = bytearray()
    async for chunk in request.stream():
        chunks += chunk
        if len(chunks) > limit:
            raise BodyTooLargeError
    return bytes(chunks)


def _answer_errors(app: FastAPI) -> None:
    """Every error in one shape; no path and no traceback in any."""
    def reply(status: int, code: str, message: str) -> JSONResponse:
        detail = ErrorDetail(code=code, message=message, request_id=uuid.uuid4().hex)
        headers = {"connection": "close"} if status == 413 else None
        return JSONResponse(ErrorReply(error=detail).model_dump(), status_code=status,
                            headers=headers)

    @app.exception_handler(BodyTooLargeError)
    async def too_large(request: Request, error: BodyTooLargeError) -> JSONResponse:
        return reply(413, "body_too_large", "the request body is larger than this endpoint takes")

    @app.exception_handler(ImageError)
    async def bad_image(request: Request, error: ImageError) -> JSONResponse:
        return reply(422, error.reason, error.detail)

    @app.exception_handler(UnknownCategoryError)
    async def unknown(request: Request, error: UnknownCategoryError) -> JSONResponse:
        return reply(404, "unknown_category", str(error))

    @app.exception_handler(IgdError)
    async def unavailable(request: Request, error: IgdError) -> JSONResponse:
        return reply(503, "unavailable", "this category cannot be scored at present")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return reply(422, "invalid_request", f"{'.'.join(map(str, first['loc']))}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        return reply(error.status_code, "http_error", str(error.detail))

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> JSONResponse:
        return reply(500, "internal_error", "the endpoint failed; its log says why")
