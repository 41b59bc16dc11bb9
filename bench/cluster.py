"""Time on a real cluster what a tenant waits for: from `kubectl apply` to the new weights' token.

    python -m bench.cluster [--adapters 30]

Uses the cluster of `make cluster` and the images of the working tree, with the kubelet's default
settings and the chart's default values. The model is a random one; each adapter (10 MB, every
tensor used) answers a prompt with a token that no other weights give, so what is timed ends with
the first byte of an answer that only the new weights can have made.
"""

from __future__ import annotations

import argparse
import json
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from string import Template

import httpx

from bench.api_calls import api_calls, is_write
from bench.figures import show
from bench.marked_adapters import PROMPT_IDS, MarkedModel, Published, Publisher
from e2e.buckets import open_bucket
from e2e.client import Client
from e2e.cluster import clusters
from e2e.cluster.clusters import Cluster, Origin
from e2e.cluster.image_tools import build_images
from e2e.cluster.processes import wait_until
from e2e.conftest import RESTRICTED
from e2e.containers import kill_container
from e2e.release import Release
from e2e.stage import Stage

DEADLINE_SECONDS = 60.0
SETTLE_SECONDS = 2.0
"""A pause before each change, so that one does not pay for the last."""
ADAPTER = Template("""\
apiVersion: serving.graft.dev/v1alpha1
kind: LoraAdapter
metadata:
  name: $name
spec:
  inferenceServiceRef:
    name: base
  source:
    uri: $uri
    digest: $digest
    credentialsSecretRef:
      name: object-store
""")


def apply_to_token(stage: Stage, client: Client, name: str, published: Published) -> float:
    """Apply an adapter and return how many seconds later its own token came, as it streamed."""
    manifest = ADAPTER.substitute(name=name, uri=published.uri, digest=published.digest)
    began = time.monotonic()
    stage.kubectl.apply(manifest)
    while time.monotonic() - began < DEADLINE_SECONDS:
        with suppress(httpx.HTTPStatusError):  # not known yet
            first = next(client.stream(name, max_tokens=1, prompt=list(PROMPT_IDS)), "")
            if first.strip() == published.token.strip():
                return time.monotonic() - began
    raise TimeoutError(f"{name} did not answer {published.token!r} in {DEADLINE_SECONDS:.0f} s")


class Calls:
    """What the operator has asked of the API, by verb and kind, from its own metrics."""

    def __init__(self, stage: Stage) -> None:
        self._kubectl = stage.kubectl
        metadata = stage.release.operator_pod()["metadata"]
        pod = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        self._path = f"{pod}:8080/proxy/metrics"
        self._before = self._read()

    def since(self) -> Counter[str]:
        """Return what was asked since this object was made."""
        return self._read() - self._before

    def _read(self) -> Counter[str]:
        return api_calls(self._kubectl.run("get", "--raw", self._path))


def memory(stage: Stage) -> dict[str, float]:
    """Return the working sets of operator and model pods, in MiB, by pod."""
    (node,) = stage.kubectl.get("nodes")["items"]
    path = f"/api/v1/nodes/{node['metadata']['name']}/proxy/stats/summary"
    pods = json.loads(stage.kubectl.run("get", "--raw", path))["pods"]
    ours = (stage.kubectl.namespace, stage.release.namespace)
    return {
        pod["podRef"]["name"]: round(pod["memory"]["workingSetBytes"] / 2**20, 1)
        for pod in pods
        if pod["podRef"]["namespace"] in ours
    }


def restart(stage: Stage, client: Client) -> float:
    """Kill the only pod's container; return after how many seconds the pod was Ready again."""
    (name,) = stage.pods()
    before = stage.starts()
    began = time.monotonic()
    kill_container(stage.release.cluster, stage.pods()[name])
    wait_until(lambda: stage.starts() != before, "the restart", seconds=DEADLINE_SECONDS)
    stage.wait_ready(f"pod/{name}")
    seconds = time.monotonic() - began
    wait_until(lambda: client.ask("base", max_tokens=1).is_ok, "an answer", seconds=30)
    return seconds


@contextmanager
def staged(cluster: Cluster, model: MarkedModel) -> Iterator[Stage]:
    """Install Graft, put the model into a bucket and serve it; take all of it away again."""
    mark = secrets.token_hex(3)
    served, installed = f"graft-bench-{mark}", f"graft-bench-operator-{mark}"
    labels = [f"{key}={value}" for key, value in RESTRICTED.items()]
    for namespace in (served, installed):
        cluster.kubectl.run("create", "namespace", namespace)
        cluster.kubectl.run("label", "namespace", namespace, *labels)
    bucket = open_bucket(served, cluster.kubectl)
    bucket.create()
    release = Release(cluster, installed, serves=(served,))
    try:
        release.install()
        with tempfile.TemporaryDirectory() as folder:
            model.save(Path(folder))
            bucket.upload(Path(folder), "models/tiny")
        yield Stage(release, cluster.kubectl.within(served), bucket)
    finally:
        release.uninstall()
        cluster.kubectl.run("delete", "namespace", served, installed, "--wait=false")
        bucket.delete()


def measure(stage: Stage, publisher: Publisher, num_adapters: int) -> None:
    """Measure everything and print it."""
    client = stage.serve()
    new: list[float] = []
    changed: list[float] = []
    calls: list[Counter[str]] = []
    size = 0
    for number in range(num_adapters):
        for series in (new, changed):
            published = publisher.publish()
            size = published.num_bytes
            time.sleep(SETTLE_SECONDS)
            before = Calls(stage)
            series.append(apply_to_token(stage, client, f"marked-{number}", published))
            stage.wait_ready(f"loraadapter/marked-{number}")
            time.sleep(SETTLE_SECONDS)
            calls.append(before.since())
    print(f"adapters of {size / 1e6:.1f} MB")
    show("seconds from kubectl apply to the first token, new adapter", new)
    show("seconds from kubectl apply to the first token, changed adapter", changed)
    for kind, selected in (("new", calls[::2]), ("changed", calls[1::2])):
        total = sum(selected, Counter())
        each = {call: round(count / len(selected), 2) for call, count in sorted(total.items())}
        written = {call: n for call, n in each.items() if is_write(call)}
        print(f"API writes per {kind} adapter: {written}; all calls: {each}", flush=True)
    print(f"MiB with {num_adapters} adapters: {memory(stage)}", flush=True)
    show("seconds from a killed container to Ready", [restart(stage, client) for _ in range(3)])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--adapters", type=int, default=30, help="how many new and changed ones")
    num_adapters = parser.parse_args().adapters
    cluster = clusters.up()
    if cluster.origin is not Origin.GIVEN:
        build_images()
    model = MarkedModel()
    with staged(cluster, model) as stage:
        measure(stage, Publisher(model, stage.bucket), num_adapters)


if __name__ == "__main__":
    main()
