"""A fake cluster for each test: the API, and the node that runs its pods."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.kube_api import KubeApi, kube_api
from tests.support.kube_node import KubeNode, kube_node


@pytest.fixture
async def api() -> AsyncIterator[KubeApi]:
    async with kube_api() as running:
        yield running


@pytest.fixture
async def node(api: KubeApi) -> AsyncIterator[KubeNode]:
    async with kube_node(api) as running:
        yield running
