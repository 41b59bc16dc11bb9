"""Probes say what the checks say, by name, and metrics are in Prometheus' format."""

from __future__ import annotations

import httpx

from graft_operator.health import HealthServer
from graft_operator.metrics import OperatorMetrics


async def test_probes_name_what_is_wrong() -> None:
    problems = {"queue": "", "audit": ""}
    metrics = OperatorMetrics()
    metrics.count_api_call("apply", "ConfigMap", 200)
    live = {"queue": lambda: problems["queue"], "audit": lambda: problems["audit"]}
    health = HealthServer(
        "127.0.0.1", 0, live=live, ready={"start": lambda: "not yet"}, metrics=metrics
    )
    async with health, httpx.AsyncClient(trust_env=False) as http:
        url = f"http://127.0.0.1:{health.port}"
        assert (await http.get(f"{url}/livez")).status_code == 200
        problems["audit"] = "has not moved for 301 s"
        answer = await http.get(f"{url}/livez")
        assert (answer.status_code, answer.text) == (503, "audit: has not moved for 301 s\n")
        assert (await http.get(f"{url}/readyz")).text == "start: not yet\n"
        page = await http.get(f"{url}/metrics")
        assert page.headers["content-type"].startswith("text/plain")
        line = 'graft_operator_api_calls_total{code="200",kind="ConfigMap",verb="apply"} 1.0'
        assert line in page.text
