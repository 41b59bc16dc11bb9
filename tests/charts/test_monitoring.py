"""Dashboard and alerts ask for what operator and pods really measure."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from charts.generate import CHART
from graft_operator.metrics import OperatorMetrics
from graft_protocol.reasons import Reason
from graft_runtime.metrics import Metrics
from tests.support.helm import needs_helm, of_kind, template
from tests.support.source_tree import ROOT

ALERTS = yaml.safe_load((ROOT / CHART / "alerts/graft.yaml").read_text())
DASHBOARD = json.loads((ROOT / CHART / "dashboards/graft.json").read_text())
ON = (
    "metrics.serviceMonitor.enabled=true",
    "metrics.prometheusRule.enabled=true",
    "metrics.dashboard.enabled=true",
    "networkPolicy.enabled=true",
)
NAME = re.compile(r"\b(?:vllm:|graft_|tgi_)[a-z0-9_]+")


def measured() -> set[str]:
    """Return every name under which something is shown."""
    operator = OperatorMetrics()
    operator.watch_objects(
        lambda: [{"kind": "LoraAdapter", "metadata": {"namespace": "a"}, "status": {}}]
    )
    for name in ("queue_depth", "queue_oldest_seconds", "pods", "pods_out_of_sync"):
        operator.watch_gauge(name, name, lambda: 0.0)
    operator.count_api_call("get", "Pod", 200)
    operator.count_repair("Pod")
    operator.observe_reconcile("Pod", "ok", 1.0)
    operator.ready_timer.report(1.0)
    runtime = Metrics("tiny")
    runtime.rejected("overloaded")
    return {*_names(operator.registry), *_names(runtime.registry)}


def _names(registry: CollectorRegistry) -> Iterator[str]:
    for line in generate_latest(registry).decode().splitlines():
        if not line.startswith("#"):
            yield re.split(r"[{ ]", line)[0]
        elif line.startswith("# TYPE") and line.endswith("counter"):
            yield line.split()[2]


def expressions() -> list[str]:
    panels = [
        target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])
    ]
    return [*panels, *(alert["expr"] for alert in ALERTS)]


@pytest.mark.parametrize("expression", expressions())
def test_every_expression_is_about_something_that_is_measured(expression: str) -> None:
    asked = set(NAME.findall(expression))
    assert asked
    assert asked <= measured()


def test_every_alert_tells_what_to_do_and_how_bad_it_is() -> None:
    names = [alert["alert"] for alert in ALERTS]
    assert len(set(names)) == len(names)
    for alert in ALERTS:
        assert alert["labels"]["severity"] in {"critical", "warning", "info"}
        assert alert["annotations"]["summary"].endswith(".")
        assert alert["annotations"]["description"]


def test_reasons_that_an_alert_passes_over_exist() -> None:
    found = re.findall(r'reason!~"([^"]+)"', " ".join(expressions()))
    assert {reason for group in found for reason in group.split("|")} <= set(Reason)


def test_the_dashboard_has_a_section_for_each_reader_and_no_panel_over_another() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Service", "Adapters", "Tenants", "Operator"]
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells
        cells |= own


@needs_helm
def test_what_watches_is_made_on_request_and_reads_the_files_as_they_are() -> None:
    kinds = {"ServiceMonitor", "PrometheusRule", "NetworkPolicy"}
    assert not [m for m in template() if m["kind"] in kinds]
    manifests = template(*ON)
    [rule] = of_kind(manifests, "PrometheusRule")
    assert rule["spec"]["groups"][0]["rules"] == ALERTS
    [board] = [m for m in of_kind(manifests, "ConfigMap") if "graft.json" in m["data"]]
    assert json.loads(board["data"]["graft.json"]) == DASHBOARD
    [monitor] = of_kind(manifests, "ServiceMonitor")
    [service] = of_kind(manifests, "Service")
    wanted: dict[str, Any] = monitor["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
