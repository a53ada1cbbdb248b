"""The API of images: one or several in, score, decision and heatmap out."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from igd.errors import IgdError
from igd.serve.bodies import Sent, files_of, one_image
from igd.serve.catalogue import Entry
from igd.serve.endpoint import Endpoint, Scored
from igd.serve.faults import fault_of
from igd.serve.schemas import (
    BatchItem,
    BatchReply,
    CategoriesReply,
    CategoryReply,
    ErrorReply,
    RegionReply,
    ScoreReply,
    TimingsReply,
)

ERRORS: dict[int | str, dict[str, Any]] = {  # beside those of any request
    404: {"model": ErrorReply, "description": "No such category."},
    408: {"model": ErrorReply, "description": "The body took too long."},
    413: {"model": ErrorReply, "description": "The body is too large."},
    422: {"model": ErrorReply, "description": "The image cannot be used; `code` says why."},
    503: {"model": ErrorReply, "description": "Busy, or the model is not there yet; try again "
                                              "after `Retry-After` seconds."},
}
BINARY = {"type": "string", "format": "binary"}
ONE_IMAGE = {"requestBody": {"required": True, "content": {
    "image/*": {"schema": BINARY}, "application/octet-stream": {"schema": BINARY},
    "multipart/form-data": {"schema": {
        "type": "object", "required": ["image"], "properties": {"image": BINARY}}}}}}
IMAGES = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": {
    "type": "object", "required": ["images"],
    "properties": {"images": {"type": "array", "items": BINARY}}}}}}}
Heatmap = Annotated[Literal["png", "overlay"] | None, Query(
    description="Add the heatmap, a grey PNG, or the input with it on top, in base64.")]


def router(endpoint: Endpoint) -> APIRouter:
    """The routes below /v1."""
    routes = APIRouter(prefix="/v1", tags=["images"])

    @routes.get("/categories", summary="Categories, and the models that answer for them")
    async def categories() -> CategoriesReply:
        entries = endpoint.catalogue.entries
        return CategoriesReply(categories=[entry.category for entry in entries if entry.card],
                               details=[_details(entry) for entry in entries])

    @routes.post("/categories/{category}/score", responses=ERRORS | {200: {
        "content": {"image/png": {}}, "description": "The result; with `Accept: image/png` the "
        "heatmap or, with `?heatmap=overlay`, the overlay."}},
        response_model=ScoreReply, summary="Score one image", openapi_extra=ONE_IMAGE)
    async def score(request: Request, category: str, heatmap: Heatmap = None) -> Response:
        endpoint.gate.check()
        endpoint.catalogue.card(category)
        data = await one_image(request, endpoint.reading)
        as_png = "image/png" in request.headers.get("accept", "")
        with endpoint.gate.enter():
            scored = await endpoint.score(category, data, heatmap=as_png or heatmap is not None)
        if as_png:
            return _picture(scored, heatmap)
        return JSONResponse(_reply(scored, heatmap).model_dump())

    @routes.post("/categories/{category}/score-batch", responses=ERRORS,
                 response_model=BatchReply, openapi_extra=IMAGES,
                 summary="Score several images; one that cannot be used fails alone")
    async def score_batch(request: Request, category: str, heatmap: Heatmap = None) -> Response:
        endpoint.gate.check()
        endpoint.catalogue.card(category)
        files = await files_of(request, endpoint.reading, most=endpoint.config.max_batch_images)
        results = await endpoint.each(files, lambda file: _item(
            endpoint, category, file, heatmap, request.state.request_id))
        return JSONResponse(BatchReply(results=results).model_dump())

    return routes


async def _item(endpoint: Endpoint, category: str, file: Sent, heatmap: Heatmap,
                request_id: str) -> BatchItem:
    try:
        scored = await endpoint.score(category, file.data, heatmap=heatmap is not None)
    except IgdError as error:
        fault = fault_of(error)
        return BatchItem(name=file.name, error=ErrorReply(
            error=fault.message, code=fault.code, request_id=request_id))
    return BatchItem(name=file.name, result=_reply(scored, heatmap))


def _reply(scored: Scored, heatmap: Heatmap) -> ScoreReply:
    card, answer, verdict = scored.card, scored.answer, scored.answer.assessment
    shown: dict[str, Any] = {}
    if heatmap == "png":
        png, low, high = scored.heatmap()
        shown = {"heatmap": base64.b64encode(png).decode(), "heatmap_min": low,
                 "heatmap_max": high}
    elif heatmap == "overlay":
        shown = {"overlay": base64.b64encode(scored.overlay()).decode()}
    return ScoreReply(
        category=card.category, preset=card.preset, model_version=card.version,
        score=answer.score, terms=answer.terms, p_value=verdict.p_value,
        decision=verdict.decision, alpha=verdict.alpha, threshold=verdict.threshold,
        regions=[RegionReply(**{name: getattr(region, name) for name in region.__slots__})
                 for region in verdict.regions],
        region_threshold=card.region_threshold, width=scored.decoded.width,
        height=scored.decoded.height, box=list(scored.box), sha256=scored.sha256,
        score_fingerprint=card.score_fingerprint, **shown,
        timings_ms=TimingsReply(**{name: round(1000 * seconds, 3) for name, seconds in (
            ("decode", scored.decode_s), ("wait", scored.wait_s), ("score", answer.score_s),
            ("total", scored.total_s))}))


def _picture(scored: Scored, heatmap: Heatmap) -> Response:
    headers = {"x-igd-score": repr(scored.answer.score),
               "x-igd-decision": str(scored.answer.assessment.decision),
               "x-igd-model-version": scored.card.version}
    if heatmap == "overlay":
        png = scored.overlay()
    else:
        png, low, high = scored.heatmap()
        headers |= {"x-igd-heatmap-min": repr(low), "x-igd-heatmap-max": repr(high)}
    return Response(png, media_type="image/png", headers=headers)


def _details(entry: Entry) -> CategoryReply:
    if entry.card is None:
        return CategoryReply(category=entry.category, state=entry.state)
    card = entry.card
    return CategoryReply(
        category=entry.category, state=entry.state, preset=card.preset,
        model_version=card.version, model_created_at=card.created_at,
        score_fingerprint=card.score_fingerprint, threshold=card.threshold,
        review_threshold=card.review_threshold, alpha=card.alpha,
        calibration=list(card.calibration), scores_from=card.scores_from,
        scores_to=card.scores_to)
