"""The `graft` command as a person meets it: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.support.local import (
    DEADLINE_SECONDS,
    ENV_TEST_FOLDER,
    FAKE_RUNTIME,
    adapter_document,
    pids_of,
    service_document,
    write_documents,
)

BOTH = (service_document(), adapter_document("shout"))
PROGRAM = "from graft_operator.cli import main; main()"


def environment(folder: Path) -> dict[str, str]:
    """Return an environment in which pods are fake runtimes that can be told by their folder."""
    return {
        **os.environ,
        "GRAFT_RUNTIME": shlex.join(FAKE_RUNTIME),
        ENV_TEST_FOLDER: str(folder),
    }


def graft(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Running:
    """A running command and what it has printed so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def until(self, pattern: str) -> str:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            found = re.search(pattern, self.text)
            if found is not None:
                return found.group(0)
            self._reader.join(0.01)
        raise AssertionError(f"{pattern!r} not in:\n{self.text}")

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        code = self.process.wait(timeout=DEADLINE_SECONDS)
        self._reader.join(DEADLINE_SECONDS)
        return code

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())


@contextmanager
def start(folder: Path, *arguments: str) -> Iterator[Running]:
    with subprocess.Popen(
        [sys.executable, "-u", "-c", PROGRAM, *arguments],
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        running = Running(process)
        try:
            yield running
        finally:
            if process.poll() is None:
                process.kill()


def test_up_tells_how_things_become_ready_and_ends_clean(tmp_path: Path) -> None:
    write_documents(tmp_path, *BOTH)
    with start(tmp_path, "up", str(tmp_path)) as up:
        up.until(r"gis/tiny: Ready at http://127\.0\.0\.1:\d+ \(1 of 1 pods\)")
        up.until(r"lora/shout: Available as shout \([0-9a-f]{12}, rank 8, 1\.2 kB; [\d.]+ s\)")
        up.until("everything is Ready")
        assert pids_of(tmp_path)
        assert up.end() == 0
    assert "Traceback" not in up.text
    assert pids_of(tmp_path) == []


def test_up_tells_of_changes_bad_manifests_and_failures(tmp_path: Path) -> None:
    write_documents(tmp_path, *BOTH)
    with start(tmp_path, "up", str(tmp_path)) as up:
        up.until("everything is Ready")
        write_documents(tmp_path, adapter_document("bad", "s3://fake/fail-TooLarge"), file="b.yaml")
        up.until("lora/bad: TooLarge: .*as asked")
        write_documents(tmp_path, service_document("x", replica=1), file="b.yaml")
        up.until(r"! b.yaml, document 1 \(.*\): spec.replica: unknown field; did you mean")
        up.until("lora/bad: removed")
        (tmp_path / "b.yaml").unlink()
        up.until("b.yaml, document 1 .*: mended")
        update = adapter_document("shout", "s3://fake/fail-RankTooLarge")
        write_documents(tmp_path, service_document(), update)
        up.until("lora/shout: RankTooLarge: .*the version before goes on serving")
        assert up.end(signal.SIGTERM) == 0


def test_get_and_describe_show_what_runs(tmp_path: Path) -> None:
    write_documents(tmp_path, *BOTH)
    folder = str(tmp_path)
    with start(tmp_path, "up", folder) as up:
        up.until("everything is Ready")
        table = graft(tmp_path, "get", "all", folder).stdout
        assert re.search(r"NAMESPACE +NAME +MODEL +READY +REPLICAS +DESIRED +ADAPTERS +AGE", table)
        assert re.search(r"default +tiny +s3://fake/ok +True +1 +1 +1 +\d+s", table)
        assert re.search(r"default +shout +tiny +shout +True +1 +1 +Available +\d+s", table)
        wide = graft(tmp_path, "get", "services", folder, "-o", "wide").stdout
        items = json.loads(graft(tmp_path, "get", "all", folder, "-o", "json").stdout)["items"]
        url = items[0]["status"]["url"]
        assert url.startswith("http://127.0.0.1:")
        assert url in wide
        one = graft(tmp_path, "get", "adapters/shout", folder, "-o", "yaml").stdout
        assert yaml.safe_load(one)["status"]["servedName"] == "shout"
        described = graft(tmp_path, "describe", "lora/shout", folder).stdout
        assert re.search(r"Ready +True +Available", described)
        assert re.search(r"Normal +Available +Ready=True", described)
        missing = graft(tmp_path, "describe", "lora/nobody", folder)
        assert (missing.returncode, missing.stdout) == (1, "")
        assert "nobody does not exist" in missing.stderr
        second = graft(tmp_path, "up", folder)
        assert second.returncode == 1
        assert "already up" in second.stderr
        assert up.end() == 0
    after = graft(tmp_path, "get", "all", folder)
    assert after.returncode == 1
    assert "graft is not up" in after.stderr


def test_up_gives_up_when_told_to_and_says_what_is_not_ready(tmp_path: Path) -> None:
    stuck = adapter_document("stuck", "s3://fake/fail-SourceNotFound")
    write_documents(tmp_path, service_document(), stuck)
    done = graft(tmp_path, "up", str(tmp_path), "--timeout", "3")
    assert done.returncode == 1
    # Which reason it is by then depends on how far the pod came in so short a time.
    assert "lora/stuck: not Ready: " in done.stdout
    assert "not everything is Ready after 3 s" in done.stdout
    assert pids_of(tmp_path) == []


def test_no_process_outlives_a_killed_up(tmp_path: Path) -> None:
    write_documents(tmp_path, *BOTH)
    with start(tmp_path, "up", str(tmp_path)) as up:
        up.until("everything is Ready")
        up.end(signal.SIGKILL)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while pids_of(tmp_path):
        assert time.monotonic() < deadline, "a pod outlived its parent"
        time.sleep(0.01)
    again = graft(tmp_path, "up", str(tmp_path), "--timeout", "0.1")
    assert "already up" not in again.stderr


def test_serve_needs_no_manifests(tmp_path: Path) -> None:
    arguments = ("serve", "s3://fake/ok", "-a", "shout=s3://fake/ok-shout", "--port", "0")
    with start(tmp_path, *arguments) as serve:
        serve.until("gis/ok: Ready at http")
        serve.until("lora/shout: Available as shout")
        assert serve.end() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("up", "/does/not/exist"), "is not a folder"),
        (("get", "pods"), "'pods' is none of services, adapters, all"),
        (("get",), "graft is not up"),
        (("describe", "lora"), "KIND/NAME"),
        (("serve", "m", "-a", "nonsense"), "is not NAME=URI"),
        (("frobnicate",), "No such command"),
    ],
)
def test_a_mistake_ends_in_one_line_and_no_traceback(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = graft(tmp_path, *arguments)
    assert done.returncode in {1, 2}
    assert message in done.stderr
    assert "Traceback" not in done.stderr
