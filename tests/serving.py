"""An endpoint in this process, for tests."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

from igd import registry
from igd.score.device import CPU
from igd.serve.config import EndpointConfig
from igd.serve.endpoint import Endpoint
from igd.serve.local import LocalScorers
from igd.serve.models import Models
from igd.serve.tokens import Token

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Starlette asks for httpx2, a rename of what it uses here
    from starlette.testclient import TestClient

__all__ = ["TestClient", "another_version", "damage", "endpoint_of", "token"]


def endpoint_of(config: EndpointConfig) -> Endpoint:
    return Endpoint(config, LocalScorers(Models(
        config.models, fpr=config.fpr, review_fpr=config.review_fpr,
        max_bytes=config.model_bytes, device=CPU)))


def token(name: str, secret: str) -> Token:
    return Token(name=name, sha256=hashlib.sha256(secret.encode()).hexdigest())


def another_version(models: str, category: str) -> str:
    """Saves the model in use again, with half of its calibration, and returns the version."""
    bundle = registry.load_bundle(models, category)
    half = bundle.calibration.slice(0, len(bundle.calibration) // 2)
    return registry.save_bundle(models, category, bundle.model, bundle.config, half,
                                bundle.training)


def damage(models: str, category: str, version: str, name: str = "weights.safetensors") -> None:
    """Flips a bit in a file of a version; again: flips it back."""
    path = Path(models, category, version, name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 128
    path.write_bytes(data)
