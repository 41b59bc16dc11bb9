"""What keeps a pod from starting ends `graft-runtime serve` at once, with one line that says it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from graft_protocol.config import RuntimeConfig
from graft_protocol.naming import ENV_POD_NAME, ENV_POD_ROOT, PodPaths
from tests.support.loader_process import loader_told
from tests.support.obey_modes import obey_modes
from tests.support.pod import lay_out

DEADLINE_SECONDS = 60


def pod_in(root: Path) -> PodPaths:
    """Lay out a pod whose model nobody will ever read."""
    values = {
        "service": {"namespace": "default", "name": "test"},
        "model": {"servedName": "base", "uri": "file:///nowhere"},
        "server": {"host": "127.0.0.1", "port": 1, "grpcPort": 2, "internalPort": 3},
    }
    paths = lay_out(root, RuntimeConfig.model_validate(values))
    paths.cache_dir.parent.mkdir(parents=True)
    return paths


def a_file_above(folder: Path) -> str:
    folder.parent.rmdir()
    folder.parent.write_bytes(b"")
    return "it, or a part of its path, is no folder"


def a_file_in_its_place(folder: Path) -> str:
    folder.write_bytes(b"")
    return "it, or a part of its path, is no folder"


def no_right_to_make_it(folder: Path) -> str:
    folder.parent.chmod(0o500)
    return "the folder may not be written"


def no_right_to_write_it(folder: Path) -> str:
    for name in ("models", "adapters", "tmp", "locks", "partial"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o500)
    return "the folder may not be written"


SPOILED = [a_file_above, a_file_in_its_place, no_right_to_make_it, no_right_to_write_it]


@pytest.mark.parametrize("spoil", SPOILED)
def test_a_cache_that_cannot_be_written_ends_the_pod_with_one_line(
    spoil: Callable[[Path], str], tmp_path: Path
) -> None:
    folder = pod_in(tmp_path).cache_dir
    said = spoil(folder)
    done = subprocess.run(
        [sys.executable, "-m", "graft_runtime.cli", "serve"],
        env=os.environ | {ENV_POD_ROOT: str(tmp_path), ENV_POD_NAME: "test-0"},
        preexec_fn=obey_modes,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    line = f"Error: CacheFull: the disk cache {folder} cannot be written: {said}\n"
    assert done.stderr == line, "nothing was started, and a pod's last words are its log's end"


def test_a_loader_whose_cache_was_lost_ends_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    settings = tmp_path / "settings.json"
    settings.write_text(loader_told(tmp_path, {"cache_dir": tmp_path / "file" / "c"}).to_json())
    done = subprocess.run(
        [sys.executable, "-m", "graft_runtime.cli", "loader", str(settings)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"Error: CacheFull: the disk cache {tmp_path}/file/c cannot be written")
