"""What is counted, under labels of which there are only so many."""

from __future__ import annotations

from collections import Counter

from prometheus_client.parser import text_string_to_metric_families
from serving import TestClient, token

URL = "/v1/categories/weave/score"


def samples(client: TestClient, name: str, *labels: str) -> Counter[tuple[str, ...]]:
    """Values of a metric by some of its labels."""
    found: Counter[tuple[str, ...]] = Counter()
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name:
                found[tuple(sample.labels[label] for label in labels)] += sample.value
    return found


def test_a_token_that_is_still_in_use_is_seen_by_its_name(serve) -> None:
    secrets = {name: f"the-{name}-token-0123456789" for name in ("old", "new")}
    client = serve(tokens=tuple(token(name, secret) for name, secret in secrets.items()))
    for name in ("old", "new", "old", "unknown"):
        client.get("/v1/categories",
                   headers={"authorization": f"Bearer {secrets.get(name, 'x')}"})
    client.headers["authorization"] = f"Bearer {secrets['new']}"
    assert samples(client, "igd_token_requests_total", "token") == {("old",): 2, ("new",): 1}


def test_requests_images_and_rejects_are_counted(serve, picture: bytes) -> None:
    client = serve(fpr=0.04, review_fpr=0.2)
    replies = [client.post(URL, content=picture).json() for _ in range(3)]
    client.post(URL, content=b"no image")
    route = "/v1/categories/{category}/score"
    requests = samples(client, "igd_requests_total", "route", "category", "code")
    assert requests[route, "weave", "200"] == 3 and requests[route, "weave", "422"] == 1
    assert samples(client, "igd_images_scored_total", "category", "decision") == {
        ("weave", replies[0]["decision"]): 3}
    assert samples(client, "igd_images_rejected_total", "category", "reason") == {
        ("weave", "not_image"): 1}
    assert samples(client, "igd_batch_images_count") == {(): 3}
    assert samples(client, "igd_score", "category", "quantile")["weave", "0.5"] == (
        replies[0]["score"])
    assert samples(client, "igd_model_info", "category", "version")[
        "weave", replies[0]["model_version"]] == 1
    assert samples(client, "igd_images_in_flight") == {(): 0}
    assert samples(client, "igd_models_held") == {(): 2}
