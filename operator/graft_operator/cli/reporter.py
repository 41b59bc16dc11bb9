"""Tells a person what happens, as it happens: one line per turn of events.

Fed with the same changes and reports as the control loop; it decides nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from graft_operator.cluster.base import Change
from graft_operator.cluster.manifests import Problem
from graft_operator.cluster.state import FOLDER
from graft_operator.cluster.store import ObjectStore
from graft_operator.constants import DEFAULT_NAMESPACE, KIND_ADAPTER, KIND_SERVICE
from graft_operator.reconcile.pods import ReportChange
from graft_operator.resources.meta import Manifest, ObjectKey, key_of
from graft_protocol.reasons import REASONS, AdapterState, Reason
from graft_protocol.revisions import parse_revision
from graft_protocol.status import ProgressReport, RevisionReport, RuntimeStatus

SHORT_KINDS = {KIND_SERVICE: "gis", KIND_ADAPTER: "lora"}
PERCENT_STEP = 10
_ON_ITS_WAY = (AdapterState.DOWNLOADING, AdapterState.LOADING)


class Say(Protocol):
    """Prints a line."""

    def __call__(self, line: str, *, bad: bool = False, good: bool = False) -> None:
        """Print it in the colour of bad or good news."""


def short_name(key: ObjectKey) -> str:
    """Return a name such as ``lora/shout``, with the namespace where it is not the default one."""
    place = "" if key.namespace == DEFAULT_NAMESPACE else f"{key.namespace}/"
    return f"{SHORT_KINDS.get(key.kind, key.kind.lower())}/{place}{key.name}"


def size(num_bytes: float) -> str:
    """Return a size for people."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"


def condition(manifest: Manifest, type_: str) -> dict[str, Any]:
    """Return one condition of a manifest; empty if it was never set."""
    conditions = (manifest.get("status") or {}).get("conditions") or []
    return next((item for item in conditions if item["type"] == type_), {})


class Reporter:
    """Remembers what it said last of each thing, and says only what is new."""

    def __init__(self, folder: Path, say: Say) -> None:
        self.all_ready = asyncio.Event()
        self._folder = folder
        self._say = say
        self._said: dict[tuple[ObjectKey, str], object] = {}
        self._since: dict[ObjectKey, tuple[int, float]] = {}
        self._ready: dict[ObjectKey, bool] = {}
        self._problems: tuple[Problem, ...] = ()

    def greet(self, num_services: int) -> None:
        """Say what is going on."""
        logs = self._folder / FOLDER / "pods"
        self._say(f"graft is up in {self._folder}; logs are in {logs}/*/log")
        if not num_services:
            self._say("no InferenceService in the folder yet; waiting for manifests")

    def on_problems(self, problems: tuple[Problem, ...]) -> None:
        """Say what is wrong with manifests, and when nothing is any more."""
        for problem in problems:
            if problem not in self._problems:
                self._say(f"! {problem.where}: {problem.message}", bad=True)
        for problem in self._problems:
            if problem.where not in {item.where for item in problems}:
                self._say(f"{problem.where}: mended", good=True)
        self._problems = problems

    def on_change(self, change: Change) -> None:
        """Say what became of an object."""
        key = key_of(change.manifest)
        if key.kind == "Pod":
            self._on_pod(key, change.manifest)
        if key.kind not in SHORT_KINDS:
            return
        if change.type == "DELETED":
            self._ready.pop(key, None)
            self._say(f"{short_name(key)}: removed")
        elif key.kind == KIND_SERVICE:
            self._on_service(key, change.manifest)
        else:
            self._on_adapter(key, change.manifest)
        self._update_all_ready()

    def on_report(self, change: ReportChange) -> None:
        """Say how far a pod has come."""
        if change.now is None:
            return
        progress = change.now.progress
        if progress is not None and not change.now.ready:
            self._on_progress(change.pod, progress)
        if change.before is not None:
            self._on_restarts(change.pod, change.before, change.now)
        for report in change.now.revisions:
            self._on_revision(report)

    def unready(self, store: ObjectStore) -> Iterable[str]:
        """Return a line for each object that is not Ready."""
        for key, is_ready in self._ready.items():
            manifest = store.get(key)
            if is_ready or manifest is None:
                continue
            ready = condition(manifest, "Ready")
            reason, message = ready.get("reason", "Pending"), ready.get("message", "")
            yield f"{short_name(key)}: not Ready: {reason}: {message}".rstrip(": ")
        for problem in self._problems:
            yield f"! {problem.where}: {problem.message}"

    def _is_new(self, key: ObjectKey, topic: str, value: object) -> bool:
        if self._said.get((key, topic)) == value:
            return False
        self._said[key, topic] = value
        return True

    def _update_all_ready(self) -> None:
        if self._ready and all(self._ready.values()) and not self._problems:
            if not self.all_ready.is_set():
                self._say("everything is Ready", good=True)
            self.all_ready.set()
        else:
            self.all_ready.clear()

    def _on_pod(self, key: ObjectKey, pod: Manifest) -> None:
        statuses = (pod.get("status") or {}).get("containerStatuses") or []
        for status in statuses:
            waiting = status["state"].get("waiting") or {}
            count = status["restartCount"]
            if waiting and self._is_new(key, "trouble", (count, waiting["message"])):
                self._say(f"pod/{key.name}: {waiting['message']}", bad=True)

    def _on_service(self, key: ObjectKey, service: Manifest) -> None:
        ready = condition(service, "Ready")
        self._ready[key] = ready.get("status") == "True"
        accepted = condition(service, "Accepted")
        turn = (ready.get("status"), ready.get("reason"), accepted.get("status"))
        if not ready or not self._is_new(key, "turn", turn):
            return
        status = service["status"]
        if self._ready[key]:
            pods = f"{status.get('readyReplicas', 0)} of {service['spec'].get('replicas', 1)} pods"
            self._say(f"{short_name(key)}: Ready at {status.get('url', '')} ({pods})", good=True)
            if accepted.get("status") == "False":
                # What serves hides that a part of the spec does not work.
                text = f"{accepted['reason']}: {accepted.get('message', '')}"
                self._say(f"{short_name(key)}: {text}", bad=True)
        else:
            is_bad = REASONS[Reason(ready["reason"])].retry != "none"
            text = f"{ready['reason']}: {ready.get('message', '')}"
            self._say(f"{short_name(key)}: {text}", bad=is_bad)

    def _on_adapter(self, key: ObjectKey, adapter: Manifest) -> None:
        generation = adapter["metadata"]["generation"]
        if self._since.get(key, (0, 0.0))[0] != generation:
            self._since[key] = (generation, time.monotonic())
        ready, loaded = condition(adapter, "Ready"), condition(adapter, "Loaded")
        is_current = ready.get("observedGeneration") == generation
        done = ready.get("status") == loaded.get("status") == "True"
        self._ready[key] = done and is_current
        if not ready or not is_current:
            return
        current = adapter["status"].get("currentRevision") or {}
        turn = (ready["status"], loaded["reason"], current.get("id") if done else None)
        if not self._is_new(key, "turn", turn):
            return
        if done:
            self._say(self._available(key, adapter, current), good=True)
        elif REASONS[Reason(loaded["reason"])].retry != "none":
            rest = " (the version before goes on serving)" if ready["status"] == "True" else ""
            message = loaded.get("message") or ready.get("message", "")
            self._say(f"{short_name(key)}: {loaded['reason']}: {message}{rest}", bad=True)

    def _available(self, key: ObjectKey, adapter: Manifest, current: dict[str, Any]) -> str:
        seconds = time.monotonic() - self._since[key][1]
        facts = [parse_revision(current["id"]).version]
        if current.get("rank") is not None:
            facts.append(f"rank {current['rank']}")
        if current.get("bytes") is not None:
            facts.append(size(current["bytes"]))
        served = adapter["status"]["servedName"]
        return f"{short_name(key)}: Available as {served} ({', '.join(facts)}; {seconds:.1f} s)"

    def _on_progress(self, pod: ObjectKey, progress: ProgressReport) -> None:
        percent = (
            100 * progress.done_bytes // progress.total_bytes if progress.total_bytes else None
        )
        step = None if percent is None else percent // PERCENT_STEP
        if not self._is_new(pod, "progress", (progress.phase, step)):
            return
        share = ""
        if percent is not None:
            share = f" {percent} % ({size(progress.done_bytes)} of {size(progress.total_bytes)})"
        self._say(f"pod/{pod.name}: {progress.phase}{share}")

    def _on_restarts(self, pod: ObjectKey, before: RuntimeStatus, now: RuntimeStatus) -> None:
        for part in ("engine", "loader"):
            count = getattr(now, f"{part}_restarts")
            if count > getattr(before, f"{part}_restarts"):
                self._say(f"pod/{pod.name}: its {part} died and was started again", bad=True)

    def _on_revision(self, report: RevisionReport) -> None:
        if report.state not in _ON_ITS_WAY and not report.warning:
            return
        name = parse_revision(report.revision)
        key = ObjectKey(KIND_ADAPTER, name.namespace, name.name)
        if report.warning and self._is_new(key, f"warning {name.version}", report.warning):
            self._say(f"{short_name(key)}: warning: {report.warning}")
        if report.state not in _ON_ITS_WAY:
            return
        if self._is_new(key, f"state {name.version}", report.state):
            version = "" if name.is_pending else f" {name.version}"
            self._say(f"{short_name(key)}: {report.state}{version}")
