"""The endpoint on Ray Serve."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Iterator

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from igd.errors import ConfigError
from igd.serve.app import create_app
from igd.serve.endpoint import Endpoint, EndpointConfig

NAME = "igd"


@serve.deployment(name="Endpoint", max_ongoing_requests=16, max_queued_requests=64)
@serve.ingress()
class EndpointDeployment:
    """A replica: the FastAPI application over its own Endpoint."""

    def __init__(self, config: EndpointConfig) -> None:
        self._endpoint = Endpoint(config)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._endpoint)


def build(config: EndpointConfig) -> Application:
    """The Serve application of an endpoint."""
    application: Application = EndpointDeployment.bind(config)  # type: ignore[attr-defined]
    return application


def _check_free(host: str, port: int) -> None:
    """Refuses a port that is taken: Serve would share it, and half the requests go elsewhere."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"port {port} of {host} cannot be had: {error.strerror}; choose "
                              "another with --port") from error


@contextlib.contextmanager
def running(config: EndpointConfig, *, host: str, port: int) -> Iterator[str]:
    """Runs the application on a connected cluster and gives its URL; stops it on leaving."""
    _check_free(host, port)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(http_options={"host": host, "port": port})
    try:
        serve.run(build(config), name=NAME, route_prefix="/")
        yield f"http://{host}:{port}"
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
