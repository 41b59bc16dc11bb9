"""Builds the kernels written in C while the project is installed, where a C compiler is there.

Without one the project is as complete and slower: each kernel has an equal in torch, which the
process takes then, and says so. The library brings no OpenMP runtime along: two in one process
would share its cores, so it takes the one that torch has loaded.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("runtime/graft_runtime/layers/lora/native.c")
LIBRARY = SOURCE.with_name("_native.so")
FLAGS = ("-O3", "-std=c11", "-fPIC", "-fopenmp")


class KernelHook(BuildHookInterface[Any]):
    """Compiles `native.c` into the package."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, if that can be done, and have the wheel say for which machine it is."""
        del version
        root = Path(self.root)
        (root / LIBRARY).unlink(missing_ok=True)
        try:
            _compile(root)
        except (OSError, subprocess.CalledProcessError) as error:
            self.app.display_warning(f"no kernel in C, adapters on a CPU will be slower: {error}")
            return
        build_data["artifacts"].append(f"/{LIBRARY}")
        build_data["pure_python"] = False
        machine = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{machine}"


def _compile(root: Path) -> None:
    """Compile in two steps: the linker must not be told of OpenMP.

    Raises:
        OSError: There is no compiler, or no Linux.
        subprocess.CalledProcessError: It cannot compile this, for want of the C library's headers
            or of OpenMP. It has said why.
    """
    if platform.system() != "Linux":
        message = "it is for Linux"
        raise OSError(message)
    compiler, unlinked = os.environ.get("CC", "cc"), root / LIBRARY.with_suffix(".o")
    try:
        subprocess.run([compiler, *FLAGS, "-c", root / SOURCE, "-o", unlinked], check=True)
        subprocess.run([compiler, "-shared", unlinked, "-o", root / LIBRARY], check=True)
    finally:
        unlinked.unlink(missing_ok=True)
