"""Metrics: engine counters across restarts, one series for adapters with requests."""

import re
from dataclasses import dataclass

import pytest

from graft_protocol.reasons import AdapterState
from graft_runtime.ipc.messages import EngineStats, StepFacts
from graft_runtime.metrics import Metrics
from graft_runtime.metrics.requests import Course


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
    metrics.cache_layout(16, 100, 400)
    metrics.cache_layout(32, 50, 400)
    found = [line for line in series(metrics).text.splitlines() if "cache_config_info{" in line]
    assert len(found) == 1
    assert 'block_size="32"' in found[0]
    assert 'num_gpu_blocks="50"' in found[0]
    metrics.observe_stats(EngineStats(kv_blocks_used=3, kv_blocks_total=50))
    assert series(metrics).value("tgi_batch_current_max_tokens") == 96
    assert series(metrics).value("tgi_batch_max_total_tokens") == 1600
    assert series(metrics).value('graft_kv_blocks{state="used"}') == 3
    assert series(metrics).value("vllm:gpu_cache_usage_perc") == 0.06


def test_a_step_is_counted_by_what_it_computed() -> None:
    metrics = Metrics("base")
    metrics.steps.observe(StepFacts(12, 1, seconds=0.5, host_seconds=0.1))
    metrics.steps.observe(StepFacts(0, 4, seconds=0.25, host_seconds=0.05))
    metrics.steps.observe(StepFacts(0, 4, failed=True))
    metrics.steps.begun(3)
    found = series(metrics)
    assert found.value("vllm:iteration_tokens_total_sum") == 17
    assert found.value("vllm:iteration_tokens_total_count") == 2
    assert found.value('tgi_batch_inference_count{method="prefill"}') == 1
    assert found.value('tgi_batch_inference_count{method="decode"}') == 2
    assert found.value('tgi_batch_inference_success{method="decode"}') == 1
    assert found.value('tgi_batch_inference_failure{method="decode"}') == 1
    assert found.value('tgi_batch_inference_duration_sum{method="prefill"}') == 0.5
    assert found.value('tgi_batch_forward_duration_sum{method="prefill"}') == 0.4
    assert found.value('tgi_batch_decode_duration_sum{method="decode"}') == 0.05
    assert found.value("tgi_batch_next_size_sum") == 3


def test_who_waits_for_an_adapter_is_told_apart() -> None:
    metrics = Metrics("base")
    metrics.observe_stats(EngineStats(waiting=5, deferred=2))
    start = 'vllm:num_requests_waiting_by_reason{engine="0",model_name="base",reason='
    found = series(metrics)
    assert found.value(f'{start}"capacity"') == 3
    assert found.value(f'{start}"deferred"') == 2
    metrics.engine_gone()
    assert series(metrics).value(f'{start}"deferred"') == 0


PEERS = """
vllm:num_requests_running gauge
vllm:num_requests_waiting gauge
vllm:num_requests_waiting_by_reason gauge
vllm:kv_cache_usage_perc gauge
vllm:gpu_cache_usage_perc gauge
vllm:cache_config_info gauge
vllm:lora_requests_info gauge
vllm:engine_sleep_state gauge
vllm:prefix_cache_queries_total counter
vllm:prefix_cache_hits_total counter
vllm:num_preemptions_total counter
vllm:prompt_tokens_total counter
vllm:generation_tokens_total counter
vllm:request_success_total counter
vllm:time_to_first_token_seconds histogram
vllm:inter_token_latency_seconds histogram
vllm:time_per_output_token_seconds histogram
vllm:request_time_per_output_token_seconds histogram
vllm:e2e_request_latency_seconds histogram
vllm:request_queue_time_seconds histogram
vllm:request_inference_time_seconds histogram
vllm:request_prefill_time_seconds histogram
vllm:request_decode_time_seconds histogram
vllm:request_prompt_tokens histogram
vllm:request_generation_tokens histogram
vllm:request_max_num_generation_tokens histogram
vllm:request_params_n histogram
vllm:request_params_max_tokens histogram
vllm:request_num_preemptions histogram
vllm:iteration_tokens_total histogram
http_requests_total counter
http_request_duration_seconds histogram
http_request_duration_highr_seconds histogram
http_request_size_bytes summary
http_response_size_bytes summary
tgi_request_count untyped
tgi_request_success untyped
tgi_request_failure untyped
tgi_batch_inference_count untyped
tgi_batch_inference_success untyped
tgi_batch_inference_failure untyped
tgi_batch_concat untyped
tgi_batch_current_size gauge
tgi_batch_current_max_tokens gauge
tgi_batch_max_total_tokens gauge
tgi_queue_size gauge
tgi_request_duration histogram
tgi_request_validation_duration histogram
tgi_request_queue_duration histogram
tgi_request_inference_duration histogram
tgi_request_mean_time_per_token_duration histogram
tgi_request_input_length histogram
tgi_request_generated_tokens histogram
tgi_request_max_new_tokens histogram
tgi_batch_inference_duration histogram
tgi_batch_forward_duration histogram
tgi_batch_decode_duration histogram
tgi_batch_filter_duration histogram
tgi_batch_concat_duration histogram
tgi_batch_next_size histogram
tgi_request_skipped_tokens summary
"""
"""Families of vLLM and of TGI, as their dashboards know them."""


@pytest.mark.parametrize("family", PEERS.split("\n")[1:-1])
def test_a_family_of_a_peer_is_there_under_its_name_and_type(family: str) -> None:
    assert f"# TYPE {family}\n" in Metrics("base").expose().decode()


def bounds(text: str, family: str) -> list[float]:
    lines = [line for line in text.splitlines() if line.startswith(f"{family}_bucket")]
    found = [re.search(r'le="([^"]+)"', line) for line in lines]
    values = [float(each[1]) for each in found if each]
    return sorted(set(values))[:-1]


def test_buckets_are_those_of_the_peers() -> None:
    metrics = Metrics("base")
    metrics.cache_layout(16, 100, 400)
    text = metrics.expose().decode()
    assert bounds(text, "vllm:iteration_tokens_total")[:3] == [1, 8, 16]
    assert bounds(text, "vllm:iteration_tokens_total")[-1] == 16384
    assert bounds(text, "vllm:request_params_n") == [1, 2, 5, 10, 20]
    assert bounds(text, "vllm:time_to_first_token_seconds")[-1] == 2560
    assert bounds(text, "tgi_batch_next_size") == list(range(1, 1025))
    for family in ("input_length", "generated_tokens", "max_new_tokens"):
        assert bounds(text, f"tgi_request_{family}") == [4 * step for step in range(1, 101)]
    durations = bounds(text, "tgi_batch_inference_duration")
    assert (len(durations), durations[0]) == (35, 0.00015)
    assert durations[1] == pytest.approx(0.000225)
    assert bounds(text, "http_request_duration_highr_seconds")[:3] == [0.01, 0.025, 0.05]


def test_the_longest_sequence_is_known_once_and_for_all_engines() -> None:
    metrics = Metrics("base")
    metrics.cache_layout(16, 100, 400)
    metrics.finished("stop", "base", Course(total=1.0, num_prompt=7))
    metrics.cache_layout(16, 100, 400)
    assert series(metrics).value("tgi_request_input_length_sum") == 7
