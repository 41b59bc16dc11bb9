"""Pods in local mode: processes that come, go, crash and are replaced."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from graft_operator.cluster.local import LocalCluster
from graft_operator.cluster.process import spawn, stop
from graft_operator.errors import LocalModeError
from tests.support.local import (
    ENV_TEST_FOLDER,
    adapter_document,
    local_settings,
    pids_of,
    running,
    service_document,
)


async def test_pods_follow_the_number_of_replicas(tmp_path: Path) -> None:
    async with running(tmp_path, service_document(replicas=1)) as run:
        await run.until_ready()
        run.write(service_document(replicas=3))
        await run.until(lambda: run.service_status()["readyReplicas"] == 3)
        assert run.pods() == ["tiny-0", "tiny-1", "tiny-2"]
        assert len(set(run.service_status()["endpoints"])) == 3
        run.write(service_document(replicas=0))
        await run.until(lambda: run.pods() == [])
        await run.until(lambda: run.condition("InferenceService", "tiny")[0] == "False")
    assert pids_of(tmp_path) == []


async def test_a_killed_pod_comes_back_with_its_adapters(tmp_path: Path) -> None:
    async with running(tmp_path, service_document(), adapter_document("shout")) as run:
        await run.until_ready("shout")
        (pid,) = pids_of(tmp_path)
        os.kill(pid, signal.SIGKILL)
        await run.until(lambda: run.adapter("shout")[0] == "False")
        await run.until_ready("shout")
        assert await run.which("shout") is not None
        (new_pid,) = pids_of(tmp_path)
        assert new_pid != pid
        pod = run.get("Pod", "tiny-0")
        assert pod["status"]["containerStatuses"][0]["restartCount"] == 1


async def test_a_model_that_crashes_its_pod_is_told_with_the_pods_last_words(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, service_document(uri="s3://fake/crash")) as run:
        await run.until(lambda: "cannot be loaded" in str(run.get("InferenceService", "tiny")))
        assert run.condition("InferenceService", "tiny") == ("False", "RuntimeUnreachable")
        await run.until(lambda: run.log_of("tiny-0").count("cannot be loaded") >= 3)
        run.write(service_document())
        await run.until_ready()


async def test_a_model_that_cannot_be_loaded_gives_its_reason(tmp_path: Path) -> None:
    async with running(tmp_path, service_document(uri="s3://fake/fail-SourceNotFound")) as run:
        await run.until(
            lambda: run.condition("InferenceService", "tiny") == ("False", "SourceNotFound")
        )


async def test_a_changed_configuration_replaces_pods_one_by_one(tmp_path: Path) -> None:
    async with running(tmp_path, service_document(replicas=2)) as run:
        await run.until(lambda: run.service_status().get("readyReplicas") == 2)
        least = 2
        before = set(pids_of(tmp_path))
        url = run.service_status()["url"]
        run.write(service_document(replicas=2, engine={"threads": 1}))

        def replaced() -> bool:
            nonlocal least
            status = run.service_status()
            least = min(least, status["readyReplicas"])
            return (
                not before & set(pids_of(tmp_path))
                and status["readyReplicas"] == status["updatedReplicas"] == 2
            )

        await run.until(replaced)
        assert least >= 1, "all pods were down at once"
        assert run.service_status()["url"] == url
        assert "threads: 1" in run.pod_file("tiny-0", "etc/graft/runtime/runtime.yaml").read_text()


async def test_a_removed_service_takes_its_processes_and_objects_along(tmp_path: Path) -> None:
    async with running(tmp_path, service_document()) as run:
        await run.until_ready()
        (tmp_path / "all.yaml").unlink()
        await run.until(lambda: not pids_of(tmp_path))
        for kind in ("Deployment", "ConfigMap", "Secret", "Service", "Pod"):
            assert run.cluster.store.list_objects(kind) == []


async def test_sockets_fit_when_the_folder_has_a_long_path(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    async with running(folder, service_document()) as run:
        await run.until_ready()
        (pid,) = pids_of(folder)
        environment = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
        (root,) = [item for item in environment if item.startswith("GRAFT_POD_ROOT=")]
        assert len(root.partition("=")[2]) < 60
        short = Path(root.partition("=")[2])
        assert (short / "var/cache/graft").resolve() == folder / ".graft/cache"
    assert not short.exists()


async def test_a_folder_is_up_only_once(tmp_path: Path) -> None:
    async with running(tmp_path, service_document()):
        with pytest.raises(LocalModeError, match="already up"):
            async with LocalCluster(local_settings(tmp_path)):
                pass


async def test_a_cache_folder_that_cannot_be_made_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / ".graft").mkdir()
    (tmp_path / ".graft/cache").write_bytes(b"")
    for _ in range(2):  # the first one lets go of the folder
        with pytest.raises(LocalModeError, match=r"\.graft/cache for the disk cache: File exists"):
            async with LocalCluster(local_settings(tmp_path)):
                pass


async def test_a_process_that_does_not_listen_is_killed_with_all_it_started(tmp_path: Path) -> None:
    script = "trap '' TERM; sleep 1000 & echo up; wait; wait"
    log = tmp_path / "log"
    process = await spawn(["sh", "-c", script], {**os.environ, ENV_TEST_FOLDER: str(tmp_path)}, log)
    async with asyncio.timeout(5):
        while "up" not in log.read_text():
            await asyncio.sleep(0.01)
    assert len(pids_of(tmp_path)) == 2
    await stop(process, grace_seconds=0.1)
    async with asyncio.timeout(5):
        while pids_of(tmp_path):
            await asyncio.sleep(0.01)
