"""The Grafana dashboard of the chart: what operator and pods measure, from service to tenant.

`charts.generate` writes it; the chart puts it into a ConfigMap as it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

WIDTH = 24
PANEL_HEIGHT = 8
PODS = 'namespace=~"$namespace"'
MODEL = f'{PODS}, model_name=~"$model"'

Json = dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """One graph: queries with their legends."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    description: str = ""


def _quantile(share: float, metric: str) -> str:
    return (
        f"histogram_quantile({share}, sum by (le, model_name) "
        f"(rate({metric}_bucket{{{MODEL}}}[$__rate_interval])))"
    )


def _rate(metric: str, by: str, labels: str = MODEL) -> str:
    return f"sum by ({by}) (rate({metric}{{{labels}}}[$__rate_interval]))"


SECTIONS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Service",
        (
            Panel(
                "Requests in pods",
                (
                    (f"sum by (pod) (vllm:num_requests_running{{{MODEL}}})", "{{pod}} running"),
                    (f"sum by (pod) (vllm:num_requests_waiting{{{MODEL}}})", "{{pod}} waiting"),
                ),
            ),
            Panel(
                "Tokens",
                (
                    (_rate("vllm:generation_tokens_total", "model_name"), "{{model_name}} out"),
                    (_rate("vllm:prompt_tokens_total", "model_name"), "{{model_name}} in"),
                ),
                "ops",
            ),
            Panel(
                "Time to first token",
                (
                    (_quantile(0.5, "vllm:time_to_first_token_seconds"), "{{model_name}} p50"),
                    (_quantile(0.99, "vllm:time_to_first_token_seconds"), "{{model_name}} p99"),
                ),
                "s",
            ),
            Panel(
                "Between tokens",
                (
                    (_quantile(0.5, "vllm:inter_token_latency_seconds"), "{{model_name}} p50"),
                    (_quantile(0.99, "vllm:inter_token_latency_seconds"), "{{model_name}} p99"),
                ),
                "s",
            ),
            Panel(
                "KV memory used",
                ((f"max by (pod) (vllm:kv_cache_usage_perc{{{MODEL}}})", "{{pod}}"),),
                "percentunit",
            ),
            Panel(
                "Ends, and refusals",
                (
                    (_rate("vllm:request_success_total", "finished_reason"), "{{finished_reason}}"),
                    (_rate("graft_rejected_total", "reason", PODS), "refused: {{reason}}"),
                ),
                "ops",
            ),
        ),
    ),
    (
        "Adapters",
        (
            Panel(
                "Revisions in pods, by state",
                ((f"sum by (state) (graft_adapters{{{PODS}}})", "{{state}}"),),
            ),
            Panel(
                "From learning of a revision to serving it",
                (
                    (
                        (
                            "histogram_quantile(0.99, sum by (le) "
                            f"(rate(graft_adapter_load_seconds_bucket{{{PODS}}}[$__rate_interval])))"
                        ),
                        "p99",
                    ),
                ),
                "s",
            ),
            Panel(
                "From apply to Ready",
                (
                    (
                        (
                            "histogram_quantile(0.5, sum by (le) (rate("
                            "graft_operator_adapter_ready_seconds_bucket[$__rate_interval])))"
                        ),
                        "p50",
                    ),
                    (
                        (
                            "histogram_quantile(0.99, sum by (le) (rate("
                            "graft_operator_adapter_ready_seconds_bucket[$__rate_interval])))"
                        ),
                        "p99",
                    ),
                ),
                "s",
            ),
            Panel(
                "Pods that have not read their set",
                (("graft_operator_pods_out_of_sync", "pods"),),
            ),
        ),
    ),
    (
        "Tenants",
        (
            Panel(
                "Adapters that are Ready",
                (
                    (
                        (
                            "sum by (object_namespace) (graft_operator_objects{"
                            'kind="LoraAdapter", ready="True", object_namespace=~"$namespace"})'
                        ),
                        "{{object_namespace}}",
                    ),
                ),
            ),
            Panel(
                "Adapters that are not, by reason",
                (
                    (
                        (
                            "sum by (object_namespace, reason) (graft_operator_objects{"
                            'kind="LoraAdapter", ready!="True", object_namespace=~"$namespace"})'
                        ),
                        "{{object_namespace}} {{reason}}",
                    ),
                ),
            ),
        ),
    ),
    (
        "Operator",
        (
            Panel(
                "Reconciles",
                (
                    (
                        (
                            "sum by (kind, outcome) "
                            "(rate(graft_operator_reconcile_seconds_count[$__rate_interval]))"
                        ),
                        "{{kind}} {{outcome}}",
                    ),
                ),
                "ops",
            ),
            Panel(
                "Queue",
                (
                    ("graft_operator_queue_depth", "waiting"),
                    ("graft_operator_queue_oldest_seconds", "oldest, seconds"),
                ),
            ),
            Panel(
                "Calls to the API",
                (
                    (
                        (
                            "sum by (verb, code) "
                            "(rate(graft_operator_api_calls_total[$__rate_interval]))"
                        ),
                        "{{verb}} {{code}}",
                    ),
                ),
                "ops",
            ),
        ),
    ),
)


def dashboard_text() -> str:
    """Return the dashboard as Grafana imports it."""
    panels: list[Json] = []
    top = 0
    for title, section in SECTIONS:
        panels.append(_row(title, len(panels) + 1, top))
        top += 1
        for number, panel in enumerate(section):
            column = number % 2
            panels.append(_graph(panel, len(panels) + 1, column * WIDTH // 2, top))
            top += PANEL_HEIGHT if column or number + 1 == len(section) else 0
    document = {
        "title": "Graft",
        "uid": "graft",
        "tags": ["graft", "llm", "lora"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": panels,
    }
    return json.dumps(document, indent=1) + "\n"


def _variables() -> list[Json]:
    source: Json = {
        "name": "datasource",
        "type": "datasource",
        "query": "prometheus",
        "label": "Source",
    }
    queries = {
        "namespace": ("Namespace", "label_values(vllm:num_requests_running, namespace)"),
        "model": (
            "Base model",
            f"label_values(vllm:num_requests_running{{{PODS}}}, model_name)",
        ),
    }
    return [
        source,
        *(
            {
                "name": name,
                "label": label,
                "type": "query",
                "datasource": {"type": "prometheus", "uid": "${datasource}"},
                "query": {"query": query, "refId": name},
                "refresh": 2,
                "includeAll": True,
                "multi": True,
                "allValue": ".*",
                "current": {"text": "All", "value": "$__all"},
            }
            for name, (label, query) in queries.items()
        ),
    ]


def _row(title: str, number: int, top: int) -> Json:
    place = {"x": 0, "y": top, "w": WIDTH, "h": 1}
    return {"id": number, "type": "row", "title": title, "gridPos": place, "panels": []}


def _graph(panel: Panel, number: int, left: int, top: int) -> Json:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": source,
        "gridPos": {"x": left, "y": top, "w": WIDTH // 2, "h": PANEL_HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": source, "expr": query}
            | {"legendFormat": legend}
            for index, (query, legend) in enumerate(panel.queries)
        ],
    }
