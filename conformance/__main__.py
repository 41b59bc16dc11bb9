"""``python -m conformance [NAME...]``: the real clients, unchanged, against a live pod.

Builds what each client needs, starts a pod on the tiny model, runs every client's checks, and ends
with a line that counts them.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from typing import Any

from conformance.environments import ROOT, Client, build, clients
from conformance.reference import loglikelihoods
from tests.support.pod import RunningPod, entry_for, run_pod

MODEL = ROOT / "examples/models/tiny"
ADAPTER = "shout"
CLIENT_SECONDS = 600
PREFIX = "CHECK "


class Tally:
    """Counts checks."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0

    def add(self, client: str, check: str, reason: str = "") -> None:
        """Count one check and tell how it ended; a reason is a failure's."""
        self.passed += not reason
        self.failed += bool(reason)
        print(f"{'FAILED' if reason else 'passed'}  {client}: {check}", flush=True)
        for line in reason.splitlines()[-12:]:
            print(f"        {line}", flush=True)


def main() -> int:
    """Run them all, or those named, and return the exit status."""
    known = {client.name: client for client in clients()}
    names = sys.argv[1:] or list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no such client: {', '.join(unknown)}; there are {', '.join(known)}")
        return 2
    tally = Tally()
    commands = {}
    for name in names:
        print(f"environment  {name}", flush=True)
        try:
            commands[name] = build(known[name])
        except (OSError, subprocess.SubprocessError) as error:
            told = getattr(error, "stderr", None) or str(error)
            tally.add(name, "is installed", told)
    asyncio.run(_run_all([known[name] for name in commands], commands, tally))
    print(f"{tally.passed} passed, {tally.failed} failed", flush=True)
    return 1 if tally.failed or not tally.passed else 0


async def _run_all(chosen: list[Client], commands: dict[str, list[str]], tally: Tally) -> None:
    reference = await asyncio.to_thread(loglikelihoods, MODEL)
    async with run_pod(MODEL) as pod:
        entry = entry_for(ADAPTER, ROOT / "examples/adapters" / ADAPTER)
        pod.desire([entry])
        await pod.until_available(entry)
        facts = _facts(pod) | {"reference": reference}
        for client in chosen:
            await _run_client(client, commands[client.name], facts, tally)


def _facts(pod: RunningPod) -> dict[str, Any]:
    """Return what a script is told."""
    return {
        "url": pod.url,
        "grpc": pod.grpc_address,
        "base": "base",
        "adapter": ADAPTER,
        "tokenizer": str(MODEL),
    }


async def _run_client(
    client: Client, command: list[str], facts: dict[str, Any], tally: Tally
) -> None:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy") and not name.startswith("PYTHON")
    }
    environment |= {"CONFORMANCE": json.dumps(facts), "NO_COLOR": "1"}
    begun = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        cwd=client.folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), CLIENT_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
        tally.add(client.name, "ends in time", f"still running after {CLIENT_SECONDS} s")
        return
    results = [
        json.loads(line.removeprefix(PREFIX))
        for line in output.decode(errors="replace").splitlines()
        if line.startswith(PREFIX)
    ]
    for result in results:
        tally.add(client.name, result["check"], result.get("reason", ""))
    if process.returncode or not results:
        told = errors.decode(errors="replace") or "nothing was checked"
        tally.add(client.name, "runs to its end", told)
    print(f"        {client.name} took {time.monotonic() - begun:.1f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
