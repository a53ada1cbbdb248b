"""An endpoint in this process, for tests."""

from __future__ import annotations

import warnings

from igd.score.scorer import CPU
from igd.serve.config import EndpointConfig
from igd.serve.endpoint import Endpoint
from igd.serve.local import LocalScorers
from igd.serve.models import Models

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Starlette asks for httpx2, a rename of what it uses here
    from starlette.testclient import TestClient

__all__ = ["TestClient", "endpoint_of"]


def endpoint_of(config: EndpointConfig) -> Endpoint:
    return Endpoint(config, LocalScorers(Models(
        config.models, fpr=config.fpr, review_fpr=config.review_fpr,
        max_bytes=config.model_bytes, device=CPU)))
