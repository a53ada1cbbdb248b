"""What OpenAPI says of the Open Inference Protocol here."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from igd.serve import v1
from igd.serve.inference import InferRequest
from igd.serve.schemas import ErrorReply, Reply
from igd.serve.tensors import HEADER_LENGTH


class ServerReply(Reply):
    """What serves."""

    name: str = Field(examples=["igd-ray"])
    version: str
    extensions: list[str] = Field(examples=[["binary_tensor_data"]])


class LiveReply(Reply):
    """That the process answers."""

    live: bool


class ServerReadyReply(Reply):
    """Whether there is a point in sending images here."""

    ready: bool


class ModelReadyReply(Reply):
    """That a category's model answers."""

    name: str = Field(examples=["bottle"])
    ready: bool


class TensorReply(Reply):
    """A tensor that a model takes or gives."""

    name: str = Field(examples=["score"])
    datatype: str = Field(examples=["FP64"])
    shape: list[int] = Field(description="-1 is the number of images.", examples=[[-1]])


class ModelReply(Reply):
    """What a model takes and gives."""

    name: str = Field(examples=["bottle"])
    versions: list[str] = Field(description="The one in production; no other answers.",
                                examples=[["20260102T030405678-0a1b2c3d"]])
    platform: str = Field(examples=["igd_ray"])
    inputs: list[TensorReply] = Field(
        description="`image`: image files, BYTES [N]. Decoded RGB pixels, UINT8 [N, H, W, 3] or "
                    "[H, W, 3], are taken under the same name.")
    outputs: list[TensorReply] = Field(
        description="`score`, `p_value`, `threshold` and `decision` as in /v1; `terms.NAME`, the "
                    "parts of the score; `heatmap`, raw values at the size of the model's input, "
                    "which only comes where it is asked for.")


class OutputTensor(Reply):
    """What is said of the images, in their order."""

    name: str = Field(examples=["score"])
    datatype: str = Field(examples=["FP64"])
    shape: list[int] = Field(examples=[[1]])
    data: list[Any] | None = Field(default=None, description="Flat.", examples=[[41.7]])
    parameters: dict[str, int] | None = Field(
        default=None, description="binary_data_size, in place of data.")


class InferReply(Reply):
    """What a category's model says of images."""

    model_name: str = Field(examples=["bottle"])
    model_version: str = Field(examples=["20260102T030405678-0a1b2c3d"])
    id: str | None = Field(default=None, description="As in the request.")
    outputs: list[OutputTensor]


def _inlined(schema: Any, named: dict[str, Any]) -> Any:
    """A JSON schema without references, which would not resolve within OpenAPI's document."""
    if isinstance(schema, list):
        return [_inlined(part, named) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        schema = named[schema["$ref"].rpartition("/")[2]] | schema
    return {key: _inlined(value, named) for key, value in schema.items()
            if key not in ("$ref", "$defs")}


def _request_schema() -> Any:
    schema = InferRequest.model_json_schema()
    return _inlined(schema, schema["$defs"])


ERRORS = v1.ERRORS | {
    400: {"model": ErrorReply, "description": "The request is not what the protocol says."},
    404: {"model": ErrorReply, "description": "No such category, or a version that is not in "
                                              "production."},
    422: {"model": ErrorReply, "description": "An image cannot be used; `error` says which, `code` "
                                              "says why."},
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FILES = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1],
                      "data": ["iVBORw0KGgo..."]}],
          "outputs": [{"name": "score"}, {"name": "decision"}]}
_PIXELS = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 3],
                       "data": [255] * 192}]}
REQUEST: dict[str, Any] = {"requestBody": {
    "required": True,
    "description": f"JSON, or with the header `{HEADER_LENGTH}` JSON of that length with the "
                   "bytes of the tensors behind it.",
    "content": {
        "application/json": {"schema": _request_schema(), "examples": {
            "files": {"summary": "An image file, in base64", "value": _FILES},
            "pixels": {"summary": "Decoded pixels", "value": _PIXELS}}},
        "application/octet-stream": _BINARY}}}
REPLY: dict[int | str, dict[str, Any]] = {200: {
    "description": "JSON; where outputs are asked for as binary data, JSON of as many bytes as "
                   f"the header `{HEADER_LENGTH}` says, with theirs behind it.",
    "content": {"application/octet-stream": _BINARY}}}
