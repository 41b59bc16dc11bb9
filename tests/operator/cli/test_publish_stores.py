"""`graft adapter publish` to other people's servers of the stores' interfaces.

`make test-stores` fetches or makes the servers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from graft_operator.cli import main
from graft_operator.cli.publish import open_store
from tests.support.real_stores import (
    ACCESS_KEY,
    ACCOUNT_KEY,
    AMAZON,
    AZURE,
    SECRET_KEY,
    serve_amazon,
    serve_azure,
)

pytestmark = pytest.mark.slow

SERVERS = {"s3": AMAZON, "az": AZURE}
"""The server of Google's interface takes no upload in the form in which the client sends it."""
KEYS = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_REGION": "us-east-1",
    "AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY,
}


@dataclass(frozen=True)
class Place:
    uri: str
    endpoint: str


@pytest.fixture(params=SERVERS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if not SERVERS[request.param].exists():
        pytest.skip("this interface's server is not here: make test-stores fetches it")
    folder = tmp_path / "server"
    folder.mkdir()
    there = {"other/x": b"1"}
    match request.param:
        case "s3":
            server, uri = serve_amazon(folder, "bucket", there), "s3://bucket/team/a"
        case _:
            server, uri = serve_azure(folder, "container", there), "az://account/container/team/a"
    with server as endpoint:
        yield Place(uri, endpoint)


def test_an_adapter_is_written_once_and_replaced_only_when_told(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "adapter"
    folder.mkdir()
    weights = folder / "adapter_model.safetensors"
    (folder / "adapter_config.json").write_text("{}")
    words = ["adapter", "publish", str(folder), place.uri, "--endpoint", place.endpoint]
    digests = []
    for content, more, code in (
        (b"one", (), 0),
        (b"one", (), 0),
        (b"two", (), 1),
        (b"two", ("--overwrite",), 0),
    ):
        weights.write_bytes(content)
        done = CliRunner().invoke(main, [*words, *more])
        assert done.exit_code == code, done.output
        if code == 0:
            source = yaml.safe_load(done.stdout)["spec"]["source"]
            assert source["uri"] == place.uri
            digests.append(source["digest"])
    assert digests[0] == digests[1] != digests[2]
    store, prefix = open_store(place.uri, place.endpoint)
    read = store.get(f"{prefix}adapter_model.safetensors").bytes()
    assert bytes(read) == b"two"
