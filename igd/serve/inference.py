"""A request of the Open Inference Protocol: images, and what is to be said of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError

from igd.serve.endpoint import Image
from igd.serve.tensors import (
    files_from_binary,
    files_from_json,
    malformed,
    pixels_from_binary,
    pixels_from_json,
    read_json,
    split,
)

OUTPUTS = 64
"""That a request may name; a model has fewer."""
REFUSED = ("shared_memory", "classification")
"""Extensions of Triton's whose parameters change what a tensor is."""

Size = Annotated[StrictInt, Field(ge=1, lt=1 << 63)]


class Given(BaseModel):
    """A part of a request. What it has beside these fields is for other servers."""

    model_config = ConfigDict(extra="ignore")


class InputParameters(Given):
    """How an input is sent."""

    model_config = ConfigDict(extra="allow")

    binary_data_size: Size | None = Field(
        default=None, description="Bytes of this tensor behind the JSON, in place of `data`.")


class OutputParameters(Given):
    """How an output is wanted."""

    model_config = ConfigDict(extra="allow")

    binary_data: StrictBool | None = Field(
        default=None, description="As bytes behind the JSON, in place of `data`.")


class RequestParameters(Given):
    """How all outputs are wanted that do not say so themselves."""

    binary_data_output: StrictBool = False


class InputTensor(Given):
    """Images: files or pixels."""

    name: Literal["image"]
    datatype: Literal["BYTES", "UINT8"] = Field(
        description="BYTES: image files, in JSON in base64. UINT8: decoded RGB pixels.")
    shape: list[Size] = Field(
        min_length=1, max_length=4, description="[N] of BYTES; [N, H, W, 3] or, for one image, "
                                                "[H, W, 3] of UINT8.")
    data: list[Any] | None = Field(default=None, description="Flat or nested.")
    parameters: InputParameters = InputParameters()


class WantedTensor(Given):
    """An output that is asked for."""

    name: str
    parameters: OutputParameters = OutputParameters()


class InferRequest(Given):
    """Images, and what is to be said of them: all but the heatmap where nothing is named."""

    id: str | None = Field(default=None, description="Comes back with the reply.")
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)
    outputs: list[WantedTensor] = Field(default=[], max_length=OUTPUTS)
    parameters: RequestParameters = RequestParameters()


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request, read.

    Attributes:
        outputs: by name, whether as binary data; empty where none is named.
        binary: whether outputs are binary data that are not named.
    """

    id: str | None
    images: list[Image]
    outputs: dict[str, bool]
    binary: bool


def read(body: bytearray, header_length: str | None, *, most_json: int, most_images: int) -> Asked:
    """Reads a body.

    Args:
        header_length: as `igd.serve.tensors.split`.
        most_json: bytes of JSON.

    Raises:
        RequestError: the body is not what the protocol says, or asks for what there is not here.
    """
    text, binary = split(memoryview(body), header_length)
    if len(text) > most_json:
        raise malformed(f"more than {most_json} bytes of JSON; send images as binary data")
    try:
        request = InferRequest.model_validate(read_json(bytes(text)))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise malformed(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    _refuse_extensions([*request.inputs, *request.outputs])
    return Asked(id=request.id, images=_images(request.inputs[0], binary, most_images),
                 outputs=_outputs(request), binary=request.parameters.binary_data_output)


def _refuse_extensions(tensors: Sequence[InputTensor | WantedTensor]) -> None:
    for tensor in tensors:
        for name in tensor.parameters.model_extra or {}:
            if name.startswith(REFUSED):
                raise malformed("shared memory and classification are not to be had here; send "
                                "and fetch tensors in the body")


def _images(tensor: InputTensor, binary: memoryview, most: int) -> list[Image]:
    size, shape = tensor.parameters.binary_data_size, tensor.shape
    if (size is None) == (tensor.data is None):
        raise malformed("image: expected either data or, behind the JSON, binary_data_size bytes")
    if len(binary) != (size or 0):
        raise malformed(f"image: {len(binary)} bytes behind the JSON; expected as many as "
                        "binary_data_size says")
    count = _count(tensor.datatype, shape)
    if count > most:
        raise malformed(f"image: {count} images; expected at most {most}")
    if tensor.datatype == "BYTES":
        return list(files_from_binary(binary, count) if tensor.data is None
                    else files_from_json(tensor.data, count))
    pixels = (pixels_from_binary(binary, shape) if tensor.data is None
              else pixels_from_json(tensor.data, shape))
    return [pixels] if len(shape) == 3 else list(pixels)


def _count(datatype: str, shape: list[int]) -> int:
    """Images of a tensor."""
    if datatype == "BYTES" and len(shape) != 1:
        raise malformed(f"image: shape {shape}; expected [N] for BYTES")
    if datatype == "UINT8" and (len(shape) not in (3, 4) or shape[-1] != 3):
        raise malformed(f"image: shape {shape}; expected [N, H, W, 3] or [H, W, 3] for UINT8")
    return 1 if len(shape) == 3 else shape[0]


def _outputs(request: InferRequest) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for output in request.outputs:
        if output.name in found:
            raise malformed("outputs: the same one is named twice")
        own = output.parameters.binary_data
        found[output.name] = request.parameters.binary_data_output if own is None else own
    return found
