"""The list of models, the probes, the internal port."""

from collections.abc import AsyncIterator

import httpx
import pytest

from graft_protocol.naming import LASTING_HEADER, UNLESS_LASTING_HEADER
from graft_protocol.status import LoadReport, RuntimeStatus
from graft_runtime.server.app import create_internal_app
from graft_runtime.server.backend import Health
from tests.support.fake_backend import ADAPTER, BASE, FakeBackend

TOKEN = "correct-horse"


async def test_models_are_listed_base_first_with_their_lineage(client: httpx.AsyncClient) -> None:
    body = (await client.get("/v1/models")).json()
    base, adapter = body["data"]
    assert body["object"] == "list"
    assert (base["id"], base["parent"], base["max_model_len"]) == (BASE, None, 256)
    assert (adapter["id"], adapter["parent"]) == (ADAPTER, BASE)
    assert adapter["root"] == "s3://adapters/shouty"
    assert adapter["permission"][0]["object"] == "model_permission"


async def test_one_model_is_shown_by_name_slashes_included(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    assert (await client.get(f"/v1/models/{ADAPTER}")).json()["id"] == ADAPTER
    missing = await client.get("/v1/models/team%2Fnobody")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("health", "statuses"),
    [
        (Health(live=True, ready=False, started=False, detail="downloading"), (200, 503, 503)),
        (Health(live=True, ready=True, started=True, detail="serving"), (200, 200, 200)),
        (Health(live=False, ready=False, started=True, detail="stuck"), (503, 503, 200)),
    ],
)
async def test_each_probe_answers_its_own_question(
    client: httpx.AsyncClient, backend: FakeBackend, health: Health, statuses: tuple[int, ...]
) -> None:
    backend.condition = health
    answers = [await client.get(path) for path in ("/livez", "/readyz", "/startupz")]
    assert tuple(each.status_code for each in answers) == statuses
    assert {each.json()["detail"] for each in answers} == {health.detail}


@pytest.fixture
async def internal(backend: FakeBackend) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_internal_app(backend, TOKEN))
    async with httpx.AsyncClient(transport=transport, base_url="http://pod") as client:
        yield client


BEARER = {"authorization": f"Bearer {TOKEN}"}


async def test_the_report_comes_with_a_tag_and_304_while_it_is_the_same(
    internal: httpx.AsyncClient, backend: FakeBackend
) -> None:
    first = await internal.get("/internal/status", headers=BEARER)
    assert RuntimeStatus.model_validate_json(first.content) == backend.report
    tag = first.headers["etag"]
    for header in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        same = await internal.get("/internal/status", headers={**BEARER, "if-none-match": header})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
    backend.report = backend.report.model_copy(update={"set_hash": "changed"})
    changed = await internal.get("/internal/status", headers={**BEARER, "if-none-match": tag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != tag


async def test_who_needs_no_counters_is_not_sent_a_report_because_of_them(
    internal: httpx.AsyncClient, backend: FakeBackend
) -> None:
    first = await internal.get("/internal/status", headers=BEARER)
    known = {**BEARER, UNLESS_LASTING_HEADER: first.headers[LASTING_HEADER]}
    busier = LoadReport(running=backend.report.load.running + 1)
    backend.report = backend.report.model_copy(update={"load": busier})
    assert (await internal.get("/internal/status", headers=known)).status_code == 304
    assert (await internal.get("/internal/status", headers=BEARER)).status_code == 200
    backend.report = backend.report.model_copy(update={"set_hash": "changed"})
    assert (await internal.get("/internal/status", headers=known)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": TOKEN},
        {"authorization": "Bearer"},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": f"Bearer {TOKEN[:-1]}"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": "Bearer \u00fc".encode("latin-1")},
    ],
)
@pytest.mark.parametrize(
    "path", ["/internal/status", "/internal/nothing", "/", "//internal/status"]
)
async def test_without_the_token_every_path_is_401(
    internal: httpx.AsyncClient, headers: dict[str, str], path: str
) -> None:
    response = await internal.get(path, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"


async def test_two_tokens_are_none(internal: httpx.AsyncClient) -> None:
    headers = [("authorization", f"Bearer {TOKEN}"), ("authorization", "Bearer wrong")]
    assert (await internal.get("/internal/status", headers=headers)).status_code == 401


async def test_the_scheme_may_be_written_in_any_case(internal: httpx.AsyncClient) -> None:
    headers = {"authorization": f"bearer {TOKEN}"}
    assert (await internal.get("/internal/status", headers=headers)).status_code == 200


def test_an_empty_token_is_refused(backend: FakeBackend) -> None:
    app = create_internal_app
    with pytest.raises(ValueError, match="token"):
        app(backend, "")


async def test_the_public_port_has_no_internal_paths(client: httpx.AsyncClient) -> None:
    assert (await client.get("/internal/status", headers=BEARER)).status_code == 404
