"""What the README says under "On a cluster", run word by word."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from e2e.cluster.clusters import Cluster, Origin
from e2e.cluster.paths import REPOSITORY
from e2e.cluster.tools import run_tool
from e2e.voices import sounds_like

NAMESPACES = ("graft", "models")


@pytest.fixture
def readers_cluster(images: Cluster) -> Iterator[Cluster]:
    """A cluster without the namespaces that a reader is about to make."""
    if images.origin is Origin.GIVEN:
        pytest.skip("the README makes its own cluster, and this one was given")
    for namespace in NAMESPACES:
        assert not images.kubectl.succeeds("get", "namespace", namespace), f"{namespace} is there"
    yield images
    images.kubectl.run("delete", "namespace", *NAMESPACES, "--ignore-not-found")


def test_the_readmes_commands_lead_from_nothing_to_an_answer(readers_cluster: Cluster) -> None:
    section = (REPOSITORY / "README.md").read_text().partition("\n## On a cluster\n")[2]
    blocks = re.findall(r"```sh\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    assert len(blocks) == 3
    script = f"set -e\ncd {REPOSITORY}\n" + "".join(blocks)

    printed = run_tool(["sh", "-c", script], readers_cluster.environment, seconds=500)

    assert re.search(r"^inferenceservice\S*/tiny .* True ", printed, re.MULTILINE)
    assert re.search(r"^loraadapter\S*/pirate .* True ", printed, re.MULTILINE)
    text = "".join(re.findall(r'"text": ?"((?:[^"\\]|\\.)*)"', printed))
    assert sounds_like("pirate-v1", text)
