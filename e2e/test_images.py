"""Both images run where little is allowed: PodSecurity `restricted` and a read-only root."""

from __future__ import annotations

import json

import pytest

from e2e.cluster.clusters import Cluster
from e2e.cluster.errors import LabError
from e2e.cluster.tools import Kubectl
from e2e.pods import USER_ID, restricted_pod, run_to_end

LOOK_AROUND = """
import os, pathlib, shutil, sys
try:
    pathlib.Path("/opt/graft/written").touch()
    root = "writable"
except OSError:
    root = "read-only"
caches = [str(path) for place in ("/root", "/tmp", "/var/cache/apt", "/var/lib/apt/lists")
          if os.access(place, os.R_OK) for path in pathlib.Path(place).rglob("*") if path.is_file()]
print(os.getuid(), root, [name for name in ("cc", "gcc", "clang") if shutil.which(name)], caches)
"""
USE_THE_LIBRARIES = """
import pathlib, torch
x = torch.randn(64, 64) @ torch.randn(64, 64)
loaded = pathlib.Path("/proc/self/maps").read_text()
print([name for name in ("libtcmalloc_minimal.so.4", "libomp.so.5") if name in loaded])
"""
ADD_AN_ADAPTER = """
import torch
from graft_runtime.layers.lora.base import LoraPool, ResidentAdapter
from graft_runtime.layers.lora.cpu import group_rows
from graft_runtime.layers.lora.layout import LoraGroup, LoraSlice


class Model:
    num_layers = 1
    lora_groups = (LoraGroup("o", 8, (LoraSlice("o", 4),)),)
    lm_head_group = LoraGroup("lm_head", 8, (LoraSlice("lm_head", 4),))


pool = LoraPool(Model(), num_pages=1, dtype=torch.bfloat16, device=torch.device("cpu"))
slab = pool.slabs[0, "o"]
for part in (slab.a_PGRI, *slab.b_PRo):
    part.fill_(1.0)
pool.bind(1, ResidentAdapter((0,), 16, frozenset(pool.slabs)))
rows, out = group_rows(pool, [1], torch.device("cpu")), torch.zeros(1, 4, dtype=torch.bfloat16)
rows.add(slab, torch.ones(1, 8, dtype=torch.bfloat16), out)
print(type(rows.parts[0]).__name__, out.tolist())
"""


def test_the_operators_image_runs_restricted(images: Cluster, kubectl: Kubectl) -> None:
    pod = restricted_pod("operator", images.operator_image, args=["--version"])

    outcome = run_to_end(kubectl, pod)

    assert outcome.exit_code == 0
    assert outcome.log.startswith("graft, version ")


def test_the_operators_image_holds_what_the_operator_imports(
    images: Cluster, kubectl: Kubectl
) -> None:
    command = [
        "python",
        "-c",
        "import graft_operator.cli.operator, graft_operator.handlers.operator",
    ]
    pod = restricted_pod("operator", images.operator_image, command=command)

    outcome = run_to_end(kubectl, pod)

    assert outcome.log == ""
    assert outcome.exit_code == 0


def test_the_runtimes_image_runs_restricted(images: Cluster, kubectl: Kubectl) -> None:
    pod = restricted_pod("runtime", images.runtime_image)

    outcome = run_to_end(kubectl, pod)

    # Its default is to serve, and there is nothing to serve yet: it says so in a line.
    assert "cannot read /etc/graft/runtime/runtime.yaml" in outcome.log
    assert outcome.exit_code == 1


@pytest.mark.parametrize("which", ["operator", "runtime"])
def test_an_image_is_not_root_and_holds_no_compiler_and_no_cache(
    which: str, images: Cluster, kubectl: Kubectl
) -> None:
    image = images.operator_image if which == "operator" else images.runtime_image
    pod = restricted_pod(which, image, command=["python", "-c", LOOK_AROUND])
    # The image names its user itself: `restricted` must find one that is not root without help.
    del pod["spec"]["securityContext"]["runAsUser"]

    outcome = run_to_end(kubectl, pod)

    assert outcome.log == f"{USER_ID} read-only [] []\n"


def test_the_runtimes_image_brings_its_allocator_and_openmp(
    images: Cluster, kubectl: Kubectl
) -> None:
    pod = restricted_pod(
        "runtime", images.runtime_image, command=["python", "-c", USE_THE_LIBRARIES]
    )

    outcome = run_to_end(kubectl, pod)

    assert outcome.log == "['libtcmalloc_minimal.so.4', 'libomp.so.5']\n"


def test_the_runtimes_image_brings_the_kernel_for_adapters_on_a_cpu(
    images: Cluster, kubectl: Kubectl
) -> None:
    pod = restricted_pod("runtime", images.runtime_image, command=["python", "-c", ADD_AN_ADAPTER])

    outcome = run_to_end(kubectl, pod)

    assert outcome.log == "NativeRows [[128.0, 128.0, 128.0, 128.0]]\n"


def test_the_namespaces_of_stories_refuse_what_restricted_refuses(
    images: Cluster, kubectl: Kubectl
) -> None:
    pod = restricted_pod("root", images.operator_image)
    pod["spec"]["securityContext"]["runAsUser"] = 0

    with pytest.raises(LabError, match="violates PodSecurity"):
        kubectl.apply(json.dumps(pod))
