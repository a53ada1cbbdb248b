"""An endpoint in this process, over real models."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from serving import TestClient, endpoint_of

from igd.serve.app import create_app
from igd.serve.config import EndpointConfig
from igd.serve.endpoint import Endpoint

Serve = Callable[..., TestClient]


@pytest.fixture(scope="module")
def serve(tiny_models: Path) -> Iterator[Serve]:
    """Starts an endpoint and waits until it has looked at its models."""
    with ExitStack() as stack:
        def start(endpoint: Endpoint | None = None, **settings: Any) -> TestClient:
            if endpoint is None:
                settings = {"models": str(tiny_models), "follow_s": 3600, **settings}
                endpoint = endpoint_of(EndpointConfig(**settings))
            client = stack.enter_context(TestClient(
                create_app(endpoint), raise_server_exceptions=False, base_url="http://localhost"))
            deadline = time.monotonic() + 30
            while not endpoint.catalogue.settled:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            return client

        yield start


@pytest.fixture(scope="module")
def picture(tiny_data: Path) -> bytes:
    """A defective image, at another size than the model's."""
    path = min((tiny_data / "weave" / "test").glob("[!g]*/*.png"))
    stream = io.BytesIO()
    Image.open(path).resize((160, 96)).save(stream, "PNG")
    return stream.getvalue()
