"""The operator's own metrics, as one object that is made at the door and handed on.

Knows nothing of what it counts but names and numbers.
"""

from __future__ import annotations

import time
from collections import Counter as TallyCounter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

NAMESPACE = "graft_operator"
RECONCILE_BUCKETS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
READY_BUCKETS = (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60, 300, 1800)


class OperatorMetrics:
    """All instruments, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._api_calls = self._counter(
            "api_calls", "Requests to the Kubernetes API; code 0 is no answer", "verb kind code"
        )
        self._watch_events = self._counter("watch_events", "Events that watches delivered", "kind")
        self._last_event = Gauge(
            "watch_last_event_timestamp_seconds",
            "When a watch last delivered something",
            ["kind"],
            namespace=NAMESPACE,
            registry=self.registry,
        )
        self._repairs = self._counter(
            "audit_repairs", "Changes that a list showed before the watch did", "kind"
        )
        self._failed_lists = self._counter("audit_failures", "Lists that failed", "kind")
        self._reconciles = Histogram(
            "reconcile_seconds",
            "Time to reconcile one object",
            ["kind", "outcome"],
            namespace=NAMESPACE,
            registry=self.registry,
            buckets=RECONCILE_BUCKETS,
        )
        self._ready = Histogram(
            "adapter_ready_seconds",
            "From first sight of a LoraAdapter's generation until it is Ready",
            namespace=NAMESPACE,
            registry=self.registry,
            buckets=READY_BUCKETS,
        )
        self.ready_timer = ReadyTimer(self._ready.observe)

    def count_api_call(self, verb: str, kind: str, code: int) -> None:
        """Count a request."""
        self._api_calls.labels(verb, kind, str(code)).inc()

    def count_watch_event(self, kind: str) -> None:
        """Count an event."""
        self._watch_events.labels(kind).inc()
        self._last_event.labels(kind).set_to_current_time()

    def count_repair(self, kind: str) -> None:
        """Count a change that the watch had not delivered."""
        self._repairs.labels(kind).inc()

    def count_failed_list(self, kind: str) -> None:
        """Count a list that could not be completed."""
        self._failed_lists.labels(kind).inc()

    def observe_reconcile(self, kind: str, outcome: str, seconds: float) -> None:
        """Note how a reconcile ended and how long it took."""
        self._reconciles.labels(kind, outcome).observe(seconds)

    def watch_gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Show a number that is read when somebody asks."""
        Gauge(name, text, namespace=NAMESPACE, registry=self.registry).set_function(read)

    def watch_objects(self, read: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        """Show how many of our objects are Ready and how many not, when somebody asks."""
        self.registry.register(ObjectsCollector(read))

    def _counter(self, name: str, text: str, labels: str) -> Counter:
        return Counter(name, text, labels.split(), namespace=NAMESPACE, registry=self.registry)


@dataclass(frozen=True)
class ObjectsCollector(Collector):
    """Counts objects by kind, namespace and what their condition Ready says."""

    read: Callable[[], Iterable[Mapping[str, Any]]]
    """Returns all of them, as stored."""

    def collect(self) -> Iterator[Metric]:
        """Count."""
        counts: TallyCounter[tuple[str, ...]] = TallyCounter()
        for manifest in self.read():
            conditions = (manifest.get("status") or {}).get("conditions") or []
            ready: Mapping[str, Any] = next(
                (item for item in conditions if item["type"] == "Ready"), {}
            )
            namespace = str(manifest["metadata"].get("namespace", ""))
            status, reason = ready.get("status", "Unknown"), ready.get("reason", "")
            counts[str(manifest["kind"]), namespace, str(status), str(reason)] += 1
        labels = ["kind", "object_namespace", "ready", "reason"]
        name, text = f"{NAMESPACE}_objects", "InferenceServices and LoraAdapters"
        family = GaugeMetricFamily(name, text, labels=labels)
        for values, count in sorted(counts.items()):
            family.add_metric(values, count)
        yield family


@dataclass
class ReadyTimer:
    """Measures how long each generation of an adapter takes to become Ready."""

    report: Callable[[float], None]
    clock: Callable[[], float] = time.monotonic
    _started: dict[str, tuple[int, float | None]] = field(default_factory=dict)

    def see(self, adapter: Mapping[str, Any]) -> None:
        """Look at a LoraAdapter as it is now."""
        uid = str(adapter["metadata"].get("uid", ""))
        generation = int(adapter["metadata"].get("generation", 0))
        known, started = self._started.get(uid, (-1, None))
        if known != generation:
            # One that is Ready at first sight became so before this process could measure it.
            started = None if _is_ready(adapter, generation) else self.clock()
            self._started[uid] = (generation, started)
        elif started is not None and _is_ready(adapter, generation):
            self.report(self.clock() - started)
            self._started[uid] = (generation, None)

    def forget(self, adapter: Mapping[str, Any]) -> None:
        """Drop an adapter that is gone."""
        self._started.pop(str(adapter["metadata"].get("uid", "")), None)


def _is_ready(adapter: Mapping[str, Any], generation: int) -> bool:
    status = adapter.get("status") or {}
    if status.get("observedGeneration") != generation or status.get("candidateRevision"):
        return False
    conditions = status.get("conditions") or []
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)
