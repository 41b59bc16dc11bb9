"""Environments for clients, built once from the package index and kept in ``.conformance/``."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".conformance"
SCRIPTS = Path(__file__).resolve().parent / "clients"
BUILD_SECONDS = 900


@dataclass(frozen=True)
class Client:
    """One client: what it needs and the script that uses it."""

    name: str
    requirements: tuple[str, ...] = ()
    borrowed: tuple[str, ...] = ()
    """Packages that its requirements name and that come from our own environment."""
    packages: tuple[tuple[str, str], ...] = ()
    """Of Node.js, with their versions."""

    @property
    def is_node(self) -> bool:
        """Whether it runs in Node.js."""
        return bool(self.packages)

    @property
    def script(self) -> Path:
        """What runs its checks."""
        stem = self.name.replace("-", "_").replace("huggingface_hub", "hugging_face")
        return SCRIPTS / (f"{self.name}.mjs" if self.is_node else f"check_{stem}.py")

    @property
    def folder(self) -> Path:
        """Where its environment lies; another need is another folder."""
        need = json.dumps([self.requirements, self.borrowed, self.packages, sys.version_info[:2]])
        return FOLDER / f"{self.name}-{hashlib.sha256(need.encode()).hexdigest()[:10]}"


def clients() -> list[Client]:
    """Return all clients in the order of the list."""
    listed = tomllib.loads((Path(__file__).parent / "clients.toml").read_text())
    return [
        Client(
            name,
            tuple(entry.get("requirements", ())),
            tuple(entry.get("borrowed", ())),
            tuple(sorted(entry.get("packages", {}).items())),
        )
        for name, entry in listed.items()
    ]


def build(client: Client) -> list[str]:
    """Make a client's environment if it is not there, and return the command that runs a script.

    Raises:
        subprocess.CalledProcessError: It cannot be made.
        OSError: A tool is missing.
    """
    made = client.folder / ".made"
    if not made.exists():
        shutil.rmtree(client.folder, ignore_errors=True)
        client.folder.mkdir(parents=True)
        (_build_node if client.is_node else _build_python)(client)
        made.touch()
    if client.is_node:
        # Modules are looked for beside the script, so it runs from within the environment.
        copied = client.folder / client.script.name
        shutil.copy(client.script, copied)
        return ["node", str(copied)]
    return [str(client.folder / "bin/python"), str(client.script)]


def _build_python(client: Client) -> None:
    uv = str(Path(sys.executable).with_name("uv"))
    _run([uv, "venv", "--quiet", "--python", sys.executable, "--clear", str(client.folder)])
    overrides = client.folder / "overrides.txt"
    overrides.write_text("".join(f'{name}; python_version < "3"\n' for name in client.borrowed))
    where = ["--python", str(client.folder / "bin/python"), "--override", str(overrides)]
    _run([uv, "pip", "install", "--quiet", *where, *client.requirements])
    if client.borrowed:
        # Named last, so that whatever the client has itself comes first.
        (site,) = client.folder.glob("lib/python*/site-packages")
        (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))


def _build_node(client: Client) -> None:
    manifest = {"private": True, "type": "module", "dependencies": dict(client.packages)}
    (client.folder / "package.json").write_text(json.dumps(manifest))
    quiet = ["--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    _run(["npm", "install", *quiet, "--prefix", str(client.folder)])


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, timeout=BUILD_SECONDS, capture_output=True, text=True)
