"""The test cluster's programs: found again by another command, and nothing taken for them."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cluster.errors import LabError
from e2e.cluster.paths import Lab
from e2e.cluster.processes import Processes, wait_until
from e2e.cluster.programs import MODULES

ETCD = next(module for module in MODULES if module.name == "etcd")


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    lab = Lab(cache=tmp_path / "cache", state=tmp_path / "state")
    lab.state.mkdir()
    return lab


def install(lab: Lab, script: str) -> None:
    """Put a shell script where one of the cluster's programs would be."""
    path = lab.programs(ETCD) / "etcd"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def processes(lab: Lab) -> Iterator[Processes]:
    processes = Processes(lab)
    yield processes
    for name in processes.running():
        processes.stop(name)


def pid(lab: Lab) -> int:
    return int((lab.state / "pids" / "store").read_text().split()[0])


def first_thread(lab: Lab) -> str:
    """Return the state of the program's first thread."""
    return Path(f"/proc/{pid(lab)}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_a_started_program_is_found_again_by_another_command(
    lab: Lab, processes: Processes
) -> None:
    install(lab, "exec sleep 60")
    processes.start("store", "etcd")

    assert Processes(lab).running() == ["store"]


def test_a_second_start_leaves_a_running_program_alone(lab: Lab, processes: Processes) -> None:
    install(lab, "exec sleep 60")
    processes.start("store", "etcd")
    first = pid(lab)

    processes.start("store", "etcd")

    assert pid(lab) == first


def test_a_stopped_program_is_gone(lab: Lab, processes: Processes) -> None:
    install(lab, "exec sleep 60")
    processes.start("store", "etcd")

    processes.stop("store")

    assert processes.running() == []
    assert list((lab.state / "pids").iterdir()) == []


def test_a_program_runs_until_its_last_thread_has_ended(lab: Lab, processes: Processes) -> None:
    leave = "ctypes.CDLL(None).pthread_exit(None)"
    stay = "threading.Thread(target=time.sleep, args=(60,)).start()"
    install(lab, f"exec {sys.executable} -c 'import ctypes, threading, time; {stay}; {leave}'")
    processes.start("store", "etcd")
    wait_until(lambda: first_thread(lab) == "Z", "its first thread to end", seconds=30)

    assert processes.running() == ["store"]
    processes.stop("store")
    assert processes.running() == []


def test_another_process_with_the_same_pid_is_neither_running_nor_stopped(
    lab: Lab, processes: Processes
) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (lab.state / "pids").mkdir()
        (lab.state / "pids" / "store").write_text(f"{stranger.pid} 1\n")

        assert processes.running() == []
        processes.stop("store")

        assert stranger.poll() is None
        stranger.kill()


def test_a_program_that_ends_while_starting_is_told_with_its_log(
    lab: Lab, processes: Processes
) -> None:
    install(lab, "echo no room for data >&2; exit 1")
    processes.start("store", "etcd")

    with pytest.raises(LabError, match="no room for data"):
        processes.wait(lambda: False, "the store", ["store"])


def test_a_program_that_ended_before_its_pid_was_noted_is_not_running(
    lab: Lab, processes: Processes
) -> None:
    (lab.state / "pids").mkdir()
    (lab.state / "pids" / "store").write_text("4194303 dead\n")

    assert processes.running() == []
