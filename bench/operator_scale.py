"""Measure the operator at scale: many adapters, tenants and pods, over a real API server.

    python -m bench.operator_scale [--adapters 1000] [--tenants 20] [--pods 100]

The API server, its controllers and the operator are real, the operator with the rights that the
chart gives it. The pods are fake runtimes on loopback addresses, all in one process, which speak
the real report protocol and mount what a kubelet would. What is printed: time until all adapters
are Ready after one apply; API calls of the operator by kind, in the storm, for a single change and
while nothing happens; its memory and CPU; and how long a restarted operator takes, with how many
writes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from bench.api_calls import api_calls, is_write
from e2e.cluster import clusters
from e2e.cluster.clusters import Cluster
from e2e.cluster.processes import wait_until
from e2e.cluster.tools import Kubectl
from e2e.kubeconfigs import account_kubeconfig, admin_kubeconfig
from e2e.release import CHART
from graft_operator.cluster.ports import free_port
from tests.support.fake_runtime import digest_of
from tests.support.kube_manifests import API_VERSION
from tests.support.loopback_node import loopback_node

ACCOUNT = "graft"
COMMAND = "from graft_operator.cli import main; main(prog_name='graft')"
IDLE_SECONDS = 60.0
STORM_SECONDS = 900.0
QUIET_SECONDS = 5.0
Json = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much there is of everything."""

    adapters: int
    tenants: int
    pods: int


@dataclass(frozen=True)
class Names:
    """The namespaces of one run."""

    served: str
    installed: str
    tenants: tuple[str, ...]


class Operator:
    """The operator as a process of its own."""

    def __init__(self, kubeconfig: Path, names: Names, log: Path) -> None:
        self._port = free_port()
        command = [sys.executable, "-c", COMMAND, "operator"]
        command += ["--health-port", str(self._port), "--namespace", names.served]
        for tenant in names.tenants:
            command += ["--tenant-namespace", tenant]
        environment = os.environ | {"KUBECONFIG": str(kubeconfig)}
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT
            )

    def calls(self) -> Counter[str]:
        """Return its requests to the API so far, by verb and kind."""
        return api_calls(self._metrics())

    def rss_mib(self) -> float:
        """Return its resident memory."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        kib = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        return round(int(kib[1]) / 1024, 1) if kib else 0.0

    def cpu_seconds(self) -> float:
        """Return the CPU time that it has used."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def is_settled(self) -> bool:
        """Whether it has listed everything and nothing waits for a worker."""
        text = self._metrics()
        depth = re.search(r"^graft_operator_queue_depth (\S+)", text, re.MULTILINE)
        behind = re.search(r"^graft_operator_pods_out_of_sync (\S+)", text, re.MULTILINE)
        pods = re.search(r"^graft_operator_pods (\S+)", text, re.MULTILINE)
        figures = [float(found[1]) if found else -1.0 for found in (depth, behind)]
        return figures == [0.0, 0.0] and pods is not None and float(pods[1]) > 0

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(60)

    def _metrics(self) -> str:
        if self._process.poll() is not None:
            raise RuntimeError(f"the operator ended with {self._process.returncode}")
        try:
            return httpx.get(f"http://127.0.0.1:{self._port}/metrics", timeout=30).text
        except httpx.TransportError:
            return ""


def _run_node(kubeconfig: Path, stop: Any) -> None:
    with loopback_node(kubeconfig):
        stop.wait()


@contextmanager
def node(kubeconfig: Path) -> Iterator[None]:
    """Run the pods in a process of their own."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    process = context.Process(target=_run_node, args=(kubeconfig, stop))
    process.start()
    try:
        yield
    finally:
        stop.set()
        process.join(60)


@contextmanager
def installed(cluster: Cluster, size: Size) -> Iterator[Names]:
    """Make the namespaces and install the chart's rights and CRDs; take them away again."""
    mark = secrets.token_hex(3)
    tenants = tuple(f"graft-bench-{mark}-{number:02d}" for number in range(size.tenants))
    names = Names(f"graft-bench-{mark}", f"graft-bench-{mark}-operator", tenants)
    every = (names.served, names.installed, *tenants)
    kubectl = cluster.kubectl
    items = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": n}} for n in every]
    kubectl.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    values = ["--set", f"serviceNamespaces={{{names.served}}}"]
    values += ["--set", f"tenantNamespaces={{{','.join(tenants)}}}"]
    claim = ("--take-ownership", "--set", "crds.adopt=true", "--namespace", names.installed)
    cluster.helm.run("install", "graft", CHART, *values, *claim)
    kubectl.within(names.installed).run("scale", "deployment/graft", "--replicas=0")
    try:
        yield names
    finally:
        cluster.helm.run("uninstall", "graft", "--namespace", names.installed)
        kubectl.run("delete", "namespace", *every, "--wait=false")


def kubeconfigs(cluster: Cluster, names: Names, folder: Path) -> tuple[Path, Path]:
    """Write and return the kubeconfigs of the administrator and of the operator."""
    inside = cluster.kubectl.within(names.installed)
    admin, operator = folder / "admin", folder / "operator"
    admin.write_text(admin_kubeconfig(inside))
    operator.write_text(account_kubeconfig(inside, ACCOUNT))
    return admin, operator


def service(size: Size) -> Json:
    """Return the one service, open to every tenant."""
    return {
        "apiVersion": API_VERSION,
        "kind": "InferenceService",
        "metadata": {"name": "tiny"},
        "spec": {
            "model": {"uri": "s3://models/ok"},
            "replicas": size.pods,
            "rollout": {"maxUnavailable": size.pods},
            "adapters": {"allowedNamespaces": {"from": "All"}},
        },
    }


def adapter(names: Names, number: int, version: int = 0) -> Json:
    """Return an adapter of one of the tenants."""
    uri = f"s3://adapters/ok-{number}-{version}"
    return {
        "apiVersion": API_VERSION,
        "kind": "LoraAdapter",
        "metadata": {
            "name": f"adapter-{number:04d}",
            "namespace": names.tenants[number % len(names.tenants)],
        },
        "spec": {
            "inferenceServiceRef": {"name": "tiny", "namespace": names.served},
            "source": {"uri": uri, "digest": digest_of(uri)},
        },
    }


def measure(cluster: Cluster, names: Names, size: Size, folder: Path) -> None:
    """Measure everything and print it."""
    admin, kubeconfig = kubeconfigs(cluster, names, folder)
    kubectl, log = cluster.kubectl, folder / "operator.log"
    print(f"{size}", flush=True)
    with node(admin):
        with closing(Operator(kubeconfig, names, log)) as operator:
            _start_pods(kubectl.within(names.served), size)
            _rest(operator)
            _storm(kubectl, operator, names, size)
            _idle(operator)
            _change(kubectl, operator, names)
            print(f"memory: {operator.rss_mib()} MiB", flush=True)
        with closing(Operator(kubeconfig, names, log)) as operator:
            _restart(operator)


def _start_pods(kubectl: Kubectl, size: Size) -> None:
    kubectl.apply(json.dumps(service(size)))
    ready = ("get", "gis/tiny", "-o", "jsonpath={.status.readyReplicas}")
    _wait(lambda: kubectl.run(*ready) == str(size.pods), f"{size.pods} pods", STORM_SECONDS)


def _storm(kubectl: Kubectl, operator: Operator, names: Names, size: Size) -> None:
    items = [adapter(names, number) for number in range(size.adapters)]
    document = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    apply = ("apply", "--server-side", "--filename", "-")
    before, cpu, began = operator.calls(), operator.cpu_seconds(), time.monotonic()
    kubectl.run(*apply, stdin=document, seconds=STORM_SECONDS)
    applied = time.monotonic() - began
    _wait(lambda: _count_ready(kubectl) >= size.adapters, "all adapters", STORM_SECONDS)
    print(
        f"storm: kubectl took {applied:.1f} s; all {size.adapters} adapters Ready after"
        f" {time.monotonic() - began:.1f} s; {operator.cpu_seconds() - cpu:.1f} s of CPU",
        flush=True,
    )
    _rest(operator)
    _show("storm, calls per adapter", operator.calls() - before, size.adapters)


def _count_ready(kubectl: Kubectl) -> int:
    path = "{.items[*].status.conditions[?(@.type=='Ready')].status}"
    listed = ("get", "loraadapters", "--all-namespaces", "-o", f"jsonpath={path}")
    return kubectl.run(*listed).split().count("True")


def _change(kubectl: Kubectl, operator: Operator, names: Names) -> None:
    before, began = operator.calls(), time.monotonic()
    changed = adapter(names, 0, version=1)
    kubectl.run("apply", "--server-side", "--filename", "-", stdin=json.dumps(changed))
    where = kubectl.within(changed["metadata"]["namespace"])
    digest = ("get", "lora/adapter-0000", "-o", "jsonpath={.status.currentRevision.digest}")
    wanted = changed["spec"]["source"]["digest"]
    _wait(lambda: where.run(*digest) == wanted, "the new version on every pod")
    print(f"one change: on all pods after {time.monotonic() - began:.1f} s", flush=True)
    _rest(operator)
    _show("one change, calls", operator.calls() - before)


def _restart(operator: Operator) -> None:
    began = time.monotonic()
    _wait(operator.is_settled, "the restarted operator")
    print(f"restart: at rest after {time.monotonic() - began:.1f} s", flush=True)
    time.sleep(QUIET_SECONDS)
    _show("restart, calls", operator.calls())
    print(f"memory after the restart: {operator.rss_mib()} MiB", flush=True)


def _rest(operator: Operator) -> None:
    _wait(operator.is_settled, "the operator to be at rest")
    time.sleep(QUIET_SECONDS)


def _idle(operator: Operator) -> None:
    before, cpu, began = operator.calls(), operator.cpu_seconds(), time.monotonic()
    time.sleep(IDLE_SECONDS)
    seconds = time.monotonic() - began
    written = sum(n for call, n in (operator.calls() - before).items() if is_write(call))
    share = (operator.cpu_seconds() - cpu) / seconds
    print(
        f"idle: {written / seconds:.3f} writes/s, {100 * share:.1f} % of a core,"
        f" {operator.rss_mib()} MiB",
        flush=True,
    )


def _show(what: str, calls: Counter[str], share: int = 1) -> None:
    shown = {call: round(count / share, 3) for call, count in sorted(calls.items())}
    nudges, events = calls["nudge Pod"], calls["event Event"]
    writes = sum(n for call, n in calls.items() if is_write(call)) - nudges - events
    sums = (
        f"{round(n / share, 3)} {name}"
        for n, name in zip((writes, nudges, events), ("writes", "nudges", "Events"), strict=True)
    )
    print(f"{what}: {', '.join(sums)}; {shown}", flush=True)


def _wait(condition: Callable[[], bool], what: str, seconds: float = 300.0) -> None:
    wait_until(condition, what, seconds=seconds)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--tenants", type=int, default=20)
    parser.add_argument("--pods", type=int, default=100)
    options = parser.parse_args()
    size = Size(options.adapters, options.tenants, options.pods)
    cluster = clusters.find() if clusters.is_up(node=False) else clusters.up(node=False)
    nodes = cluster.kubectl.run("get", "nodes", "--output", "name").split()
    for each in nodes:
        cluster.kubectl.run("cordon", each)
    try:
        with tempfile.TemporaryDirectory() as folder, installed(cluster, size) as names:
            measure(cluster, names, size, Path(folder))
    finally:
        for each in nodes:
            cluster.kubectl.run("uncordon", each)


if __name__ == "__main__":
    main()
