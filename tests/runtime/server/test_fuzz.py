"""Requests made up from the surface's own description: whatever they hold, no answer is a 5xx.

And every answer is one that the description knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import (
    CheckFunction,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from starlette.testclient import TestClient

from graft_protocol.config import ServerSettings
from graft_runtime.metrics import Metrics
from graft_runtime.server.app import create_app
from tests.support.any_backend import AnyBackend
from tests.support.chat_server import chat_folder
from tests.support.fake_backend import BASE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

EXAMPLES = 25
"""Requests for each operation."""


@schemathesis.check
def never_fails(
    _: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]
) -> None:
    """Let no 5xx pass but Triton's word for what it knows and does not do."""
    if response.status_code == 501 and case.path.startswith("/v2/"):
        return
    assert response.status_code < 500, response.text


CHECKS: list[CheckFunction] = [
    never_fails,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def described(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[schemathesis.BaseSchema]:
    backend = AnyBackend(chat_folder(tmp_path_factory.mktemp("model")), limit=1024)
    app = create_app(backend, ServerSettings(), metrics=Metrics(BASE))
    with TestClient(app):  # its lifespan ends what it starts
        yield schemathesis.openapi.from_asgi("/openapi.json", app)


def test_no_request_fails_the_server(described: schemathesis.BaseSchema) -> None:
    failures = {}
    labels = []
    for found in described.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        labels.append(operation.label)
        try:
            fuzz(operation)
        except FailureGroup as error:
            failures[operation.label] = str(error)
    assert not failures, "\n\n".join(f"{label}: {text}" for label, text in failures.items())
    assert len(labels) > 40
    assert "POST /v1/chat/completions" in labels


def fuzz(operation: schemathesis.APIOperation[Any, Any, Any, Any]) -> None:
    """Send what an operation's description allows, and some that it does not."""

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(), st.booleans())
    def answers(case: schemathesis.Case[Any], exists: bool) -> None:
        if exists:  # nobody would ever guess a model's name
            known = {"model": BASE, "version": "1"}
            given = case.path_parameters or {}
            case.path_parameters = {name: known.get(name, given[name]) for name in given}
        case.call_and_validate(checks=CHECKS)

    answers()
