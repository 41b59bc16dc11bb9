"""Keys, certificates and kubeconfigs of the test cluster, made with openssl. Knows no process."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from e2e.cluster.network import KUBERNETES_IP
from e2e.cluster.paths import CONTEXT, NODE_NAME, Lab

DAYS = "3650"
API_SERVER_NAMES = (
    "DNS:localhost",
    "DNS:kubernetes",
    "DNS:kubernetes.default",
    "DNS:kubernetes.default.svc",
    "DNS:kubernetes.default.svc.cluster.local",
    "IP:127.0.0.1",
    f"IP:{KUBERNETES_IP}",
)
USERS = {
    "admin": "/O=system:masters/CN=admin",
    "controller-manager": "/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
    "kubelet": f"/O=system:nodes/CN=system:node:{NODE_NAME}",
    "kube-proxy": "/CN=system:kube-proxy",
}


def make_pki(lab: Lab, node_ip: str) -> None:
    """Make all of it; a second call with the same address does nothing."""
    done = lab.pki / "done"
    if done.exists() and done.read_text() == node_ip:
        return
    lab.pki.mkdir(parents=True, exist_ok=True)
    lab.pki.chmod(0o700)
    for name in ("ca", "front-proxy-ca"):
        _authority(lab.pki, name)
    node_names = f"DNS:{NODE_NAME},IP:{node_ip},IP:127.0.0.1"
    _certificate(
        lab.pki, "apiserver", "/CN=kube-apiserver", ",".join((*API_SERVER_NAMES, f"IP:{node_ip}"))
    )
    _certificate(lab.pki, "apiserver-kubelet", "/O=kubelet-callers/CN=kube-apiserver")
    _certificate(lab.pki, "kubelet-server", f"/CN={NODE_NAME}", node_names)
    _certificate(lab.pki, "front-proxy", "/CN=front-proxy", authority="front-proxy-ca")
    for user, subject in USERS.items():
        _certificate(lab.pki, user, subject)
        _kubeconfig(lab, user, node_ip)
    _key(lab.pki, "service-accounts")
    _openssl(
        "pkey",
        "-in",
        _at(lab.pki, "service-accounts.key"),
        "-pubout",
        "-out",
        _at(lab.pki, "service-accounts.pub"),
    )
    done.write_text(node_ip)


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def _at(folder: Path, name: str) -> str:
    return str(folder / name)


def _key(folder: Path, name: str) -> None:
    curve = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    _openssl("genpkey", *curve, "-out", _at(folder, f"{name}.key"))


def _authority(folder: Path, name: str) -> None:
    _key(folder, name)
    usage = ("basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,digitalSignature")
    _openssl(
        *("req", "-x509", "-new", "-key", _at(folder, f"{name}.key"), "-subj", f"/CN={name}"),
        *("-addext", usage[0], "-addext", usage[1]),
        *("-days", DAYS, "-out", _at(folder, f"{name}.crt")),
    )


def _certificate(
    folder: Path, name: str, subject: str, names: str = "", *, authority: str = "ca"
) -> None:
    _key(folder, name)
    request, extensions = folder / f"{name}.csr", folder / f"{name}.ext"
    lines = ["keyUsage=digitalSignature", "extendedKeyUsage=serverAuth,clientAuth"]
    lines += [f"subjectAltName={names}"] if names else []
    extensions.write_text("\n".join(lines) + "\n")
    key = _at(folder, f"{name}.key")
    _openssl("req", "-new", "-key", key, "-subj", subject, "-out", str(request))
    _openssl(
        *("x509", "-req", "-in", str(request), "-extfile", str(extensions), "-days", DAYS),
        *("-CA", _at(folder, f"{authority}.crt"), "-CAkey", _at(folder, f"{authority}.key")),
        *("-CAcreateserial", "-out", _at(folder, f"{name}.crt")),
    )
    request.unlink()
    extensions.unlink()


def _kubeconfig(lab: Lab, user: str, node_ip: str) -> None:
    """Write a kubeconfig; JSON is YAML."""
    cluster = {
        "server": f"https://{node_ip}:6443",
        "certificate-authority": _at(lab.pki, "ca.crt"),
    }
    identity = {
        "client-certificate": _at(lab.pki, f"{user}.crt"),
        "client-key": _at(lab.pki, f"{user}.key"),
    }
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": CONTEXT, "cluster": cluster}],
        "users": [{"name": user, "user": identity}],
        "contexts": [{"name": CONTEXT, "context": {"cluster": CONTEXT, "user": user}}],
        "current-context": CONTEXT,
    }
    path = lab.kubeconfig(user)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps(content, indent=2) + "\n")
