"""The operator's metrics: the time from a change of an adapter until it is Ready."""

from __future__ import annotations

from typing import Any

from graft_operator.metrics import OperatorMetrics, ReadyTimer


def lora(generation: int, *, ready: bool, seen: int | None = None, **status: Any) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": str(ready)}]
    observed = generation if seen is None else seen
    return {
        "metadata": {"uid": "u", "generation": generation},
        "status": {"observedGeneration": observed, "conditions": conditions, **status},
    }


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_each_generation_is_timed_once_from_first_sight_to_ready() -> None:
    told: list[float] = []
    clock = Clock()
    timer = ReadyTimer(told.append, clock)
    timer.see(lora(1, ready=False))
    clock.now += 2
    timer.see(lora(1, ready=True, candidateRevision={"id": "x"}))
    clock.now += 1
    timer.see(lora(1, ready=True))
    timer.see(lora(1, ready=True))
    clock.now += 1
    timer.see(lora(2, ready=True, seen=1))
    clock.now += 5
    timer.see(lora(2, ready=True))
    assert told == [3.0, 5.0]


def test_what_was_ready_before_is_not_timed() -> None:
    told: list[float] = []
    timer = ReadyTimer(told.append, Clock())
    timer.see(lora(1, ready=True))
    timer.see(lora(1, ready=False))
    timer.see(lora(1, ready=True))
    assert told == []


def test_an_adapter_that_goes_is_forgotten() -> None:
    timer = ReadyTimer(lambda _: None, Clock())
    timer.see(lora(1, ready=False))
    timer.forget(lora(1, ready=False))
    assert not timer._started


def test_two_operators_do_not_share_metrics() -> None:
    first, second = OperatorMetrics(), OperatorMetrics()
    first.count_watch_event("Pod")
    sample = "graft_operator_watch_events_total"
    assert first.registry.get_sample_value(sample, {"kind": "Pod"}) == 1
    assert second.registry.get_sample_value(sample, {"kind": "Pod"}) is None


def test_objects_are_counted_by_namespace_and_what_ready_says() -> None:
    def adapter(namespace: str, *conditions: dict[str, str]) -> dict[str, Any]:
        metadata = {"name": "a", "namespace": namespace}
        return {
            "kind": "LoraAdapter",
            "metadata": metadata,
            "status": {"conditions": list(conditions)},
        }

    ready = {"type": "Ready", "status": "True", "reason": "Available"}
    failed = {"type": "Ready", "status": "False", "reason": "TooLarge"}
    metrics = OperatorMetrics()
    metrics.watch_objects(
        lambda: [adapter("a", ready), adapter("a", ready), adapter("a", failed), adapter("b")]
    )

    def count(namespace: str, status: str, reason: str) -> float | None:
        labels = {"kind": "LoraAdapter", "object_namespace": namespace}
        return metrics.registry.get_sample_value(
            "graft_operator_objects", {**labels, "ready": status, "reason": reason}
        )

    assert count("a", "True", "Available") == 2
    assert count("a", "False", "TooLarge") == 1
    assert count("b", "Unknown", "") == 1
