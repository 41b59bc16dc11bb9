"""Metrics: engine counters across restarts, one series for adapters with requests."""

from dataclasses import dataclass

from graft_protocol.reasons import AdapterState
from graft_runtime.ipc.messages import EngineStats
from graft_runtime.metrics import Metrics


@dataclass(frozen=True)
class Series:
    """Samples of an exposition by their text."""

    text: str

    def value(self, start: str) -> float:
        lines = [line for line in self.text.splitlines() if line.startswith(start)]
        assert len(lines) == 1, lines
        return float(lines[0].rpartition(" ")[2])


def series(metrics: Metrics) -> Series:
    return Series(metrics.expose().decode())


def test_every_family_is_there_before_the_first_request() -> None:
    text = Metrics("base").expose().decode()
    for family in (
        "vllm:num_requests_running gauge",
        "vllm:num_requests_waiting gauge",
        "vllm:kv_cache_usage_perc gauge",
        "vllm:prompt_tokens_total counter",
        "vllm:generation_tokens_total counter",
        "vllm:num_preemptions_total counter",
        "vllm:request_success_total counter",
        "vllm:time_to_first_token_seconds histogram",
        "vllm:inter_token_latency_seconds histogram",
        "vllm:e2e_request_latency_seconds histogram",
        "vllm:lora_requests_info gauge",
        "tgi_request_count untyped",
        "tgi_queue_size gauge",
        "tgi_batch_current_size gauge",
        "graft_adapters gauge",
        "graft_adapter_load_seconds histogram",
        "graft_engine_restarts_total counter",
        "graft_engine_host_seconds histogram",
        "graft_loop_lag_seconds gauge",
    ):
        assert f"# TYPE {family}\n" in text


def test_counters_go_on_when_a_new_engine_counts_from_zero() -> None:
    metrics = Metrics("base")
    for generated in (5, 9, 9, 2, 3):
        metrics.observe_stats(EngineStats(generation_tokens=generated))
    assert series(metrics).value("vllm:generation_tokens_total") == 9 + 3


def test_gauges_follow_the_engine_and_empty_with_it() -> None:
    metrics = Metrics("base")
    stats = EngineStats(running=3, waiting=2, kv_blocks_used=25, kv_blocks_total=100)
    metrics.observe_stats(stats)
    assert series(metrics).value("vllm:num_requests_running") == 3
    assert series(metrics).value("tgi_queue_size") == 2
    assert series(metrics).value("vllm:kv_cache_usage_perc") == 0.25
    metrics.engine_gone()
    assert series(metrics).value("vllm:num_requests_running") == 0
    assert series(metrics).value("vllm:kv_cache_usage_perc") == 0


def test_adapters_with_requests_are_one_series() -> None:
    metrics = Metrics("base")
    metrics.set_max_lora(4)
    requests = metrics.adapter_requests
    for name in ("b", "a", "a"):
        requests.wait(name)
    requests.run("a")
    expected = 'max_lora="4",running_lora_adapters="a",waiting_lora_adapters="a,b"'
    assert series(metrics).value(f"vllm:lora_requests_info{{{expected}}}") > 1.7e9
    requests.leave("a", was_running=True)
    requests.leave("a", was_running=False)
    requests.leave("b", was_running=False)
    expected = 'max_lora="4",running_lora_adapters="",waiting_lora_adapters=""'
    assert series(metrics).value("vllm:lora_requests_info{") > 1.7e9
    assert expected in metrics.expose().decode()


def test_states_left_out_have_no_adapters() -> None:
    metrics = Metrics("base")
    metrics.adapter_states({AdapterState.AVAILABLE: 3})
    metrics.adapter_states({AdapterState.FAILED: 1})
    assert series(metrics).value('graft_adapters{state="Available"}') == 0
    assert series(metrics).value('graft_adapters{state="Failed"}') == 1


def test_the_cache_has_one_layout_whatever_engines_there_were() -> None:
    metrics = Metrics("base")
    metrics.cache_layout(16, 100)
    metrics.cache_layout(32, 50)
    found = [line for line in series(metrics).text.splitlines() if "cache_config_info{" in line]
    assert len(found) == 1
    assert 'block_size="32"' in found[0]
    assert 'num_gpu_blocks="50"' in found[0]
    metrics.observe_stats(EngineStats(kv_blocks_used=3, kv_blocks_total=50))
    assert series(metrics).value("tgi_batch_current_max_tokens") == 96
    assert series(metrics).value("tgi_batch_max_total_tokens") == 1600
    assert series(metrics).value('graft_kv_blocks{state="used"}') == 3
    assert series(metrics).value("vllm:gpu_cache_usage_perc") == 0.06
