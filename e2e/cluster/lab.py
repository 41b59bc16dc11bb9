"""The cluster made from built programs: how one machine becomes a cluster, and itself again."""

from __future__ import annotations

import subprocess
import time

from e2e.cluster import addons
from e2e.cluster.build import build, missing
from e2e.cluster.control_plane import PROCESSES as CONTROL_PLANE
from e2e.cluster.control_plane import start_control_plane, wait_for_accounts
from e2e.cluster.images import Images
from e2e.cluster.machine import install_packages, remove, restore_machine
from e2e.cluster.network import DNS_IP, node_ip
from e2e.cluster.node import require_node_possible, start_node
from e2e.cluster.paths import CONTEXT, NODE_NAME, Lab
from e2e.cluster.processes import Processes
from e2e.cluster.tools import Kubectl


def up(lab: Lab, *, node: bool) -> None:
    """Bring the cluster up; what runs already is left alone."""
    modules, address = missing(lab, node=node), node_ip()
    if node:
        require_node_possible(address)
        install_packages(build=bool(modules))
    build(lab, modules)
    began = time.monotonic()

    def say(what: str) -> None:
        print(f"  {time.monotonic() - began:5.1f} s  {what}", flush=True)

    processes, kubectl = Processes(lab), Kubectl(lab.environment)
    start_control_plane(lab, processes, address)
    say("control plane answers")
    if node:
        start_node(lab, processes, address)
        addons.pretend_gpus(kubectl)
        say(f"node {NODE_NAME} is Ready, with {addons.num_gpus()} GPUs that only count")
    wait_for_accounts(processes, kubectl)
    if node:
        _add_addons(lab, kubectl)
        say("name resolution and object store answer")
    say(f"context {CONTEXT} in {lab.admin_kubeconfig}")


def _add_addons(lab: Lab, kubectl: Kubectl) -> None:
    images = Images(lab)
    addons.add_dns(kubectl, images.ensure_program("coredns"), DNS_IP)
    data = str(lab.state / "object-store")
    addons.add_store(kubectl, images.ensure_program("minio"), data)
    addons.rollout(kubectl, "kube-system", "coredns")


def down(lab: Lab) -> None:
    """Stop everything and leave the machine as it was; images stay in the cache."""
    if not lab.state.exists():
        print("no cluster here")
        return
    processes = Processes(lab)
    processes.stop("kubelet")
    if processes.runs("containerd"):
        _remove_pods(lab)
    processes.stop("buildkitd")
    if processes.runs("kube-proxy"):
        processes.stop("kube-proxy")
        cleanup = ("--config", lab.config / "kube-proxy.yaml", "--cleanup")
        _try(lab, "kube-proxy", *cleanup)
    for name in (*CONTROL_PLANE, "containerd"):
        processes.stop(name)
    restore_machine(lab)
    remove(lab.state)
    print("the cluster is gone; `make cluster` brings another up")


def purge(lab: Lab) -> None:
    """Also forget the images; the built programs stay."""
    down(lab)
    remove(lab.images)


def _remove_pods(lab: Lab) -> None:
    """End the pods through the runtime's interface, so that their network goes with them."""
    _try(lab, "crictl", "--timeout", "60s", "rmp", "--all", "--force")
    for kind in ("tasks", "containers"):
        listed = subprocess.run(
            [lab.program("ctr"), kind, "list", "--quiet"],
            env=lab.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        force = ("--force",) if kind == "tasks" else ()
        for name in listed.stdout.split():
            _try(lab, "ctr", kind, "delete", *force, name)


def _try(lab: Lab, program: str, *arguments: object) -> None:
    """Run a step of the way down; a failure is told, and the rest still happens."""
    done = subprocess.run(
        [lab.program(program), *map(str, arguments)],
        env=lab.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        print(f"  {program} {' '.join(map(str, arguments))}: {done.stderr.strip()[-500:]}")
