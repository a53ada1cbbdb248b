"""The page at `/`, where a person sends an image and sees what is said of it.

It is plain files of this package; the browser gets all else from the same API as everybody.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, HTTPException, Response

from igd.serve.config import EndpointConfig

TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
FILES = ("endpoint.js", "files.js", "heatmap.js", "histogram.js", "history.js", "icon.svg",
         "page.js", "picker.js", "picture.js", "style.css", "svg.js", "verdict.js", "words.js")
PATHS = frozenset({"/", *(f"/page/{name}" for name in FILES)})
"""They need no token: they say nothing of models or images."""
HEADERS = {
    "content-security-policy": "; ".join((
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'",
        "img-src 'self' blob: data:", "base-uri 'none'", "form-action 'none'",
        "frame-ancestors 'none'",
        # no text of a server or of a file's name can become markup, whatever a script does
        "require-trusted-types-for 'script'", "trusted-types 'none'")),
    "cross-origin-opener-policy": "same-origin",
}


def router(config: EndpointConfig) -> APIRouter:
    """The routes of the page and its files."""
    routes = APIRouter(include_in_schema=False)
    page = _read("index.html").replace("MAX_BODY_BYTES", str(config.max_body_bytes))
    parts = {name: _read(name) for name in FILES}

    @routes.get("/")
    async def index() -> Response:
        return Response(page, media_type="text/html", headers=HEADERS)

    @routes.get("/page/{name}")
    async def part(name: str) -> Response:
        if name not in parts:
            raise HTTPException(404)
        return Response(parts[name], media_type=TYPES[name.rpartition(".")[2]], headers=HEADERS)

    return routes


def _read(name: str) -> str:
    return files("igd.serve").joinpath("page", name).read_text("utf-8")
