"""Families that the client library's own types cannot express."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Iterable
from typing import Literal, get_args

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

TgiFailure = Literal["overloaded", "validation", "template", "incomplete", "dropped", "generation"]
"""Some of these happen to others only; dashboards look for them all the same."""


class AdapterRequests(Collector):
    """``vllm:lora_requests_info``: exactly one series, for the state of this moment.

    A plain gauge would leave one series behind for every combination of names there ever was.
    """

    def __init__(self) -> None:
        self.max_lora = 0
        """How many adapters the device can hold at once."""
        self._waiting: Tally[str] = Tally()
        self._running: Tally[str] = Tally()

    def wait(self, name: str) -> None:
        """Count a request for an adapter that has no output yet."""
        self._waiting[name] += 1

    def run(self, name: str) -> None:
        """Move a waiting request to the running ones."""
        _count_down(self._waiting, name)
        self._running[name] += 1

    def leave(self, name: str, *, was_running: bool) -> None:
        """Forget a request that has ended."""
        _count_down(self._running if was_running else self._waiting, name)

    def collect(self) -> Iterable[Metric]:
        """Return the one series; its value is the time, by which readers find the newest."""
        family = Metric("vllm:lora_requests_info", "Adapters with requests.", "gauge")
        labels = {
            "max_lora": str(self.max_lora),
            "running_lora_adapters": ",".join(sorted(self._running)),
            "waiting_lora_adapters": ",".join(sorted(self._waiting)),
        }
        family.add_sample(family.name, labels, time.time())
        return [family]


def _count_down(tally: Tally[str], name: str) -> None:
    tally[name] -= 1
    if tally[name] <= 0:
        del tally[name]


class TgiRequests(Collector):
    """TGI's request counters, whose names lack the suffix that the client library would add."""

    def __init__(self) -> None:
        self.count = 0
        self.success = 0
        self.failures: Tally[TgiFailure] = Tally()

    def collect(self) -> Iterable[Metric]:
        """Return the counters as untyped families."""
        count = Metric("tgi_request_count", "Generation requests.", "unknown")
        count.add_sample(count.name, {}, self.count)
        success = Metric("tgi_request_success", "Requests that ended well.", "unknown")
        success.add_sample(success.name, {}, self.success)
        failure = Metric("tgi_request_failure", "Requests that failed, by cause.", "unknown")
        for cause in get_args(TgiFailure):
            failure.add_sample(failure.name, {"err": cause}, self.failures[cause])
        return [count, success, failure]
