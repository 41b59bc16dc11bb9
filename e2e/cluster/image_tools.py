"""Builds Graft's two images with what builds images here: the lab's BuildKit, docker, podman."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable

from e2e.cluster import kind
from e2e.cluster.clusters import OPERATOR_IMAGE, RUNTIME_IMAGE, Origin, origin
from e2e.cluster.errors import LabError
from e2e.cluster.images import Images
from e2e.cluster.paths import REPOSITORY, Lab
from e2e.cluster.processes import Processes

DOCKERFILES = {OPERATOR_IMAGE: "Dockerfile.operator", RUNTIME_IMAGE: "Dockerfile.runtime"}

Builder = Callable[[str, str], None]
"""Builds an image of the given name from the given Dockerfile."""


def build_images(names: tuple[str, ...] = ()) -> None:
    """Build the images (all, or those named) and put them where the cluster in use finds them."""
    build = _builder()
    for image, dockerfile in DOCKERFILES.items():
        if not names or image in names:
            build(image, dockerfile)
            print(f"built {image}", flush=True)


def _builder() -> Builder:
    if Processes(Lab()).runs("buildkitd"):
        return Images(Lab()).build
    if kind.docker_answers():
        return _build_for_kind if origin() is Origin.KIND and kind.is_up() else _with("docker")
    if shutil.which("podman"):
        return _with("podman")
    if shutil.which("buildctl") and os.environ.get("BUILDKIT_HOST"):
        return _with_buildctl
    raise LabError(
        "nothing here builds images: no Docker engine, no podman, no BUILDKIT_HOST; `make cluster`"
        " brings a BuildKit up"
    )


def _build_for_kind(image: str, dockerfile: str) -> None:
    _with("docker")(image, dockerfile)
    kind.load(image)


def _with(program: str) -> Builder:
    """Return a builder that uses docker's command line, which podman shares."""

    def build(image: str, dockerfile: str) -> None:
        command = [program, "build", "--file", dockerfile, "--tag", image, *_base(), "."]
        subprocess.run(command, cwd=REPOSITORY, check=True)

    return build


def _with_buildctl(image: str, dockerfile: str) -> None:
    base = os.environ.get("BASE_IMAGE")
    command = ["buildctl", "build", "--frontend", "dockerfile.v0"]
    command += [
        "--local",
        "context=.",
        "--local",
        "dockerfile=.",
        "--opt",
        f"filename={dockerfile}",
    ]
    command += ["--opt", f"build-arg:BASE_IMAGE={base}"] if base else []
    subprocess.run([*command, "--output", f"type=image,name={image}"], cwd=REPOSITORY, check=True)


def _base() -> list[str]:
    """Return the choice of another base image, if there is one."""
    base = os.environ.get("BASE_IMAGE")
    return ["--build-arg", f"BASE_IMAGE={base}"] if base else []
