"""What a node changes on the machine outside the cluster's folders: noted first, restored after."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Self

from e2e.cluster.errors import LabError
from e2e.cluster.paths import BRIDGE, Lab
from e2e.cluster.processes import wait_until
from e2e.cluster.tools import run_tool

DEBIAN_PACKAGES = {
    # command it brings: package
    "iptables": "iptables",
    "nft": "nftables",
    "conntrack": "conntrack",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "modprobe": "kmod",
    "mount": "mount",
    "openssl": "openssl",
    "pkg-config": "pkg-config",
}
SECCOMP_HEADER = Path("/usr/include/seccomp.h")

OUTSIDE = (
    # Paths that no flag moves.
    "/run/containerd",
    "/run/buildkit",
    "/run/netns",
    "/run/xtables.lock",
    "/var/lib/cni",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/etc/buildkit",
)
SYSCTLS = (
    "net.ipv4.ip_forward",
    "net.ipv4.conf.all.forwarding",
    "net.ipv4.conf.all.route_localnet",
    "net.bridge.bridge-nf-call-iptables",
    "net.bridge.bridge-nf-call-ip6tables",
    "vm.overcommit_memory",
    "kernel.panic",
    "kernel.panic_on_oops",
    "kernel.keys.root_maxkeys",
    "kernel.keys.root_maxbytes",
    "net.netfilter.nf_conntrack_max",
    "net.netfilter.nf_conntrack_tcp_timeout_established",
    "net.netfilter.nf_conntrack_tcp_timeout_close_wait",
    "net.netfilter.nf_conntrack_tcp_be_liberal",
)
CGROUPS = ("kubepods", "buildkit", "k8s.io")


@dataclass(frozen=True, slots=True)
class Before:
    """What the machine was like before the node started."""

    paths: tuple[str, ...]
    tables: tuple[str, ...]
    sysctls: dict[str, str]

    @classmethod
    def now(cls) -> Self:
        """Look at the machine."""
        return cls(
            paths=tuple(path for path in OUTSIDE if Path(path).exists()),
            tables=tuple(_nft_tables()),
            sysctls={
                name: _sysctl_file(name).read_text().strip()
                for name in SYSCTLS
                if _sysctl_file(name).exists()
            },
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote."""
        content = json.loads(path.read_text())
        return cls(tuple(content["paths"]), tuple(content["tables"]), content["sysctls"])

    def write(self, path: Path) -> None:
        """Keep it for `restore_machine`, perhaps in another process."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")


def install_packages(*, build: bool) -> None:
    """Install what is missing from Debian.

    Raises:
        LabError: Something is missing, and this is not a Debian that can be asked.
    """
    wanted = [
        package for command, package in DEBIAN_PACKAGES.items() if shutil.which(command) is None
    ]
    if build and not SECCOMP_HEADER.exists():
        wanted.append("libseccomp-dev")
    if not wanted:
        return
    if shutil.which("apt-get") is None:
        raise LabError(f"please install {', '.join(wanted)} (Debian's names)")
    print(f"  apt-get install {' '.join(wanted)}", flush=True)
    quiet = ("apt-get", "-qq", "-o", "Dpkg::Use-Pty=0")
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"}
    run_tool((*quiet, "update"), environment, seconds=300)
    install = (*quiet, "install", "-y", "--no-install-recommends", *wanted)
    run_tool(install, environment, seconds=600)


def prepare_machine(lab: Lab) -> None:
    """Note how the machine is, then let it forward packets."""
    note = lab.state / "before.json"
    if not note.exists():
        Before.now().write(note)
    for name in ("net.ipv4.ip_forward", "net.bridge.bridge-nf-call-iptables"):
        if _sysctl_file(name).exists():
            _sysctl_file(name).write_text("1\n")


def restore_machine(lab: Lab) -> None:
    """Take away what pods, network and kernel settings left; after all programs have ended."""
    note = lab.state / "before.json"
    if not note.exists():
        return
    before = Before.read(note)
    _unmount(lab)
    _remove_network(before)
    _remove_cgroups()
    for name, value in before.sysctls.items():
        _sysctl_file(name).write_text(value + "\n")
    for path in map(Path, OUTSIDE):
        if str(path) not in before.paths:
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, but nothing that is mounted in it.

    Raises:
        LabError: Something is still mounted there.
    """
    if mounts := _mounts(f"{path}/"):
        raise LabError(f"{path} is not removed: {', '.join(mounts)} still mounted in it")
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _mounts(*prefixes: str) -> list[str]:
    """Return what is mounted below, the innermost first."""
    mounts = (line.split()[1] for line in Path("/proc/mounts").read_text().splitlines())
    return sorted((mount for mount in mounts if mount.startswith(prefixes)), reverse=True)


def _unmount(lab: Lab) -> None:
    for mount in _mounts(f"{lab.state}/", f"{lab.images}/", "/run/netns/cni-", "/run/containerd/"):
        _run("umount", "--lazy", mount)
    for namespace in Path("/run/netns").glob("cni-*"):
        namespace.unlink()


def _remove_network(before: Before) -> None:
    if Path(f"/sys/class/net/{BRIDGE}").exists():
        _run("ip", "link", "delete", BRIDGE)
    for program in ("iptables", "ip6tables"):
        rules = _run(f"{program}-save")
        kept = [line for line in rules.splitlines() if "KUBE-" not in line and "CNI-" not in line]
        if len(kept) != len(rules.splitlines()):
            _run(f"{program}-restore", stdin="\n".join(kept) + "\n")
    for table in _nft_tables():
        if table not in before.tables:
            _run("nft", "delete", "table", *table.split())


def _nft_tables() -> Sequence[str]:
    """Return the tables of the packet filter as `<family> <name>`."""
    listed = _run("nft", "list", "tables").splitlines()
    return [line.removeprefix("table ").strip() for line in listed]


def _remove_cgroups() -> None:
    """Remove the groups in which pods and builds ran: folders without files of their own."""
    root = Path("/sys/fs/cgroup")
    # One tree per controller in the first version of cgroups, one for all in the second.
    roots = [root] if (root / "cgroup.controllers").exists() else list(root.iterdir())
    for top in (path / name for path in roots for name in CGROUPS):
        for folder in sorted((top, *top.glob("**/")), reverse=True):
            if folder.exists():
                wait_until(partial(_removed, folder), f"{folder} to empty", seconds=10)


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _sysctl_file(name: str) -> Path:
    return Path("/proc/sys", *name.split("."))


def _run(*command: str, stdin: str | None = None) -> str:
    """Run one of the machine's own tools; what it says on failure is worth a line, not the end."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(f"  {' '.join(command)}: {done.stderr.strip()}", flush=True)
    return done.stdout
