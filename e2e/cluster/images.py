"""Puts images where the kubelet finds them: containerd's store. Asks no registry.

Graft's own images are built here by BuildKit, over a base image that is made from Debian's packages
because nothing can be pulled.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from e2e.cluster.oci import OneLayer
from e2e.cluster.paths import HERE, REPOSITORY, Lab
from e2e.cluster.tools import run_tool

PAUSE_IMAGE = "localhost/graft-pause:dev"
BASE_IMAGE = "localhost/graft-python:bookworm"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
DEBIAN = "bookworm"
UNNEEDED = (
    # What debootstrap leaves that an image does not need.
    "debootstrap",
    "dev",
    "etc/hostname",
    "etc/resolv.conf",
    "usr/share/doc",
    "usr/share/man",
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log",
)


class Images:
    """The image store of the lab's containerd."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def answers(self) -> bool:
        """Tell whether containerd answers yet."""
        command = [str(self._lab.program("ctr")), "version"]
        environment = self._lab.environment
        return (
            subprocess.run(command, env=environment, capture_output=True, check=False).returncode
            == 0
        )

    def names(self) -> list[str]:
        """Return the names of all stored images."""
        return self._ctr("images", "list", "--quiet").splitlines()

    def ensure_pause(self) -> None:
        """Make the sandbox image of every pod."""
        if PAUSE_IMAGE in self.names():
            return
        with tempfile.TemporaryDirectory() as scratch:
            program = Path(scratch, "pause")
            compiler = ("gcc", "-Os", "-static", "-s", "-o", str(program), str(HERE / "pause.c"))
            run_tool(compiler, self._lab.environment)
            self._import_files(PAUSE_IMAGE, {"pause": program}, "/pause")

    def ensure_program(self, name: str) -> str:
        """Make an image of one of the built programs and nothing else; return its name."""
        path = self._lab.program(name)
        # The version is part of the name: another version is another image.
        image = f"localhost/{path.parent.name}:dev"
        if image not in self.names():
            files = {name: path, str(CERTIFICATES.relative_to("/")): CERTIFICATES}
            self._import_files(image, files, f"/{name}")
        return image

    def ensure_base(self) -> None:
        """Make the base image: Debian with Python and pip, like the public Python images."""
        if BASE_IMAGE in self.names():
            return
        kept = self._lab.cache / f"{DEBIAN}-python.tar"
        if not kept.exists():
            print(
                "  making the base image from Debian's packages, once (about a minute)", flush=True
            )
            with tempfile.TemporaryDirectory(dir=self._lab.cache) as scratch:
                root = _debian(Path(scratch, "root"), self._lab.environment)
                unfinished = Path(scratch, "layer.tar")
                run_tool(
                    ("tar", "-C", str(root), "--numeric-owner", "-cf", str(unfinished), "."),
                    self._lab.environment,
                )
                unfinished.rename(kept)
        with tempfile.TemporaryDirectory(dir=self._lab.cache) as scratch:
            layer = Path(shutil.copy(kept, Path(scratch, "layer.tar")))
            search = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
            image = OneLayer(BASE_IMAGE, layer, environment=(search, "LANG=C.UTF-8"))
            self._import(image, Path(scratch))

    def build(
        self,
        image: str,
        dockerfile: str,
        arguments: Mapping[str, str],
        context: Path = REPOSITORY,
    ) -> None:
        """Build an image from a folder's files, showing BuildKit's own progress."""
        self.ensure_base()
        command = [
            *("buildctl", "build", "--frontend", "dockerfile.v0"),
            *("--local", f"context={context}", "--local", f"dockerfile={context}"),
            *("--opt", f"filename={dockerfile}", "--opt", "image-resolve-mode=local"),
            # Compression would cost more than it saves: the image never leaves this machine.
            "--output",
            f"type=image,name={image},unpack=true,store=true,compression=uncompressed",
        ]
        for name, value in {"BASE_IMAGE": BASE_IMAGE, **arguments}.items():
            command += ["--opt", f"build-arg:{name}={value}"]
        subprocess.run(command, env=self._lab.environment, check=True)

    def tag(self, image: str, other: str) -> None:
        """Give an image another name as well."""
        self._ctr("images", "tag", "--force", image, other)

    def _import_files(self, image: str, files: Mapping[str, Path], entrypoint: str) -> None:
        """Make an image of a few files, owned by root."""
        with tempfile.TemporaryDirectory() as scratch:
            layer = Path(scratch, "layer.tar")
            with tarfile.open(layer, "w") as tar:
                for name, path in files.items():
                    tar.add(path.resolve(), arcname=name, filter=_owned_by_root)
            self._import(OneLayer(image, layer, (entrypoint,), ("PATH=/",)), Path(scratch))

    def _import(self, image: OneLayer, scratch: Path) -> None:
        self._ctr("images", "import", "--all-platforms", str(image.write(scratch)))

    def _ctr(self, *arguments: str) -> str:
        return run_tool(("ctr", *arguments), self._lab.environment)


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _debian(root: Path, environment: Mapping[str, str]) -> Path:
    """Make a small Debian with Python in which a Dockerfile's usual lines work."""
    included = "--include=python3,python3-pip,ca-certificates"
    command = ("debootstrap", "--variant=minbase", included, DEBIAN, str(root))
    run_tool(command, environment, seconds=900)
    (root / "usr/bin/python").symlink_to("python3")
    # In an image, pip may install: there is no other user of its Python.
    for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        marker.unlink()
    # Builds reach what this machine reaches, trusting whom it trusts.
    shutil.copy(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
    if Path("/etc/pip.conf").exists():
        shutil.copy("/etc/pip.conf", root / "etc/pip.conf")
    for path in (root / name for name in UNNEEDED):
        if path.is_dir():
            for entry in path.iterdir():
                shutil.rmtree(
                    entry
                ) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        else:
            path.unlink(missing_ok=True)
    return root
