"""`graft adapter merge`: hands the work to the runtime, which knows what an adapter is."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from graft_operator.errors import MergeError

RUNTIME = "graft-runtime"


def run_merge(
    out: Path, folders: Sequence[Path], weights: Sequence[float], runtime: str | None
) -> int:
    """Run the runtime's command and return its exit code; it has said what was wrong.

    Raises:
        MergeError: There is no runtime.
    """
    flags = [word for weight in weights for word in ("--weight", str(weight))]
    # "--": a negative weight or a folder is no option.
    named = ["--", str(out), *map(str, folders)]
    command = [*_runtime(runtime), "merge-adapters", *flags, *named]
    try:
        return subprocess.run(command, check=False).returncode
    except OSError as error:
        raise MergeError(
            f"merging needs the runtime, and {command[0]} cannot be run: {error.strerror}"
        ) from error


def _runtime(named: str | None) -> list[str]:
    """Return the runtime of the same installation, also when its folder is not on PATH."""
    if named:
        return shlex.split(named)
    beside = shutil.which(RUNTIME, path=str(Path(sys.executable).parent))
    return [beside or RUNTIME]
