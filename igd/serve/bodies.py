"""Images in the bodies of requests: by themselves, or as the files of a form."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from igd.serve.faults import RequestError
from igd.serve.gate import Gate

NAME_LENGTH = 255
FORM = "multipart/form-data"
FIELD_BYTES = 64 * 1024
_WORDS = re.compile(r"text/.*|application/.*(json|xml|yaml|javascript)")
"""Kinds of bodies that say something about an image. `application/x-www-form-urlencoded`, which
curl calls everything, is taken for the image it mostly is."""


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
    if _WORDS.fullmatch(kind):
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
        try:
            form = await _Form(request, most).parse()
        except MultiPartException as error:
            raise RequestError(400, "bad_form", error.message) from None
        except UnicodeError:
            raise RequestError(400, "bad_form", "names that are not in the form's charset"
                               ) from None
        files = [Sent(name=_shown(part.filename or ""), data=await part.read())
                 for _, part in form.multi_items() if isinstance(part, UploadFile)]
        await form.close()
    if not files:
        raise RequestError(400, "no_file", "the form has no file")
    return files


class _Form(MultiPartParser):
    """A form whose files stay in memory, which the limit of the body bounds."""

    spool_max_size = 1 << 62

    def __init__(self, request: Request, most: int) -> None:
        super().__init__(request.headers, self._to_the_end(request), max_files=most,
                         max_fields=most, max_part_size=FIELD_BYTES)
        self._ended = False

    def on_end(self) -> None:
        self._ended = True

    async def _to_the_end(self, request: Request) -> AsyncGenerator[bytes, None]:
        async for chunk in request.stream():
            yield chunk
        if not self._ended:  # its last file would be missing without a word
            raise MultiPartException("the form was cut, or has another boundary")


def _shown(name: str) -> str:
    """A file name that any reply can hold: some charsets make characters that UTF-8 has none for.
    """
    return name[:NAME_LENGTH].encode("utf-8", "replace").decode()


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
