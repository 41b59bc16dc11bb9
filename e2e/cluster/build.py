"""Build the cluster's programs from their Go modules, once per version, into the cache.

Knows nothing of how they run. `up` calls it first; a program that is there is left alone.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from e2e.cluster.errors import LabError
from e2e.cluster.paths import Lab
from e2e.cluster.programs import KUBERNETES_STAGING, MODULES, GoModule

GO_VERSION = (1, 26)
"""The oldest Go that compiles the pinned Kubernetes."""
PROGRESS_SECONDS = 20.0
"""Between two lines of progress where no terminal redraws them."""


def missing(lab: Lab, *, node: bool) -> list[GoModule]:
    """Return the modules of which a program is not built yet."""
    wanted = [module for module in MODULES if node or module.needed_by == "control-plane"]
    return [
        module
        for module in wanted
        if not all((lab.programs(module) / name).exists() for name in module.programs)
    ]


def build(lab: Lab, modules: Sequence[GoModule]) -> None:
    """Build the given modules; tell how far it is."""
    if not modules:
        return
    _require_tools()
    began = time.monotonic()
    print(
        f"building {len(modules)} of the cluster's parts from source, once (about 20 minutes on two"
        f" cores for all of them), into {lab.cache}",
        flush=True,
    )
    with _lock(lab.cache):
        for number, module in enumerate(modules, 1):
            _build_module(lab, module, f"  {number}/{len(modules)} {module.name} {module.version}")
        _forget_sources(lab)
    print(f"  built in {time.monotonic() - began:.0f} s", flush=True)


def _require_tools() -> None:
    go, compiler = shutil.which("go"), shutil.which("gcc")
    if go is None or compiler is None:
        raise LabError(
            f"building the cluster needs Go {GO_VERSION[0]}.{GO_VERSION[1]} or newer and gcc; or"
            " set KUBECONFIG to a cluster that may be used for tests, or start a Docker engine and"
            " install kind"
        )
    found = subprocess.run([go, "env", "GOVERSION"], check=True, capture_output=True, text=True)
    version = re.match(r"go(\d+)\.(\d+)", found.stdout)
    if version is None or (int(version[1]), int(version[2])) < GO_VERSION:
        raise LabError(
            f"building the cluster needs Go {GO_VERSION[0]}.{GO_VERSION[1]} or newer, and {go} is"
            f" {found.stdout.strip()}"
        )


@contextmanager
def _lock(cache: Path) -> Iterator[None]:
    """Let one build at a time use the cache."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build_module(lab: Lab, module: GoModule, title: str) -> None:
    """Compile one module's programs; they appear in the cache all at once."""
    folder = lab.programs(module)
    source = lab.cache / "src" / module.name
    unfinished = folder.with_name(folder.name + ".unfinished")
    for path in (source, unfinished):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    environment = _environment(lab, module)
    print(f"{title}: fetching sources", flush=True)
    _write_go_mod(module, source, environment)
    _run(["go", "get", f"{module.module}@v{module.version}"], source, environment)
    command = ["nice", "-n", "10", "go", "build", "-v", "-trimpath", "-tags", module.tags]
    command += ["-ldflags", module.ldflags]
    for package in module.packages:
        target = unfinished / module.program(package)
        imported = module.module if package == "." else f"{module.module}/{package}"
        _compile(
            [*command, "-o", str(target), imported], source, environment, f"{title}: {target.name}"
        )
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    shutil.rmtree(source)


def _environment(lab: Lab, module: GoModule) -> dict[str, str]:
    return {
        **os.environ,
        "GOPATH": str(lab.cache / "go"),
        "GOCACHE": str(lab.cache / "go" / "build"),
        "GOFLAGS": "-mod=mod -buildvcs=false -modcacherw",
        "CGO_ENABLED": "1" if module.cgo else "0",
    }


def _write_go_mod(module: GoModule, source: Path, environment: dict[str, str]) -> None:
    """Write a throw-away module around the wanted one, so that each keeps its own pins."""
    lines = [f"module lab/{module.name}", "", "go 1.26.0"]
    if module.name == "kubernetes":
        # Kubernetes requires its own parts at v0.0.0 and replaces them inside its repository only.
        lines += ["", "godebug default=go1.26"]
        lines += [
            f"replace {part} => {part} v{KUBERNETES_STAGING}"
            for part in _staging_parts(module, source, environment)
        ]
    (source / "go.mod").write_text("\n".join(lines) + "\n")


def _staging_parts(module: GoModule, source: Path, environment: dict[str, str]) -> list[str]:
    command = ["go", "mod", "download", "-json", f"{module.module}@v{module.version}"]
    found = re.search(r'"GoMod": "(.*)"', _run(command, source, environment))
    if found is None:
        raise LabError(f"no go.mod in what `{' '.join(command)}` printed")
    required = re.findall(
        r"^\s*(k8s\.io/[a-z0-9.-]+) v0\.0\.0(?:\s|$)", Path(found[1]).read_text(), re.MULTILINE
    )
    return sorted(set(required))


def _run(command: Sequence[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise LabError(f"`{' '.join(command)}` failed:\n{done.stderr[-2000:]}")
    return done.stdout


def _compile(command: Sequence[str], folder: Path, environment: dict[str, str], title: str) -> None:
    """Run `go build -v`, which prints a line per compiled package, and show how many there were."""
    began = shown = time.monotonic()
    tail: list[str] = []
    with subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for num_packages, line in enumerate(process.stderr, 1):
            tail = [*tail[-30:], line]
            now = time.monotonic()
            if now - shown >= (0.2 if sys.stdout.isatty() else PROGRESS_SECONDS):
                shown = now
                _show(f"{title}: {num_packages} packages, {now - began:.0f} s")
    if process.returncode != 0:
        raise LabError(f"`{' '.join(command)}` failed:\n{''.join(tail)}")
    _show(f"{title}: {time.monotonic() - began:.0f} s", last=True)


def _show(text: str, *, last: bool = False) -> None:
    """Redraw one line on a terminal, print lines elsewhere."""
    if sys.stdout.isatty():
        print(f"\r\x1b[K{text}", end="\n" if last else "", flush=True)
    else:
        print(text, flush=True)


def _forget_sources(lab: Lab) -> None:
    """Give back what only the compiler needed (over 10 GB), once all is built."""
    if not missing(lab, node=True):
        shutil.rmtree(lab.cache / "go", ignore_errors=True)
        shutil.rmtree(lab.cache / "src", ignore_errors=True)
