"""What an endpoint is: its models, its limits, and who may ask."""

from __future__ import annotations

from dataclasses import dataclass, fields

from igd.errors import ConfigError
from igd.serve.tokens import Token

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """Settings of an endpoint; the same for every replica.

    Attributes:
        models: registry URI.
        fpr: rate of normal images that may be called anomalous.
        review_fpr: rate of normal images that may be called review or anomalous.
        tokens: of those who may ask; without any, everybody may.
        hosts: names that a request may call this endpoint by, without port.
        model_bytes: of models that a scorer keeps in memory; at least one is kept.
        follow_s: between two looks at which versions are in production.
        max_body_bytes: of a request with one image; larger ones are refused while they come in.
        max_batch_bytes: of a request with several.
        max_batch_images: in one request.
        body_bytes: of all bodies that one process holds at a time.
        body_timeout_s: for a body to come in whole.
        timeout_s: for a request, its body included.
        in_flight: images that are scored or wait at a time, counted at the door; more are refused
            at once. None: as many as the scorers take.
        in_flight_each: the same at one replica of the ingress, wherever they come from.
        at_once: images that are scored at the same time, by all scorers.
        reading: requests whose bodies a replica of the ingress takes in at a time.
    """

    models: str
    fpr: float = 0.01
    review_fpr: float = 0.05
    tokens: tuple[Token, ...] = ()
    hosts: tuple[str, ...] = LOOPBACK
    model_bytes: int = 1024 * MIB
    follow_s: float = 5.0
    max_body_bytes: int = 32 * MIB
    max_batch_bytes: int = 128 * MIB
    max_batch_images: int = 64
    body_bytes: int = 512 * MIB
    body_timeout_s: float = 20.0
    timeout_s: float = 30.0
    in_flight: int | None = None
    in_flight_each: int | None = None
    at_once: int = 1
    reading: int = 64
    drain_s: float = 3.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not value > 0:
                raise ConfigError(f"endpoint: {field.name}={value}: expected more than 0")
        if max(self.fpr, self.review_fpr) >= 1:
            raise ConfigError(f"endpoint: fpr={self.fpr}, review_fpr={self.review_fpr}: expected "
                              "rates below 1")
