"""Which programs the test cluster consists of, each pinned to one version of its Go module.

The only file to edit for another version. `build` compiles the table; `paths` says where it lands.
"""

from __future__ import annotations

from dataclasses import dataclass

KUBERNETES = "1.37.2"
KUBERNETES_STAGING = "0.37.2"
"""The version of the `k8s.io/*` modules that belong to that Kubernetes."""

_STAMP = "k8s.io/component-base/version.git"


@dataclass(frozen=True, slots=True)
class GoModule:
    """One module and the programs that are built from it."""

    name: str
    module: str
    version: str
    """Without the leading v."""
    packages: tuple[str, ...]
    """Of the programs, relative to the module (`.`: the module itself)."""
    tags: str = ""
    cgo: bool = False
    ldflags: str = "-s -w"
    needed_by: str = "node"
    """`control-plane`: also by a cluster without a node."""

    def program(self, package: str) -> str:
        """Return the file name of the program built from a package."""
        return self.name if package == "." else package.rsplit("/", 1)[-1]

    @property
    def programs(self) -> tuple[str, ...]:
        """The file names of all its programs."""
        return tuple(self.program(package) for package in self.packages)


_CMD = tuple(
    f"cmd/{name}"
    for name in (
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kubelet",
        "kube-proxy",
        "kubectl",
    )
)

MODULES = (
    GoModule(
        name="kubernetes",
        module="k8s.io/kubernetes",
        version=KUBERNETES,
        packages=_CMD,
        # Without these, kubectl and the kubelet report v0.0.0.
        ldflags=f"-s -w -X {_STAMP}Version=v{KUBERNETES} -X {_STAMP}Major=1 "
        f"-X {_STAMP}Minor={KUBERNETES.split('.')[1]}",
        needed_by="control-plane",
    ),
    GoModule(
        name="etcd",
        module="go.etcd.io/etcd/server/v3",
        version="3.7.3",
        packages=(".",),
        needed_by="control-plane",
    ),
    GoModule(
        name="helm",
        module="helm.sh/helm/v4",
        version="4.3.1",
        packages=("cmd/helm",),
        needed_by="control-plane",
    ),
    GoModule(
        name="containerd",
        module="github.com/containerd/containerd/v2",
        version="2.4.2",
        packages=("cmd/containerd", "cmd/containerd-shim-runc-v2", "cmd/ctr"),
        tags="no_btrfs,no_devmapper",
        cgo=True,
    ),
    GoModule(
        name="runc",
        module="github.com/opencontainers/runc",
        version="1.5.2",
        packages=(".",),
        # Without it no pod with a seccomp profile starts, and `restricted` asks for one.
        tags="seccomp",
        cgo=True,
    ),
    GoModule(
        name="cni",
        module="github.com/containernetworking/plugins",
        version="1.9.1",
        packages=(
            "plugins/main/bridge",
            "plugins/main/loopback",
            "plugins/ipam/host-local",
            "plugins/meta/portmap",
        ),
    ),
    GoModule(
        name="crictl",
        module="sigs.k8s.io/cri-tools",
        version="1.36.0",
        packages=("cmd/crictl",),
    ),
    GoModule(
        name="buildkit",
        module="github.com/moby/buildkit",
        version="0.34.2",
        packages=("cmd/buildkitd", "cmd/buildctl"),
        cgo=True,
    ),
    # All from here on run in images with nothing else in them, so they must not need a C library.
    GoModule(
        name="coredns",
        module="github.com/coredns/coredns",
        version="1.15.0",
        packages=(".",),
    ),
    GoModule(
        name="minio",
        module="github.com/minio/minio",
        version="0.0.0-20260212201848-7aac2a2c5b7c",
        packages=(".",),
    ),
    # From a pod's metrics to an autoscaler's: only the story about load runs these two.
    GoModule(
        name="prometheus",
        module="github.com/prometheus/prometheus",
        version="0.316.0",
        packages=("cmd/prometheus",),
        # Finds its targets in Kubernetes alone; the clouds' clients are most of its code.
        tags="remove_all_sd,enable_kubernetes_sd",
    ),
    GoModule(
        name="prometheus-adapter",
        module="sigs.k8s.io/prometheus-adapter",
        version="0.12.0",
        packages=("cmd/adapter",),
    ),
)
