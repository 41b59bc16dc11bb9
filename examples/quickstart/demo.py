"""The whole of Graft in a minute or two on one machine: ``make demo``.

Starts an object store on loopback, uploads a model and adapters, brings a service up from its
manifests, streams from the base model and from two adapters, then changes one adapter while a
stream is running. Checks everything it shows, and ends with ``demo: ok`` or ``demo: FAILED <why>``.
``KEEP=1`` leaves it running.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from obstore.store import S3Store

from examples.quickstart.stories import (
    DEADLINE_SECONDS,
    LONG_TOKENS,
    NUM_STREAMS,
    PROMPT,
    STORY_TOKENS,
    DemoError,
    Stream,
    complete,
    stream,
)

HERE = Path(__file__).parent
EXAMPLES = HERE.parent
BIN = Path(sys.executable).parent
BUCKET = "graft-demo"
STORE_PORT = 9555
POLL_SECONDS = 0.05

Table = dict[str, dict[str, Any]]


@dataclass
class Demo:
    """What the demo started, and where."""

    folder: Path
    port: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def manifests(self) -> Path:
        """A copy of the example's manifests, to be edited at will."""
        return self.folder / "quickstart"

    @property
    def endpoint(self) -> str:
        """The object store's address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, *command: str | Path, log: str | None = None) -> subprocess.Popen[bytes]:
        """Start a program in a session of its own, so that Ctrl-C here does not reach it."""
        output = None if log is None else (self.folder / log).open("wb")
        process = subprocess.Popen(
            list(map(str, command)), stdout=output, stderr=output, start_new_session=True
        )
        self.processes.append(process)
        return process

    def stop(self) -> None:
        """End everything, the last first."""
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=20)
            if process.poll() is None:
                process.kill()
                process.wait()


def main() -> int:
    """Run the demo and return the exit status."""
    demo = Demo(Path(tempfile.mkdtemp(prefix="graft-demo-")), _store_port())
    keep = os.environ.get("KEEP", "") not in ("", "0")
    # A terminated demo cleans up as an interrupted one does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        url = run(demo)
    except (DemoError, httpx.HTTPError, OSError) as error:
        demo.stop()
        print(f"\nlogs: {demo.folder}")
        print(f"demo: FAILED {error}")
        return 1
    except KeyboardInterrupt:
        demo.stop()
        print("\ndemo: FAILED interrupted")
        return 130
    print("demo: ok", flush=True)
    if keep:
        stay(demo, url)
    demo.stop()
    shutil.rmtree(demo.folder, ignore_errors=True)
    return 0


def run(demo: Demo) -> str:
    """Tell the story from the empty object store to the changed adapter; return the URL."""
    title("1. An object store on loopback, with a base model and adapters in it")
    start_store(demo)
    title("2. `graft up`: an InferenceService and a LoraAdapter from their manifests")
    shutil.copytree(HERE, demo.manifests, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    point_at(demo)
    operator = demo.start(BIN / "graft", "up", demo.manifests)
    url = wait_ready(demo, operator, adapters=1)
    title("3. A second adapter, published and applied while the service runs")
    apply(demo, "pirate", publish(demo, "pirate-v1", "pirate"))
    wait_ready(demo, operator, adapters=2)
    title("4. The same prompt to the base model and to each adapter, all in one batch engine")
    stories = {model: show_stream(url, model) for model in ("tiny", "shout", "pirate")}
    if len(set(stories.values())) != len(stories):
        raise DemoError("two models told the same story")
    title("5. A new version of `pirate` while streams of the old one are running")
    change_version(demo, url, stories["pirate"])
    title("6. What there is now")
    print(graft(demo, "get", "all", str(demo.manifests), "-o", "wide"))
    return url


def start_store(demo: Demo) -> None:
    """Start moto's S3 server and fill a bucket."""
    server = demo.start(
        sys.executable,
        "-m",
        "moto.server",
        "-H",
        "127.0.0.1",
        "-p",
        str(demo.port),
        log="store.log",
    )
    for _ in waiting("the object store to answer"):
        if server.poll() is not None:
            raise DemoError("the object store ended; see store.log")
        with contextlib.suppress(httpx.TransportError):
            httpx.put(f"{demo.endpoint}/{BUCKET}").raise_for_status()
            break
    store = S3Store(
        BUCKET,
        endpoint=demo.endpoint,
        region="us-east-1",
        access_key_id="demo",
        secret_access_key="demo-secret",  # noqa: S106 - the store takes any
        client_options={"allow_http": True},
    )
    model = EXAMPLES / "models/tiny"
    for path in sorted(model.iterdir()):
        store.put(f"models/tiny/{path.name}", path)
    print(f"uploaded models/tiny ({size_of(model) / 1e6:.1f} MB)")
    upload_adapter(demo, "shout", f"s3://{BUCKET}/adapters/shout")


def point_at(demo: Demo) -> None:
    """Put the store's real port into the copied manifests, if it had to differ."""
    for path in demo.manifests.glob("*.yaml"):
        path.write_text(path.read_text().replace(f":{STORE_PORT}", f":{demo.port}"))


def upload_adapter(demo: Demo, folder: str, uri: str, *more: str) -> str:
    """Publish an adapter's folder and return the manifest that was printed."""
    return graft(
        demo,
        *("adapter", "publish", str(EXAMPLES / "adapters" / folder), uri),
        *("--endpoint", demo.endpoint, *more),
    )


def publish(demo: Demo, folder: str, name: str) -> str:
    """Put an adapter into the bucket and return its manifest."""
    uri = f"s3://{BUCKET}/adapters/{folder}"
    options = ("--name", name, "--service", "tiny", "--secret", "object-store")
    return upload_adapter(demo, folder, uri, *options)


def apply(demo: Demo, name: str, manifest: str) -> float:
    """Put a manifest into the folder that `graft up` follows; return when."""
    path = demo.manifests / f"{name}.yaml"
    draft = path.with_suffix(".new")
    draft.write_text(manifest)
    draft.replace(path)
    return time.monotonic()


def wait_ready(demo: Demo, operator: subprocess.Popen[bytes], adapters: int) -> str:
    """Wait until the service and so many adapters are Ready; return the service's URL."""
    for _ in waiting("everything to be Ready"):
        if operator.poll() is not None:
            raise DemoError(f"graft up ended with status {operator.returncode}")
        objects = table(demo)
        services = [one for one in objects.values() if one["kind"] == "InferenceService"]
        loras = [one for one in objects.values() if one["kind"] == "LoraAdapter"]
        if services and len(loras) == adapters and all(map(is_ready, objects.values())):
            return str(services[0]["status"]["url"])
    raise AssertionError


def change_version(demo: Demo, url: str, old_story: str) -> None:
    """Change `pirate` under a running stream, and check all that Graft promises about that."""
    manifest = publish(demo, "pirate-v2", "pirate")
    processes = process_table(demo)
    reference = Stream(url)
    reference.join()
    running = [Stream(url) for _ in range(NUM_STREAMS)]
    for one in running:
        one.wait_started()
    applied = apply(demo, "pirate", manifest)
    new_story, answered = wait_changed(url, old_story)
    were_running = any(one.is_alive() for one in running)
    for one in running:
        one.join()
    print(f"old: {old_story.strip()}")
    print(f"new: {new_story.strip()}")
    print(f"\nfrom apply to the new version's full answer: {answered - applied:.2f} s")
    if not were_running:
        raise DemoError("the streams ended before the version changed: nothing was shown")
    if any(one.text != reference.text for one in running):
        raise DemoError("a running stream was disturbed by the change")
    print(f"{NUM_STREAMS} running streams of {LONG_TOKENS} tokens went on undisturbed to their end")
    if process_table(demo) != processes:
        raise DemoError("a process was restarted")
    print(f"no process was restarted (pids {', '.join(map(str, sorted(processes)))})")
    for _ in waiting("the old version to be gone from the status"):
        if is_ready(table(demo)["LoraAdapter/pirate"]):
            return


def wait_changed(url: str, old_story: str) -> tuple[str, float]:
    """Ask `pirate` until it answers differently; return the new answer and when it was there."""
    for _ in waiting("the new version to answer"):
        story = complete(url, "pirate")
        if story != old_story:
            return story, time.monotonic()
    raise AssertionError


def show_stream(url: str, model: str) -> str:
    """Print a story as its tokens arrive."""
    print(f"\n{model:>8} | {PROMPT}", end="", flush=True)
    told = ""
    for text in stream(url, model, STORY_TOKENS):
        print(text, end="", flush=True)
        told += text
    print()
    if not told.strip():
        raise DemoError(f"{model} said nothing")
    return told


def graft(demo: Demo, *arguments: str) -> str:
    """Run the command line and return what it printed."""
    keys = {"AWS_ACCESS_KEY_ID": "demo", "AWS_SECRET_ACCESS_KEY": "demo-secret"}
    done = subprocess.run(
        [BIN / "graft", *arguments],
        env=os.environ | keys | {"AWS_REGION": "us-east-1"},
        capture_output=True,
        text=True,
        check=False,
        cwd=demo.folder,
    )
    if done.returncode:
        raise DemoError(f"graft {' '.join(arguments)}: {done.stderr.strip()}")
    if done.stderr:
        print(done.stderr, end="")
    return done.stdout


def table(demo: Demo) -> Table:
    """Return all objects by ``Kind/name``, as `graft get -o json` shows them."""
    try:
        items = json.loads(graft(demo, "get", "all", str(demo.manifests), "-o", "json"))["items"]
    except DemoError:
        return {}  # `graft up` has not written anything yet
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in items}


def is_ready(item: dict[str, Any]) -> bool:
    """Whether an object's Ready condition is true."""
    conditions = item.get("status", {}).get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def process_table(demo: Demo) -> dict[int, str]:
    """Return pid and start time of every process that the demo has running."""
    ps = shutil.which("ps")
    if ps is None:
        raise DemoError("there is no `ps` to look at processes with")
    listed = subprocess.run(
        [ps, "-A", "-o", "pid=,ppid=,lstart="], capture_output=True, text=True, check=True
    )
    rows = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    found = {process.pid: "" for process in demo.processes}
    for _ in rows:  # as often as the deepest chain of children can be long
        children = {int(pid): start for pid, parent, start in rows if int(parent) in found}
        if children.keys() <= found.keys():
            break
        found |= children
    starts = {int(pid): start for pid, _, start in rows}
    return {pid: starts.get(pid, "gone") for pid in found}


def waiting(what: str) -> Iterator[None]:
    """Yield now and then until the deadline, then fail."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        yield
        time.sleep(POLL_SECONDS)
    raise DemoError(f"waited {DEADLINE_SECONDS:.0f} s for {what}")


def stay(demo: Demo, url: str) -> None:
    """Leave everything running until Ctrl-C, and say what to try."""
    print(
        f"""
Still running; Ctrl-C ends it. Try:

  curl -N {url}/v1/completions -H 'content-type: application/json' \\
    -d '{{"model": "shout", "prompt": "{PROMPT}", "max_tokens": 60, "stream": true}}'
  curl {url}/generate -H 'content-type: application/json' \\
    -d '{{"inputs": "{PROMPT}", "parameters": {{"adapter_id": "pirate"}}}}'
  curl {url}/v1/models
  {BIN / "graft"} get all {demo.manifests}
  {BIN / "graft"} describe lora/pirate {demo.manifests}
  $EDITOR {demo.manifests}/pirate.yaml     # and save: the change is served at once
"""
    )
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


def title(text: str) -> None:
    """Print a heading."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def size_of(folder: Path) -> int:
    """Return the bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.iterdir())


def _store_port() -> int:
    """Return the manifests' port, or a free one where that is taken."""
    for port in (STORE_PORT, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise DemoError("there is no free port")


if __name__ == "__main__":
    sys.exit(main())
