"""A client of the endpoint, for programs.

    with Client("http://127.0.0.1:8000") as client:
        reply = client.score("bottle", "part.png")
        print(reply.decision, reply.score)

`AsyncClient` is the same for asyncio. Scoring changes nothing, so a request that the endpoint is
too busy for, or whose connection breaks, is sent again; one that was answered otherwise is not.

What a call does is written once, as a generator of steps: what to read, what to send, how long to
wait. `Client` and `AsyncClient` only differ in how they carry a step out.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
import uuid
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn, TypeVar
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from igd.errors import ConfigError, DataError, IgdError, ImageError, ModelError, StorageError
from igd.serve.schemas import (
    BatchItem,
    BatchReply,
    CategoriesReply,
    CategoryReply,
    ErrorReply,
    Reply,
    ScoreReply,
)

VARIABLE = "IGD_SERVE_TOKEN"
BATCH_IMAGES = 64
BATCH_BYTES = 64 * 1024 * 1024
"""Of the images of one request; a larger image goes alone."""
LONGEST_WAIT_S = 10.0
"""Before another try, whatever the endpoint asks for; a quarter may be added by chance."""
FIRST_WAIT_S = 0.2
"""Where it asks for nothing; twice as long from try to try."""

Image = bytes | str | os.PathLike[str] | BinaryIO
"""The bytes of an image, the path of a file, or a file open for reading bytes."""
R = TypeVar("R")
M = TypeVar("M", bound=Reply)


@dataclass(frozen=True)
class _Pause:
    seconds: float


@dataclass(frozen=True)
class _Read:
    file: str | os.PathLike[str] | BinaryIO


_Step = httpx.Request | _Pause | _Read
_Call = Generator[_Step, Any, R]
"""Yields steps; is sent the response or the error of a request, and the bytes of a file."""


class Client:
    """Asks an endpoint, and waits for the answer. Threads may share one.

    Args:
        url: of the endpoint, `http://127.0.0.1:8000`.
        token: if the endpoint asks for one; by default that in the environment variable
            IGD_SERVE_TOKEN.
        timeout_s: of one request: no try is begun after it, and none waits longer than what is
            left of it for the endpoint to take or send anything.
        tries: for one request, while the endpoint is busy or cannot be reached.

    Every method but `ready` raises:
        ImageError: the image cannot be used; `reason` says why.
        DataError: a file cannot be read, or is too large for the endpoint.
        ModelError: the endpoint knows no such category.
        ConfigError: the token is missing or wrong, the endpoint is not called by that name, or a
            setting cannot be.
        StorageError: the endpoint was not reached, stayed busy, took too long or failed.
    The message holds the id of the request, by which the endpoint's log knows it.
    """

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 30.0,
                 tries: int = 5) -> None:
        self._http = httpx.Client(base_url=_checked(url), headers=_authorization(token))
        self._calls = _Calls(self._http.build_request, timeout_s=timeout_s, tries=tries)

    def score(self, category: str, image: Image,
              heatmap: Literal["png", "overlay"] | None = None) -> ScoreReply:
        """What a category's model says of one image.

        Args:
            heatmap: also gives a picture in base64: the grey `heatmap`, whose black and white are
                `heatmap_min` and `heatmap_max`, or the `overlay`.

        Example:
            >>> reply = client.score("bottle", "part.png")
            >>> if reply.decision != "normal":
            ...     print(reply.p_value, reply.regions)
        """
        return self._do(self._calls.score(category, image, heatmap))

    def heatmap(self, category: str, image: Image) -> bytes:
        """The heatmap of an image: a grey PNG of the model's input size.

        Example:
            >>> Path("heatmap.png").write_bytes(client.heatmap("bottle", "part.png"))
        """
        return self._do(self._calls.picture(category, image, "png"))

    def overlay(self, category: str, image: Image) -> bytes:
        """The model's input with the heatmap on top: a PNG in colour.

        Example:
            >>> Path("overlay.png").write_bytes(client.overlay("bottle", "part.png"))
        """
        return self._do(self._calls.picture(category, image, "overlay"))

    def score_batch(self, category: str, images: Iterable[Image]) -> list[BatchItem]:
        """Scores any number of images, up to 64 in a request; one that cannot be used fails alone.

        Returns:
            For each image, in order, its `result` or its `error`.

        Example:
            >>> for item in client.score_batch("bottle", Path("parts").glob("*.png")):
            ...     print(item.name, item.result.score if item.result else item.error.code)
        """
        return self._do(self._calls.batch(category, images))

    def categories(self) -> list[CategoryReply]:
        """The categories of the endpoint, and the models that answer for them.

        Example:
            >>> [item.category for item in client.categories() if item.model_version]
            ['bottle', 'hazelnut']
        """
        return self._do(self._calls.categories())

    def ready(self) -> bool:
        """Whether there is a point in sending images now. Asks once.

        Raises:
            ConfigError: something else answers at this address.

        Example:
            >>> while not client.ready():
            ...     time.sleep(1)
        """
        return self._do(self._calls.ready())

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({str(self._http.base_url)!r})"

    def _do(self, call: _Call[R]) -> R:
        result: Any = None
        while True:
            try:
                step = call.send(result)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            result = self._take(step)

    def _take(self, step: _Step) -> object:
        if isinstance(step, _Pause):
            time.sleep(step.seconds)
            return None
        if isinstance(step, _Read):
            return _bytes_of(step.file)
        try:
            return self._http.send(step)
        except httpx.TransportError as error:
            return error


class AsyncClient:
    """`Client` for asyncio: the same arguments, methods and errors, to be awaited.

    Example:
        >>> async with AsyncClient("http://127.0.0.1:8000") as client:
        ...     replies = await asyncio.gather(*(client.score("bottle", p) for p in paths))
    """

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 30.0,
                 tries: int = 5) -> None:
        self._http = httpx.AsyncClient(base_url=_checked(url), headers=_authorization(token))
        self._calls = _Calls(self._http.build_request, timeout_s=timeout_s, tries=tries)

    async def score(self, category: str, image: Image,
                    heatmap: Literal["png", "overlay"] | None = None) -> ScoreReply:
        """As `Client.score`."""
        return await self._do(self._calls.score(category, image, heatmap))

    async def heatmap(self, category: str, image: Image) -> bytes:
        """As `Client.heatmap`."""
        return await self._do(self._calls.picture(category, image, "png"))

    async def overlay(self, category: str, image: Image) -> bytes:
        """As `Client.overlay`."""
        return await self._do(self._calls.picture(category, image, "overlay"))

    async def score_batch(self, category: str, images: Iterable[Image]) -> list[BatchItem]:
        """As `Client.score_batch`."""
        return await self._do(self._calls.batch(category, images))

    async def categories(self) -> list[CategoryReply]:
        """As `Client.categories`."""
        return await self._do(self._calls.categories())

    async def ready(self) -> bool:
        """As `Client.ready`."""
        return await self._do(self._calls.ready())

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"AsyncClient({str(self._http.base_url)!r})"

    async def _do(self, call: _Call[R]) -> R:
        result: Any = None
        while True:
            try:
                step = call.send(result)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            result = await self._take(step)

    async def _take(self, step: _Step) -> object:
        if isinstance(step, _Pause):
            await asyncio.sleep(step.seconds)
            return None
        if isinstance(step, _Read):
            return await asyncio.to_thread(_bytes_of, step.file)
        try:
            return await self._http.send(step)
        except httpx.TransportError as error:
            return error


class _Calls:
    """What each method reads, sends and makes of the reply.

    Args:
        build: `build_request` of an httpx client.
    """

    def __init__(self, build: Callable[..., httpx.Request], *, timeout_s: float, tries: int
                 ) -> None:
        if not timeout_s > 0 or tries < 1:
            raise ConfigError(f"timeout_s={timeout_s}, tries={tries}: expected more than 0")
        self._build, self._timeout_s, self._tries = build, timeout_s, tries

    def score(self, category: str, image: Image, heatmap: str | None) -> _Call[ScoreReply]:
        data = yield from _read(image)
        params = {"heatmap": heatmap} if heatmap else None
        response = yield from self._answer("POST", _path(category, "score"), content=data,
                                           params=params, headers={"accept": "application/json"})
        return _parsed(ScoreReply, response)

    def picture(self, category: str, image: Image, kind: str) -> _Call[bytes]:
        data = yield from _read(image)
        response = yield from self._answer("POST", _path(category, "score"), content=data,
                                           params={"heatmap": kind},
                                           headers={"accept": "image/png"})
        return response.content

    def batch(self, category: str, images: Iterable[Image]) -> _Call[list[BatchItem]]:
        found: list[BatchItem] = []
        files: list[tuple[str, bytes]] = []
        for number, image in enumerate(images):
            data = yield from _read(image)
            if files and (len(files) == BATCH_IMAGES
                          or sum(len(file) for _, file in files) + len(data) > BATCH_BYTES):
                found += yield from self._batch(category, files)
                files = []
            files.append((_name(image, number), data))
        return found + ((yield from self._batch(category, files)) if files else [])

    def _batch(self, category: str, files: list[tuple[str, bytes]]) -> _Call[list[BatchItem]]:
        response = yield from self._answer("POST", _path(category, "score-batch"),
                                           files=[("images", file) for file in files])
        results = _parsed(BatchReply, response).results
        if len(results) != len(files):
            raise StorageError(f"{len(results)} results for {len(files)} images "
                               f"(request {_request_id(response)})")
        return results

    def categories(self) -> _Call[list[CategoryReply]]:
        response = yield from self._answer("GET", "/v1/categories")
        return _parsed(CategoriesReply, response).details

    def ready(self) -> _Call[bool]:
        response = yield self._build("GET", "/readyz", timeout=self._timeout_s)
        if isinstance(response, httpx.TransportError) or response.status_code == 503:
            return False
        if response.status_code != 200:
            _refuse(response)
        return True

    def _answer(self, method: str, path: str, headers: dict[str, str] | None = None,
                **body: Any) -> _Call[httpx.Response]:
        """The successful response to a request that may be sent again."""
        ends = time.monotonic() + self._timeout_s
        headers = {**(headers or {}), "x-request-id": uuid.uuid4().hex}
        for number in range(1, self._tries + 1):
            left_s = ends - time.monotonic()
            result: httpx.Response | httpx.TransportError = yield self._build(
                method, path, headers=headers, timeout=left_s, **body)
            if not _again(result):
                break
            wait_s = _wait_s(result, number)
            if number == self._tries or time.monotonic() + wait_s >= ends:
                break
            yield _Pause(wait_s)
        if isinstance(result, httpx.TransportError):
            raise _unreached(result, number, self._timeout_s) from result
        if result.status_code != 200:
            _refuse(result, number)
        return result


def _again(result: httpx.Response | httpx.TransportError) -> bool:
    """Whether a request is worth another try: the endpoint was busy, or the connection broke."""
    if isinstance(result, httpx.Response):
        return result.status_code == 503
    return isinstance(result, httpx.NetworkError | httpx.RemoteProtocolError)


def _wait_s(result: httpx.Response | httpx.TransportError, number: int) -> float:
    """Before the next try: as the endpoint asks, or longer each time; some more by chance, so that
    clients that were refused together do not come back together."""
    said = result.headers.get("retry-after", "") if isinstance(result, httpx.Response) else ""
    wanted: float = int(said) if said.isdecimal() else FIRST_WAIT_S * 2 ** (number - 1)
    return min(wanted, LONGEST_WAIT_S) * random.uniform(1, 1.25)


def _unreached(error: httpx.TransportError, tries: int, timeout_s: float) -> StorageError:
    request = error.request
    where = f"{request.url.scheme}://{request.url.netloc.decode()}"
    what = (f"no answer within {timeout_s:g} s" if isinstance(error, httpx.TimeoutException)
            else f"cannot be reached ({str(error) or type(error).__name__}, {_tries(tries)})")
    return StorageError(f"endpoint {where}: {what}; check that it runs there "
                        f"(request {request.headers['x-request-id']})")


def _refuse(response: httpx.Response, tries: int = 1) -> NoReturn:
    """Raises what a reply that is no success says."""
    try:
        reply = ErrorReply.model_validate_json(response.content, extra="ignore")
        code, said = reply.code, reply.error
    except ValidationError:  # something in between has answered
        code, said = "", f"{response.reason_phrase or 'no'} reply of an unknown kind"
    status, request_id = response.status_code, f"request {_request_id(response)}"
    if status == 422 and code != "invalid_request":
        raise ImageError(code or "corrupt", f"{said} ({request_id})")
    kind = _kind(status, code)
    again = f"; {_tries(tries)}" if status == 503 else ""
    raise kind(f"{said} ({status} {code}{again}; {request_id})".replace("  ", " "))


def _kind(status: int, code: str) -> type[IgdError]:
    """The error for a status, by who has to act on it."""
    if status == 404 and code == "unknown_category":
        return ModelError
    if status == 413:
        return DataError
    return StorageError if status == 408 or status >= 500 else ConfigError


def _parsed(kind: type[M], response: httpx.Response) -> M:
    """A reply; what a newer endpoint says beyond it is left out."""
    try:
        return kind.model_validate_json(response.content, extra="ignore")
    except ValidationError as error:
        raise StorageError("the answer is not that of an igd-ray endpoint: "
                           f"{error.errors()[0]['msg']} (request {_request_id(response)})"
                           ) from None


def _request_id(response: httpx.Response) -> str:
    sent = response.request.headers.get("x-request-id", "-")
    return str(response.headers.get("x-request-id", sent))


def _tries(count: int) -> str:
    return f"{count} tries" if count > 1 else "1 try"


def _path(category: str, action: str) -> str:
    return f"/v1/categories/{quote(category, safe='')}/{action}"


def _read(image: Image) -> _Call[bytes]:
    if isinstance(image, bytes):
        return image
    data: bytes = yield _Read(image)
    return data


def _bytes_of(file: str | os.PathLike[str] | BinaryIO) -> bytes:
    try:
        data = Path(file).read_bytes() if isinstance(file, str | os.PathLike) else file.read()
    except OSError as error:
        raise DataError(f"image {file} cannot be read: {error.strerror or error}") from error
    if not isinstance(data, bytes):
        raise DataError(f"image {file}: expected a file open for reading bytes (mode 'rb')")
    return data


def _name(image: Image, number: int) -> str:
    """What an image of a batch is called: its file, or its place."""
    name = image if isinstance(image, str | os.PathLike) else getattr(image, "name", None)
    if not isinstance(name, str | os.PathLike):
        return str(number)
    return os.fsencode(os.path.basename(name)).decode(errors="replace")


def _checked(url: str) -> str:
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise ConfigError(f"endpoint {url!r}: {error}; expected http://HOST:PORT") from None
    if parts.userinfo:
        raise ConfigError("endpoint: no password in the URL; give the token as token=")
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ConfigError(f"endpoint {url!r}: expected http://HOST:PORT or https://HOST:PORT")
    return url


def _authorization(token: str | None) -> dict[str, str]:
    token = (os.environ.get(VARIABLE, "") if token is None else token).strip()
    if not token.isascii() or any(char <= " " or char == "\x7f" for char in token):
        raise ConfigError("token: expected printable ASCII characters without spaces")
    return {"authorization": f"Bearer {token}"} if token else {}
