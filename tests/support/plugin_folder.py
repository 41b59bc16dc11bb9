"""The example plugins as an installed distribution, made in a folder without an installer."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples/logits_processors"


def install_example(folder: Path, extra: dict[str, str] | None = None) -> Path:
    """Put the example's module and its metadata into a folder for the import path.

    Args:
        folder: Empty.
        extra: More entry points: names to what they point at.
    """
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    shutil.copy(EXAMPLE / "graft_example_processors.py", folder)
    info = folder / "graft_example_processors-1.0.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(metadata)
    points = project["entry-points"]["graft.logits_processors"] | (extra or {})
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[graft.logits_processors]\n{lines}")
    return folder
