"""A vLLM server's metrics page: what is read of it, of this version and of older ones."""

from __future__ import annotations

import time

import pytest

from backends.vllm_metrics import Cache, read_cache, read_metrics

PAGE = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="Qwen/Qwen2.5-Coder-7B-Instruct"} 3.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="Qwen/Qwen2.5-Coder-7B-Instruct"} 2.0
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="Qwen/Qwen2.5-Coder-7B-Instruct",reason="capacity"} 7.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="Qwen/Qwen2.5-Coder-7B-Instruct"} 0.31415926
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="Qwen/Qwen2.5-Coder-7B-Instruct"} 1.2345e+06
vllm:prefix_cache_queries_created{engine="0",model_name="Qwen/Qwen2.5-Coder-7B-Instruct"} 1.7634e+09
vllm:prefix_cache_hits_total{engine="0",model_name="Qwen/Qwen2.5-Coder-7B-Instruct"} 800000.0
vllm:external_prefix_cache_hits_total{engine="0",model_name="Qwen/Qwen2.5-Coder-7B-Instruct"} 9.0
vllm:num_preemptions_total{engine="0",model_name="Qwen/Qwen2.5-Coder-7B-Instruct"} 4.0
vllm:prompt_tokens_total{engine="0",model_name="Qwen/Qwen2.5-Coder-7B-Instruct"} 1.3e+06
vllm:prompt_tokens_cached_total{engine="0",model_name="Qwen/Qwen2.5-Coder-7B-Instruct"} 5.0
vllm:generation_tokens_total{engine="0",model_name="Qwen/Qwen2.5-Coder-7B-Instruct"} 65536.0
vllm:request_prompt_tokens_sum{engine="0",model_name="Qwen/Qwen2.5-Coder-7B-Instruct"} 1.3e+06
vllm:cache_config_info{block_size="16",enable_prefix_caching="True",num_gpu_blocks="2048"} 1.0
process_resident_memory_bytes 1.5e+09
"""


def test_the_metrics_of_a_vllm_server_are_read_by_name() -> None:
    report = read_metrics(PAGE)
    assert (report.running, report.waiting, report.kv_use, report.asleep) == (3, 2, 0.31415926, False)
    assert report.counters == {
        "prompt_tokens": 1.3e6,
        "generation_tokens": 65536.0,
        "prefix_queries": 1234500.0,
        "prefix_hits": 800000.0,
        "preemptions": 4.0,
    }


def test_the_models_of_one_server_are_added_up_and_the_fullest_of_its_memories_is_told() -> None:
    lines = 'vllm:num_requests_running{engine="%d"} 2.0\nvllm:kv_cache_usage_perc{engine="%d"} 0.%d\n'
    report = read_metrics("".join(lines % (one, one, one) for one in (3, 7, 5)).encode())
    assert (report.running, report.kv_use, report.counters) == (6, 0.7, {})


def test_memory_is_never_more_than_full() -> None:
    assert read_metrics(b"vllm:kv_cache_usage_perc 1.7\n").kv_use == 1.0


def test_names_of_older_versions_count_where_the_new_ones_are_not_there() -> None:
    old = (
        b"vllm:gpu_cache_usage_perc 0.5\n"
        b"vllm:gpu_prefix_cache_queries_total 100.0\nvllm:gpu_prefix_cache_hits_total 30.0\n"
    )
    new = b"vllm:kv_cache_usage_perc 0.4\nvllm:prefix_cache_queries_total 90.0\nvllm:prefix_cache_hits_total 20.0\n"
    report = read_metrics(old)
    assert (report.kv_use, report.counters) == (0.5, {"prefix_queries": 100.0, "prefix_hits": 30.0})
    for both in (old + new, new + old):
        report = read_metrics(both)
        assert (report.kv_use, report.counters) == (0.4, {"prefix_queries": 90.0, "prefix_hits": 20.0})


@pytest.mark.parametrize("value", ["NaN", "+Inf", "1e999", "nonsense", "-", "1.2.3"])
def test_what_is_no_number_is_passed_over(value: str) -> None:
    report = read_metrics(f"vllm:num_requests_running {value}\nvllm:num_requests_waiting 1\n".encode())
    assert (report.running, report.waiting) == (0, 1)


@pytest.mark.parametrize("name", ["a}b", 'a\\"} 9 b', "\xff"])
def test_a_models_name_may_hold_anything(name: str) -> None:
    report = read_metrics(f'vllm:num_requests_running{{model_name="{name}"}} 4\n'.encode("latin-1"))
    assert report.running == 4


def sleep_state(awake: int) -> bytes:
    states = {"awake": awake, "weights_offloaded": 1 - awake, "discard_all": 0}
    line = 'vllm:engine_sleep_state{engine="0",model_name="m",sleep_state="%s"} %d.0\n'
    return "".join(line % state for state in states.items()).encode()


def test_a_server_that_sleeps_says_so() -> None:
    assert read_metrics(sleep_state(0)).asleep
    assert not read_metrics(sleep_state(1)).asleep
    assert not read_metrics(b"").asleep


def test_the_caches_size_is_read_from_its_labels() -> None:
    assert read_cache(PAGE) == Cache(block_size=16, blocks=2048, prefix_caching=True)
    assert read_cache(b"") == Cache()


def test_the_memories_of_several_engines_are_added_up() -> None:
    line = (
        'vllm:cache_config_info{block_size="16",enable_prefix_caching="False",engine="%d",num_gpu_blocks="%s"} 1.0\n'
    )
    told = read_cache(((line % (0, "100")) + (line % (1, "50"))).encode())
    assert told == Cache(block_size=16, blocks=150, prefix_caching=False)
    assert read_cache(((line % (0, "100")) + (line % (1, "None"))).encode()).blocks is None


@pytest.mark.parametrize("told", ["None", "", "0", "-5", "1.5", "9" * 30, "x"])
def test_a_size_that_is_none_stays_unknown(told: str) -> None:
    line = (
        f'vllm:cache_config_info{{block_size="{told}",enable_prefix_caching="{told}",num_gpu_blocks="{told}"}} 1.0\n'
    )
    assert read_cache(line.encode()) == Cache()


def test_a_page_of_nonsense_is_read_in_no_time() -> None:
    page = b"\nvllm:cache_config_info{" + b"a" * 200_000 + b"} 1.0\n"
    began = time.process_time()
    assert read_cache(page) == Cache()
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize("value", [b"1e308", b"-1", b"NaN", b"inf"])
def test_what_is_no_sensible_number_is_passed_over(value: bytes) -> None:
    assert read_metrics(b'\nvllm:num_requests_running{engine="0"} ' + value + b"\n").running == 0
