"""What every story needs: a cluster that tests may use, images in it, namespaces of its own.

A story that fails leaves its namespaces' objects, events and logs under `build/e2e/<story>/`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from e2e.buckets import EXAMPLES, Bucket, open_bucket
from e2e.cluster import clusters
from e2e.cluster.clusters import Cluster, Origin
from e2e.cluster.image_tools import build_images
from e2e.cluster.paths import REPOSITORY
from e2e.cluster.tools import Helm, Kubectl
from e2e.dump import dump
from e2e.release import Release
from e2e.stage import Stage

DUMPS = REPOSITORY / "build" / "e2e"
RESTRICTED = {
    f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")
}
STORY_SECONDS = 600
FAILED = pytest.StashKey[bool]()

MakeNamespace = Callable[[str], str]
"""Makes a namespace for a purpose, told in a word, and returns its name."""


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """A running cluster: the one that is up, or one brought up now and left up for the next run."""
    return clusters.find() if clusters.is_up() else clusters.up()


@pytest.fixture(scope="session")
def images(cluster: Cluster) -> Cluster:
    """The cluster, with both images of the working tree in it; a given cluster has its own."""
    if cluster.origin is not Origin.GIVEN:
        build_images()
    return cluster


@pytest.fixture
def kubectl(cluster: Cluster, namespace: str) -> Kubectl:
    """kubectl in the story's namespace."""
    return cluster.kubectl.within(namespace)


@pytest.fixture
def helm(cluster: Cluster) -> Helm:
    """Helm against the cluster."""
    return cluster.helm


@pytest.fixture
def make_namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[MakeNamespace]:
    """Make namespaces that enforce PodSecurity `restricted`; they go when the story ends."""
    made: list[str] = []

    def make(purpose: str) -> str:
        name = f"graft-e2e-{purpose}-{secrets.token_hex(3)}"
        cluster.kubectl.run("create", "namespace", name)
        made.append(name)
        labels = (f"{key}={value}" for key, value in RESTRICTED.items())
        cluster.kubectl.run("label", "namespace", name, *labels)
        return name

    yield make
    if request.node.stash.get(FAILED, default=False):
        shown = dump(cluster.kubectl, made, _dump_folder(request.node))
        request.node.add_report_section("teardown", "cluster", shown)
    if made:
        cluster.kubectl.run("delete", "namespace", *made, "--wait=false", "--ignore-not-found")


@pytest.fixture
def namespace(make_namespace: MakeNamespace) -> str:
    """The story's own namespace."""
    return make_namespace("story")


@pytest.fixture
def release(images: Cluster, namespace: str, make_namespace: MakeNamespace) -> Release:
    """The chart with its defaults, in a namespace of its own, to serve the story's namespace."""
    return Release(images, make_namespace("operator"), serves=(namespace,))


@pytest.fixture
def bucket(cluster: Cluster) -> Iterator[Bucket]:
    """A bucket with the small model in it."""
    bucket = open_bucket(f"graft-e2e-{secrets.token_hex(4)}", cluster.kubectl)
    bucket.create()
    bucket.upload(EXAMPLES / "models" / "tiny", "models/tiny")
    yield bucket
    bucket.delete()


@pytest.fixture
def stage(release: Release, kubectl: Kubectl, bucket: Bucket) -> Stage:
    """The chart, installed, with its operator Ready and nothing to serve yet."""
    release.install()
    return Stage(release, kubectl, bucket)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give stories the time that pods and images take."""
    for item in items:
        item.add_marker(pytest.mark.timeout(STORY_SECONDS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell the fixtures whether their story failed."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


def _dump_folder(item: pytest.Item) -> Path:
    return DUMPS / re.sub(r"[^A-Za-z0-9_.-]+", "-", item.name)
