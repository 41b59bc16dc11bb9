"""Builds Graft's two images with what builds images here: the lab's BuildKit, docker, podman."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Mapping, Sequence

from e2e.cluster import kind
from e2e.cluster.clusters import OPERATOR_IMAGE, RUNTIME_IMAGE, Origin, origin
from e2e.cluster.errors import LabError
from e2e.cluster.images import Images
from e2e.cluster.paths import REPOSITORY, Lab
from e2e.cluster.processes import Processes

DOCKERFILES = {OPERATOR_IMAGE: "Dockerfile.operator", RUNTIME_IMAGE: "Dockerfile.runtime"}

Builder = Callable[[str, str, Mapping[str, str]], None]
"""Builds the image of a name from a Dockerfile with build arguments."""


def build_images(names: Sequence[str] = ()) -> None:
    """Build the images (all, or those named) and put them where the cluster in use finds them."""
    build = _builder()
    for image in names or DOCKERFILES:
        if image not in DOCKERFILES:
            raise LabError(f"no image {image!r}; there are {', '.join(DOCKERFILES)}")
        build(image, DOCKERFILES[image], _arguments())
        print(f"built {image}", flush=True)


def _arguments() -> dict[str, str]:
    """Return what the images' labels say about the working tree, and the base if it was chosen."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    found = subprocess.run(describe, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    arguments = {"VERSION": project["version"], "REVISION": found.stdout.strip() or "unknown"}
    if base := os.environ.get("BASE_IMAGE"):
        arguments["BASE_IMAGE"] = base
    return arguments


def _builder() -> Builder:
    if Processes(Lab()).runs("buildkitd"):
        return Images(Lab()).build
    if kind.docker_answers():
        return _build_for_kind if origin() is Origin.KIND and kind.is_up() else _with("docker")
    if shutil.which("podman"):
        return _with("podman")
    if shutil.which("buildctl") and os.environ.get("BUILDKIT_HOST"):
        return _build_with_buildctl
    raise LabError(
        "nothing here builds images: no Docker engine, no podman, no BUILDKIT_HOST; `make cluster`"
        " brings a BuildKit up"
    )


def _build_for_kind(image: str, dockerfile: str, arguments: Mapping[str, str]) -> None:
    _with("docker")(image, dockerfile, arguments)
    kind.load(image)


def _with(program: str) -> Builder:
    """Return a builder that uses docker's command line, which podman shares."""

    def build(image: str, dockerfile: str, arguments: Mapping[str, str]) -> None:
        command = [program, "build", "--file", dockerfile, "--tag", image]
        for name, value in arguments.items():
            command += ["--build-arg", f"{name}={value}"]
        subprocess.run([*command, "."], cwd=REPOSITORY, check=True)

    return build


def _build_with_buildctl(image: str, dockerfile: str, arguments: Mapping[str, str]) -> None:
    command = ["buildctl", "build", "--frontend", "dockerfile.v0", "--local", "context=."]
    command += ["--local", "dockerfile=.", "--opt", f"filename={dockerfile}"]
    for name, value in arguments.items():
        command += ["--opt", f"build-arg:{name}={value}"]
    subprocess.run([*command, "--output", f"type=image,name={image}"], cwd=REPOSITORY, check=True)
