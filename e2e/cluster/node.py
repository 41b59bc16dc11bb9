"""containerd, kubelet, kube-proxy, BuildKit: makes this machine the cluster's node. Needs root."""

from __future__ import annotations

import os
from string import Template

from e2e.cluster.errors import LabError
from e2e.cluster.images import PAUSE_IMAGE, Images
from e2e.cluster.machine import prepare_machine
from e2e.cluster.network import DNS_IP, LOOPBACK, NODE_PORTS, POD_CIDR, busy_ports
from e2e.cluster.paths import BRIDGE, HERE, NODE_NAME, Lab
from e2e.cluster.processes import Processes
from e2e.cluster.tools import Kubectl

PROCESSES = ("containerd", "kubelet", "kube-proxy", "buildkitd")


def require_node_possible(node_ip: str) -> None:
    """Check what a node cannot do without.

    Raises:
        LabError: This is not root, or this machine has no address for pods to reach it.
    """
    if os.geteuid() != 0:
        raise LabError("a cluster with a node needs root on this machine; CONTROL_PLANE=1 does not")
    if node_ip == LOOPBACK:
        raise LabError("a node needs an address besides loopback; CONTROL_PLANE=1 does not")


def start_node(lab: Lab, processes: Processes, node_ip: str) -> None:
    """Start the node's programs and return when the node is Ready."""
    if not processes.runs("kubelet") and (busy := busy_ports(NODE_PORTS)):
        raise LabError(f"ports {busy} are in use: another cluster on this machine?")
    prepare_machine(lab)
    _write_configuration(lab)
    processes.start("containerd", "containerd", "--config", lab.config / "containerd.toml")
    images = Images(lab)
    processes.wait(images.answers, "containerd", ("containerd",))
    images.ensure_pause()
    processes.start(
        *("kubelet", "kubelet", "--config", lab.config / "kubelet.yaml"),
        *("--kubeconfig", lab.kubeconfig("kubelet"), "--root-dir", lab.state / "kubelet"),
        *("--cert-dir", lab.state / "kubelet-pki"),
        *("--hostname-override", NODE_NAME, "--node-ip", node_ip),
    )
    processes.start("kube-proxy", "kube-proxy", "--config", lab.config / "kube-proxy.yaml")
    processes.start("buildkitd", "buildkitd", "--config", lab.config / "buildkitd.toml")
    wait = ("wait", f"node/{NODE_NAME}", "--for=condition=Ready", "--timeout=1s")
    kubectl = Kubectl(lab.environment)
    processes.wait(lambda: kubectl.succeeds(*wait), "the node to be Ready", PROCESSES)


def _write_configuration(lab: Lab) -> None:
    """Fill the templates in; a file with the same content is left alone.

    kube-proxy ends when its file is rewritten, whatever is in it.
    """
    values = {
        "bridge": BRIDGE,
        "buildkit_socket": lab.buildkit_socket,
        "cni_programs": lab.program("bridge").parent,
        "config": lab.config,
        "containerd_socket": lab.containerd_socket,
        "dns_ip": DNS_IP,
        "images": lab.images,
        "node": NODE_NAME,
        "pause_image": PAUSE_IMAGE,
        "pki": lab.pki,
        "pod_cidr": POD_CIDR,
        "runc": lab.program("runc"),
        "state": lab.state,
    }
    (lab.config / "cni").mkdir(parents=True, exist_ok=True)
    for template in sorted((HERE / "config").iterdir()):
        folder = lab.config / "cni" if template.name.startswith("cni") else lab.config
        target = folder / template.name
        content = Template(template.read_text()).substitute(values)
        if not target.exists() or target.read_text() != content:
            target.write_text(content)
