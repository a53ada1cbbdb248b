"""Images in the bodies of requests: by themselves, or as the files of a form."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import UploadFile

from igd.serve.faults import RequestError
from igd.serve.gate import Gate

NAME_LENGTH = 255
FORM = "multipart/form-data"
FIELD_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One file of a request."""

    name: str
    data: bytes


async def one_image(request: Request, reading: Gate) -> bytes:
    """The image of a request: the body, or the one file of a form.

    Raises:
        RequestError: there is none, or more than one.
        OverloadedError: too many bodies are coming in already.
    """
    kind = _kind(request)
    if kind == "application/json":
        raise RequestError(400, "not_an_image", "send the bytes of an image, as the body or as "
                                                "the file of a form; nothing is fetched by URL")
    if kind != FORM:
        with reading.enter():
            return await request.body()
    files = await files_of(request, reading, most=1)
    return files[0].data


async def files_of(request: Request, reading: Gate, *, most: int) -> list[Sent]:
    """The files of a form, in order.

    Raises:
        RequestError: the body is no form, or has no file or too many.
        OverloadedError: too many bodies are coming in already.
    """
    if _kind(request) != FORM:
        raise RequestError(400, "not_a_form", "send a form of files (multipart/form-data)")
    with reading.enter():
        async with request.form(max_files=most, max_fields=most,
                                max_part_size=FIELD_BYTES) as form:
            files = [Sent(name=(part.filename or "")[:NAME_LENGTH], data=await part.read())
                     for _, part in form.multi_items() if isinstance(part, UploadFile)]
    if not files:
        raise RequestError(400, "no_file", "the form has no file")
    return files


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
