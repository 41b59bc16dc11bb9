"""etcd, API server, controller manager, scheduler: a cluster without a node. Needs no root."""

from __future__ import annotations

from pathlib import Path

from e2e.cluster.errors import LabError
from e2e.cluster.network import CONTROL_PLANE_PORTS, LOOPBACK, SERVICE_CIDR, busy_ports
from e2e.cluster.paths import Lab
from e2e.cluster.pki import make_pki
from e2e.cluster.processes import Processes, require_commands
from e2e.cluster.tools import Kubectl

ETCD_URL = "http://127.0.0.1:2379"
PROCESSES = ("scheduler", "controller-manager", "apiserver", "etcd")
"""In the order in which they stop."""


def start_control_plane(lab: Lab, processes: Processes, node_ip: str) -> None:
    """Start the four programs and return when the API is ready for objects."""
    require_commands("openssl")
    if not processes.runs("etcd") and (busy := busy_ports(CONTROL_PLANE_PORTS)):
        raise LabError(f"ports {busy} are in use: another cluster on this machine?")
    lab.state.mkdir(parents=True, exist_ok=True)
    make_pki(lab, node_ip)
    _start_etcd(lab, processes)
    _start_apiserver(lab, processes, node_ip)
    kubectl = Kubectl(lab.environment)
    processes.wait(
        lambda: kubectl.succeeds("get", "--raw", "/readyz"), "the API server", ("apiserver", "etcd")
    )
    # The controller manager gives up where RBAC is not bootstrapped yet; /readyz includes that.
    _start_controller_manager(lab, processes)
    _start_scheduler(lab, processes)
    _grant(kubectl, "graft-lab:apiserver", "system:kubelet-api-admin", "kube-apiserver")
    _grant(kubectl, "graft-lab:kube-proxy", "system:node-proxier", "system:kube-proxy")


def wait_for_accounts(processes: Processes, kubectl: Kubectl) -> None:
    """Wait for the default service account, without which no pod is admitted."""
    processes.wait(
        lambda: kubectl.succeeds("get", "serviceaccount", "default", "--namespace", "default"),
        "the default service account",
        PROCESSES,
    )


def _start_etcd(lab: Lab, processes: Processes) -> None:
    peer = "http://127.0.0.1:2380"
    processes.start(
        *("etcd", "etcd", "--data-dir", lab.state / "etcd", "--log-level", "warn"),
        # A test cluster's data need not survive the machine.
        "--unsafe-no-fsync",
        *("--listen-client-urls", ETCD_URL, "--advertise-client-urls", ETCD_URL),
        *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
        *("--initial-cluster", f"default={peer}"),
    )


def _start_apiserver(lab: Lab, processes: Processes, node_ip: str) -> None:
    def pair(name: str, certificate: str, key: str) -> tuple[str | Path, ...]:
        return (certificate, lab.pki / f"{name}.crt", key, lab.pki / f"{name}.key")

    processes.start(
        *("apiserver", "kube-apiserver", "--etcd-servers", ETCD_URL),
        *("--bind-address", "0.0.0.0", "--secure-port", "6443", "--advertise-address", node_ip),
        *("--service-cluster-ip-range", SERVICE_CIDR, "--allow-privileged", "--profiling=false"),
        *("--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction"),
        *("--anonymous-auth=false", "--client-ca-file", lab.pki / "ca.crt"),
        *pair("apiserver", "--tls-cert-file", "--tls-private-key-file"),
        *("--kubelet-certificate-authority", lab.pki / "ca.crt"),
        *("--kubelet-preferred-address-types", "InternalIP"),
        *pair("apiserver-kubelet", "--kubelet-client-certificate", "--kubelet-client-key"),
        *("--service-account-issuer", "https://kubernetes.default.svc.cluster.local"),
        *("--service-account-signing-key-file", lab.pki / "service-accounts.key"),
        *("--service-account-key-file", lab.pki / "service-accounts.pub"),
        *("--requestheader-client-ca-file", lab.pki / "front-proxy-ca.crt"),
        *("--requestheader-allowed-names", "front-proxy"),
        *("--requestheader-username-headers", "X-Remote-User"),
        *("--requestheader-group-headers", "X-Remote-Group"),
        *("--requestheader-extra-headers-prefix", "X-Remote-Extra-"),
        *pair("front-proxy", "--proxy-client-cert-file", "--proxy-client-key-file"),
        # Pods find the API server at the address it advertises; loopback would be their own.
        *(("--endpoint-reconciler-type", "none") if node_ip == LOOPBACK else ()),
    )


def _common_flags(kubeconfig: Path) -> tuple[str | Path, ...]:
    return (
        *("--kubeconfig", kubeconfig, "--authentication-kubeconfig", kubeconfig),
        *("--authorization-kubeconfig", kubeconfig, "--bind-address", "127.0.0.1"),
        *("--leader-elect=false", "--profiling=false"),
    )


def _start_controller_manager(lab: Lab, processes: Processes) -> None:
    processes.start(
        *("controller-manager", "kube-controller-manager"),
        *_common_flags(lab.kubeconfig("controller-manager")),
        *("--use-service-account-credentials", "--kube-api-qps", "200", "--kube-api-burst", "300"),
        *("--root-ca-file", lab.pki / "ca.crt"),
        *("--service-account-private-key-file", lab.pki / "service-accounts.key"),
        *("--cluster-signing-cert-file", lab.pki / "ca.crt"),
        *("--cluster-signing-key-file", lab.pki / "ca.key"),
    )


def _start_scheduler(lab: Lab, processes: Processes) -> None:
    flags = _common_flags(lab.kubeconfig("scheduler"))
    processes.start("scheduler", "kube-scheduler", *flags)


def _grant(kubectl: Kubectl, name: str, role: str, user: str) -> None:
    """Bind a user of a component to a cluster role that Kubernetes brings along."""
    if not kubectl.succeeds("get", "clusterrolebinding", name):
        kubectl.run("create", "clusterrolebinding", name, "--clusterrole", role, "--user", user)
