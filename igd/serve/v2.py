"""The Open Inference Protocol (V2), as clients of KServe and Triton speak it.

A category is a model, and the version in production is its only version. Where one image of a
request cannot be used, the request fails and says which: the protocol has no errors of elements.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from igd import __version__
from igd.errors import ImageError
from igd.serve import inference, v2_docs
from igd.serve.endpoint import Endpoint, Image, Scored
from igd.serve.faults import RequestError
from igd.serve.inference import Asked
from igd.serve.models import Card
from igd.serve.tensors import HEADER_LENGTH, Datatype, malformed, to_binary, to_json
from igd.serve.v2_docs import (
    InferReply,
    LiveReply,
    ModelReadyReply,
    ModelReply,
    ServerReadyReply,
    ServerReply,
    TensorReply,
)

HEATMAP = "heatmap"
JSON_PIXELS = 1 << 18
"""Heatmap values that are written as JSON: Python's encoder lets no other thread run for the 0.1 s
that so many take it."""


def router(endpoint: Endpoint) -> APIRouter:
    """The routes below /v2."""
    routes = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

    @routes.get("", summary="What serves, and which extensions it has")
    async def server() -> ServerReply:
        return ServerReply(name="igd-ray", version=__version__, extensions=["binary_tensor_data"])

    @routes.get("/health/live", summary="Whether the process answers")
    async def live() -> LiveReply:
        return LiveReply(live=True)

    @routes.get("/health/ready", summary="As /readyz", responses={503: {"model": ServerReadyReply}})
    async def ready(response: Response) -> ServerReadyReply:
        response.status_code = 200 if endpoint.ready else 503
        return ServerReadyReply(ready=endpoint.ready)

    async def in_production(category: str) -> Card:
        return endpoint.catalogue.card(category)

    async def of_version(category: str, version: str) -> Card:
        card = endpoint.catalogue.card(category)
        if version != card.version:
            raise RequestError(404, "unknown_version", "only the version in production answers: "
                               f"{card.version}")
        return card

    json_reader = ThreadPoolExecutor(1, thread_name_prefix="json")
    for path, find in (("", in_production), ("/versions/{version}", of_version)):
        _answer_of_a_model(routes, "/models/{category}" + path, find)
        _infer(routes, "/models/{category}" + path, find, endpoint, json_reader)
    return routes


def _answer_of_a_model(routes: APIRouter, path: str, find: Callable[..., Awaitable[Card]]) -> None:
    found = Depends(find)

    @routes.get(path, summary="A model's inputs and outputs", responses=v2_docs.ERRORS)
    async def metadata(card: Card = found) -> ModelReply:
        return ModelReply(
            name=card.category, versions=[card.version], platform="igd_ray",
            inputs=[TensorReply(name="image", datatype="BYTES", shape=[-1])],
            outputs=[TensorReply(name=output.name, datatype=output.datatype,
                                 shape=[-1, *output.shape]) for output in outputs_of(card)])

    @routes.get(f"{path}/ready", summary="Whether a model answers", responses=v2_docs.ERRORS)
    async def model_ready(card: Card = found) -> ModelReadyReply:
        return ModelReadyReply(name=card.category, ready=True)


def _infer(routes: APIRouter, path: str, find: Callable[..., Awaitable[Card]], endpoint: Endpoint,
           json_reader: ThreadPoolExecutor) -> None:
    found = Depends(find)

    @routes.post(f"{path}/infer", summary="Score images", openapi_extra=v2_docs.REQUEST,
                 responses=v2_docs.ERRORS | v2_docs.REPLY, response_model=InferReply)
    async def infer(request: Request, card: Card = found) -> Response:
        endpoint.gate.check()
        with endpoint.reading.enter():
            header, body = await _body(request, endpoint)
            # One thread: one tree of Python objects at a time, however many requests there are.
            asked = await asyncio.get_running_loop().run_in_executor(
                json_reader, lambda: inference.read(
                    body, header, most_json=endpoint.config.max_body_bytes,
                    most_images=endpoint.config.max_batch_images))
        wanted = _wanted(asked, card)
        heatmap = any(output.name == HEATMAP for output, _ in wanted)
        scored = await endpoint.each(list(enumerate(asked.images)), lambda numbered: _scored(
            endpoint, card, *numbered, heatmap=heatmap))
        return await asyncio.to_thread(_reply, asked, card, scored, wanted)


async def _body(request: Request, endpoint: Endpoint) -> tuple[str | None, bytearray]:
    """The header that says how much of the body is JSON, and the body.

    Raises:
        RequestError: it is compressed, or JSON alone and larger than a body with one image.
    """
    header = request.headers.get(HEADER_LENGTH)
    config, body = endpoint.config, bytearray()
    if request.headers.get("content-encoding", "identity") != "identity":
        raise malformed("a compressed body is not taken; send it as it is")
    most = config.max_batch_bytes if header else config.max_body_bytes
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise RequestError(413, "body_too_large", f"the body is larger than {most} bytes")
    return header, body


async def _scored(endpoint: Endpoint, card: Card, index: int, image: Image, *, heatmap: bool
                  ) -> Scored:
    try:
        return await endpoint.score_by(card, image, heatmap=heatmap)
    except ImageError as error:
        raise ImageError(error.reason, f"image {index}: {error.detail}") from None


@dataclass(frozen=True, kw_only=True)
class Output:
    """Something that is said of images.

    Attributes:
        shape: of what is said of one.
        of: what is said, from an image that has been scored.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...] = ()
    of: Callable[[Scored], Any]


def outputs_of(card: Card) -> list[Output]:
    """All that a model says."""
    def term(name: str) -> Output:
        return Output(name=f"terms.{name}", datatype="FP64",
                      of=lambda scored: scored.answer.terms[name])

    return [
        Output(name="score", datatype="FP64", of=lambda scored: scored.answer.score),
        Output(name="p_value", datatype="FP64",
               of=lambda scored: scored.answer.assessment.p_value),
        Output(name="threshold", datatype="FP64",
               of=lambda scored: scored.answer.assessment.threshold),
        Output(name="decision", datatype="BYTES",
               of=lambda scored: scored.answer.assessment.decision),
        *map(term, card.terms),
        Output(name=HEATMAP, datatype="FP32", shape=(card.image.size, card.image.size),
               of=lambda scored: scored.heatmap_HW)]


def _wanted(asked: Asked, card: Card) -> list[tuple[Output, bool]]:
    """The outputs of a reply, in order, and whether each is binary data.

    Raises:
        RequestError: one is unknown, or its JSON would be too large.
    """
    known = {output.name: output for output in outputs_of(card)}
    names = asked.outputs or {name: asked.binary for name in known if name != HEATMAP}
    if not names.keys() <= known.keys():
        raise malformed(f"outputs: expected some of {', '.join(known)}")
    for name, binary in names.items():
        values = prod(known[name].shape) * len(asked.images)
        if not binary and values > JSON_PIXELS:
            raise malformed(f"{name}: {values} values; more than {JSON_PIXELS} are sent as "
                            "binary data only")
    return [(known[name], binary) for name, binary in names.items()]


def _reply(asked: Asked, card: Card, scored: Sequence[Scored],
           wanted: Sequence[tuple[Output, bool]]) -> Response:
    tensors, behind = [], []
    for output, binary in wanted:
        values = [output.of(one) for one in scored]
        tensor: dict[str, Any] = {"name": output.name, "datatype": output.datatype,
                                  "shape": [len(scored), *output.shape]}
        if binary:
            behind.append(to_binary(output.datatype, values))
            tensor["parameters"] = {"binary_data_size": len(behind[-1])}
        else:
            tensor["data"] = to_json(output.datatype, values)
        tensors.append(tensor)
    said = {"model_name": card.category, "model_version": card.version, "outputs": tensors}
    if asked.id is not None:
        said["id"] = asked.id
    text = json.dumps(said, allow_nan=False).encode()
    if not behind:
        return Response(text, media_type="application/json")
    return Response(b"".join([text, *behind]), media_type="application/octet-stream",
                    headers={HEADER_LENGTH: str(len(text))})
