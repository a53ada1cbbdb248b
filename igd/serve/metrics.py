"""What an endpoint counts, in Prometheus form.

Every process counts for itself; its samples carry a label `replica`, so that one page shows all
processes and a query adds them up. Labels take values from bounded sets only: the categories of the
registry, the routes of the application, codes, the names of tokens.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from igd.serve.gate import Gate

if TYPE_CHECKING:  # the door, in Ray Serve's proxy, needs no torch
    from igd.serve.catalogue import Catalogue
    from igd.serve.models import Answer, Card, Models

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
UNKNOWN = "_unknown"
"""The category of requests for none that there is."""
RECENT = 1024
"""Scores of a category that its quantiles are of."""
QUANTILES = (0.5, 0.9, 0.99)
SECONDS = (.005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30)
BATCHES = (1, 2, 4, 8, 16, 32)


ByReplica = Mapping[str, list[Metric]]
"""What processes have counted: families by what they are about and the process's name."""


def this_process() -> str:
    """What this process is called in the label `replica`."""
    return f"{socket.gethostname()}:{os.getpid()}"


class RequestMetrics:
    """Requests, and what was said of their images; one for a replica of the ingress."""

    def __init__(self, catalogue: Catalogue, gate: Gate) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("igd_requests", "Requests answered.",
                                 ["route", "category", "code"], registry=self._registry)
        self._seconds = Histogram("igd_request_seconds", "From a request's headers to its answer.",
                                  ["route", "category"], registry=self._registry, buckets=SECONDS)
        self._asked = Counter("igd_token_requests", "Requests by the name of their token.",
                              ["token"], registry=self._registry)
        self._rejected = Counter("igd_images_rejected", "Images that could not be used.",
                                 ["category", "reason"], registry=self._registry)
        self._decided = Counter("igd_images_scored", "Images scored, by decision.",
                                ["category", "decision"], registry=self._registry)
        self._batch = Histogram("igd_batch_images", "Images of one forward pass.",
                                registry=self._registry, buckets=BATCHES)
        self._recent: dict[str, deque[float]] = {}
        self._registry.register(_Now(catalogue, gate, self._recent))

    def answered(self, route: str, category: str, code: int, seconds: float,
                 caller: str | None) -> None:
        self._requests.labels(route, category, code).inc()
        if caller is not None:
            self._asked.labels(caller).inc()
        self._seconds.labels(route, category).observe(seconds)

    def scored(self, card: Card, answer: Answer) -> None:
        self._decided.labels(card.category, answer.assessment.decision).inc()
        self._recent.setdefault(card.category, deque(maxlen=RECENT)).append(answer.score)
        self._batch.observe(answer.batch)

    def rejected(self, category: str, reason: str) -> None:
        self._rejected.labels(category, reason).inc()

    def collect(self) -> ByReplica:
        """The samples of this process."""
        return of_this_process("requests", self._registry.collect())


class _Now(Collector):
    """What is the case rather than what has happened."""

    def __init__(self, catalogue: Catalogue, gate: Gate, recent: dict[str, deque[float]]) -> None:
        self._catalogue, self._gate, self._recent = catalogue, gate, recent

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("igd_images_in_flight", "Images being scored or waiting for it.",
                                value=self._gate.taken)
        yield GaugeMetricFamily("igd_images_in_flight_limit", "Images beyond are refused.",
                                value=self._gate.places)
        yield CounterMetricFamily("igd_refused", "Requests refused for lack of a place.",
                                  value=self._gate.refused)
        yield CounterMetricFamily("igd_registry_unreachable", "Looks at the registry that failed.",
                                  value=self._catalogue.unreachable)
        yield from self._models()
        yield self._quantiles()

    def _models(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("igd_model_info", "The model that answers.",
                                 labels=["category", "version", "preset"])
        ready = GaugeMetricFamily("igd_category_ready", "Whether a category is answered for.",
                                  labels=["category"])
        stale = GaugeMetricFamily("igd_model_stale", "Whether the version in production cannot be "
                                  "used, so that another answers or none.", labels=["category"])
        failures = CounterMetricFamily("igd_model_update_failures", "Versions that could not be "
                                       "loaded.", labels=["category"])
        for entry in self._catalogue.entries:
            label = [entry.category]
            if entry.card:
                info.add_metric([*label, entry.card.version, entry.card.preset], 1)
            ready.add_metric(label, entry.card is not None)
            stale.add_metric(label, entry.state in ("stale", "failed"))
            failures.add_metric(label, entry.failures)
        yield from (info, ready, stale, failures)

    def _quantiles(self) -> Metric:
        family = GaugeMetricFamily("igd_score", f"Quantiles of the last {RECENT} scores.",
                                   labels=["category", "quantile"])
        for category, scores in self._recent.items():
            for quantile, value in zip(QUANTILES, np.quantile(list(scores), QUANTILES),
                                       strict=True):
                family.add_metric([category, str(quantile)], float(value))
        return family


def of_models(models: Models) -> ByReplica:
    """What a scorer says of the models it holds."""
    return of_this_process("models", [
        CounterMetricFamily("igd_models_evicted", "Models dropped to make room for others.",
                            value=models.evicted),
        GaugeMetricFamily("igd_models_held", "Models in memory.", value=len(models.held)),
        GaugeMetricFamily("igd_models_held_bytes", "Their weights.", value=models.held_bytes)])


def of_this_process(about: str, families: Iterable[Metric]) -> ByReplica:
    """Families whose samples say which process they are of."""
    name, found = this_process(), []
    for family in families:
        family.samples = [sample._replace(labels={**sample.labels, "replica": name})
                          for sample in family.samples]
        found.append(family)
    return {f"{about} of {name}": found}


def page(replicas: ByReplica) -> bytes:
    """The text of /metrics: families of several processes, each family once."""
    merged: dict[str, Metric] = {}
    for families in replicas.values():
        for family in families:
            if family.name in merged:
                merged[family.name].samples += family.samples
            else:
                merged[family.name] = family
    return generate_latest(_Page(list(merged.values())))


class _Page(CollectorRegistry):
    def __init__(self, families: Sequence[Metric]) -> None:
        super().__init__(auto_describe=False)
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families
