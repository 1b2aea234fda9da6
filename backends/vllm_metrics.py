"""What a vLLM server's `/metrics` page says, under the names of 0.32 and those that older ones had.

A page is long, most of it histograms, and is read every other second: one scan finds the few series that are wanted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from backends.base import EngineReport

_RUNNING, _WAITING, _SLEEP = b"num_requests_running", b"num_requests_waiting", b"engine_sleep_state"
_KV_USE = (b"kv_cache_usage_perc", b"gpu_cache_usage_perc")
_COUNTERS: Mapping[str, tuple[bytes, ...]] = {
    "prompt_tokens": (b"prompt_tokens_total",),
    "generation_tokens": (b"generation_tokens_total",),
    "prefix_queries": (b"prefix_cache_queries_total", b"gpu_prefix_cache_queries_total"),
    "prefix_hits": (b"prefix_cache_hits_total", b"gpu_prefix_cache_hits_total"),
    "preemptions": (b"num_preemptions_total",),
}
"""The newest name of each first: some versions have two at a time."""
_NAMES = (_RUNNING, _WAITING, _SLEEP, *_KV_USE, *(name for names in _COUNTERS.values() for name in names))
_SERIES = re.compile(rb"\nvllm:(" + b"|".join(_NAMES) + rb")(?:\{([^\n]*)\})? (\S+)")
_CACHE = re.compile(rb"\nvllm:cache_config_info\{([^\n]*)\} ")
_LABEL = re.compile(rb'(?<!\w)(\w++)="([^"\n]*)"')  # looks at each byte once: a long word must not hold the loop up
_AWAKE = b'sleep_state="awake"'
_MOST = 1e15
"""No count of a server is larger, and all of some hundreds together fit into 64 bits, as a journal needs them."""


def read_metrics(page: bytes) -> EngineReport:
    """An engine's report. Counts of several models are added up; of several KV memories the fullest one is told.

    What is no sensible number is passed over: a server must not be able to upset whoever watches it.
    """
    sums: dict[bytes, float] = {}
    fullest: dict[bytes, float] = {}
    asleep = False
    for name, labels, number in _numbers(page):
        if name in _KV_USE:
            fullest[name] = max(fullest.get(name, 0.0), number)
        elif name != _SLEEP:
            sums[name] = sums.get(name, 0.0) + number
        elif _AWAKE in labels and number == 0:
            asleep = True
    counters = {plain: _newest(sums, names) for plain, names in _COUNTERS.items()}
    return EngineReport(
        running=int(sums.get(_RUNNING, 0)),
        waiting=int(sums.get(_WAITING, 0)),
        kv_use=min(1.0, _newest(fullest, _KV_USE) or 0.0),
        asleep=asleep,
        counters={plain: value for plain, value in counters.items() if value is not None},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """How a server's KV cache is configured; None where it does not say."""

    block_size: int | None = None
    blocks: int | None = None
    prefix_caching: bool | None = None


@dataclass(slots=True)
class _Labels:
    values: dict[bytes, bytes] = field(default_factory=dict)

    def count(self, name: bytes) -> int | None:
        value = self.values.get(name, b"")
        return int(value) if value.isdigit() and len(value) < 10 and int(value) else None


def read_cache(page: bytes) -> Cache:
    """How the cache is configured. The blocks of several engines in one server are added up."""
    engines = [_Labels(dict(_LABEL.findall(labels))) for labels in _CACHE.findall(b"\n" + page)]
    if not engines:
        return Cache()
    blocks = [engine.count(b"num_gpu_blocks") for engine in engines]
    told = engines[0].values.get(b"enable_prefix_caching")
    return Cache(
        block_size=engines[0].count(b"block_size"),
        blocks=sum(filter(None, blocks)) if all(blocks) else None,
        prefix_caching=None if told not in (b"True", b"False") else told == b"True",
    )


def _numbers(page: bytes) -> Iterator[tuple[bytes, bytes, float]]:
    for name, labels, value in _SERIES.findall(page if page.startswith(b"#") else b"\n" + page):
        try:
            number = float(value)
        except ValueError:
            continue
        if 0.0 <= number <= _MOST:  # and no NaN
            yield name, labels, number


def _newest(found: Mapping[bytes, float], names: tuple[bytes, ...]) -> float | None:
    return next((found[name] for name in names if name in found), None)
