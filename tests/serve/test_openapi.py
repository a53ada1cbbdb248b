"""The OpenAPI document says what the endpoint does, to requests that are in it and to others."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from serving import TestClient

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its dependencies say to each other
    import requests
    import schemathesis
    from schemathesis.checks import load_all_checks
    from schemathesis.specs.openapi import checks

load_all_checks()
CHECKS = [checks.status_code_conformance, checks.content_type_conformance,
          checks.response_schema_conformance, checks.response_headers_conformance,
          schemathesis.checks.not_a_server_error]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def client(serve) -> TestClient:
    return serve(max_body_bytes=100_000)


@pytest.fixture(scope="module")
def document(client: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, operation) for path, methods in document["paths"].items()
            for method, operation in methods.items()]


def test_every_operation_says_what_it_is_for_and_every_way_it_can_fail(document: dict[str, Any]
                                                                       ) -> None:
    for path, method, operation in operations(document):
        assert operation["summary"] and operation["tags"], path
        for status, response in operation["responses"].items():
            assert response["description"], (path, status)
            assert response["content"], (path, status)
        wanted = {"200", "400", "401", "403", "431", "500", "504"}
        if method == "post":
            wanted |= {"404", "408", "413", "422", "503"}
            assert operation["requestBody"]["content"], path
        assert wanted <= set(operation["responses"]), (path, method)


def test_every_error_has_the_one_shape(document: dict[str, Any]) -> None:
    for path, _, operation in operations(document):
        for status, response in operation["responses"].items():
            if status >= "400" and (path, status) not in {("/readyz", "503"),
                                                          ("/v2/health/ready", "503")}:
                assert response["content"]["application/json"]["schema"] == {
                    "$ref": "#/components/schemas/ErrorReply"}, (path, status)


def test_what_is_answered_is_what_the_document_says(client: TestClient, document: dict[str, Any]
                                                    ) -> None:
    schema = schemathesis.openapi.from_dict(document)
    tried = []
    for found in schema.get_all_operations():
        operation = found.ok()
        tried.append(operation.label)

        @seed(1)
        @settings(max_examples=15, deadline=None, database=None, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(), known=st.booleans())
        def conforms(case: schemathesis.Case, known: bool) -> None:
            if known and "category" in case.path_parameters:
                case.path_parameters["category"] = "weave"
            asked = requests.Request(**case.as_transport_kwargs("http://localhost")).prepare()
            case.validate_response(client.request(
                asked.method, asked.url, headers=dict(asked.headers), content=asked.body),
                checks=CHECKS)

        conforms()
    assert len(tried) == len(operations(document)) > 4
