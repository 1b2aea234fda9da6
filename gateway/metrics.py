"""The gateway's own metrics: the one list of them, in a registry of their own.

Labels take their values from the configuration or from a fixed list, but for the names of workflows and stages that
clients choose, of which so many are kept (`gateway.instruments.labels`): no client can make series without end.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest

from gateway.instruments.calls import CallMetrics
from gateway.instruments.engines import EngineMetrics
from gateway.instruments.labels import Places
from gateway.instruments.requests import RequestMetrics
from gateway.instruments.runs import RunMetrics
from gateway.instruments.series import Instruments, Metric
from gateway.instruments.sql import SqlMetrics
from gateway.instruments.stores import StoreMetrics
from gateway.settings import Config
from policies.events import Action, Event

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_RUN_SECONDS = (*_SECONDS[3:], 163.84, 327.68, 655.36, 1310.72)
_SLACK = (-60, -30, -10, -5, -2, -1, 0, 1, 2, 5, 10, 30, 60)
_OWN = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_STAGE = ("workflow", "stage")

METRICS = (
    Metric("cortex_requests_total", "counter", "Requests answered.", ("endpoint", "status")),
    Metric("cortex_cancellations_total", "counter", "Requests whose client left first.", ("endpoint",)),
    Metric("cortex_errors_total", "counter", "Errors given to clients.", ("endpoint", "reason")),
    Metric("cortex_request_seconds", "histogram", "Time of a request.", ("endpoint",), _SECONDS),
    Metric("cortex_gateway_seconds", "histogram", "The gateway's own part of it.", ("endpoint",), _OWN),
    Metric("cortex_loop_lag_seconds", "histogram", "By how much the event loop was late.", (), _OWN),
    Metric("cortex_build_info", "gauge", "The version that runs.", ("version",)),
    Metric("cortex_journal_dropped", "gauge", "Journal steps that were not written."),
    Metric("cortex_keys", "gauge", "API keys that are known."),
    Metric("cortex_keys_file_broken", "gauge", "1 where the file of keys is not in force as it is."),
    # calls
    Metric("cortex_identity_total", "counter", "Calls by what named them.", ("source",)),
    Metric("cortex_calls_total", "counter", "Calls ended, by outcome and source.", ("outcome", "source")),
    Metric("cortex_refusals_total", "counter", "Calls let go unserved.", ("reason",)),
    Metric("cortex_attempts_total", "counter", "Attempts sent.", ("pool",)),
    Metric("cortex_retries_total", "counter", "Attempts beyond a call's first.", ("pool",)),
    Metric("cortex_attempt_failures_total", "counter", "Attempts failed.", ("reason",)),
    Metric("cortex_loans_total", "counter", "Calls sent to another pool's engine.", ("pool", "borrower")),
    Metric("cortex_wasted_tokens_total", "counter", "Tokens of answers that nobody read to the end.", ("pool",)),
    Metric("cortex_queue_seconds", "histogram", "Wait of a call for its engine.", ("pool",), _SECONDS),
    Metric(
        "cortex_slack_at_dispatch_seconds", "histogram", "Slack of a run when a call was sent.", ("pool",), _SLACK
    ),
    # runs and stages
    Metric("cortex_runs", "gauge", "Runs that are kept track of."),
    Metric("cortex_runs_ended_total", "counter", "Runs that have ended.", ("workflow", "outcome")),
    Metric(
        "cortex_run_seconds", "histogram", "From a run's first call to its last end.", ("workflow",), _RUN_SECONDS
    ),
    Metric("cortex_run_slack_at_finish_seconds", "histogram", "Deadline less end.", ("workflow",), _SLACK),
    Metric("cortex_slo_deadline_seconds", "gauge", "What runs are given whose clients name none.", ("workflow",)),
    Metric("cortex_slo_target_ratio", "gauge", "The share of runs that shall be in time.", ("workflow",)),
    Metric("cortex_run_repairs_total", "counter", "Calls behind a stage that had gone wrong.", ("workflow",)),
    Metric("cortex_stage_queue_seconds", "histogram", "Wait of a stage's calls.", _STAGE, _SECONDS),
    Metric("cortex_stage_first_token_seconds", "histogram", "From an attempt's start.", _STAGE, _SECONDS),
    Metric("cortex_stage_service_seconds", "histogram", "Engine time of a stage's calls.", _STAGE, _SECONDS),
    Metric("cortex_stage_critical_path_seconds_total", "counter", "Part in the longest chains of runs.", _STAGE),
    Metric("cortex_stage_prompt_tokens_total", "counter", "Tokens of a stage's prompts.", _STAGE),
    Metric("cortex_stage_cached_tokens_total", "counter", "Those of them found in cache.", _STAGE),
    Metric("cortex_stage_output_tokens_total", "counter", "Tokens written for a stage.", _STAGE),
    # pools and engines
    Metric("cortex_engines", "gauge", "Engines of a pool.", ("pool", "state")),
    Metric("cortex_usable_engines", "gauge", "Engines that may be given a pool's calls.", ("pool",)),
    Metric("cortex_wanted_engines", "gauge", "Engines that a pool shall have.", ("pool",)),
    Metric("cortex_waiting_calls", "gauge", "Calls in a pool's queue.", ("pool",)),
    Metric("cortex_running_calls", "gauge", "Calls in a pool's engines.", ("pool",)),
    Metric("cortex_committed_work_tokens", "gauge", "Committed work of a pool.", ("pool",)),
    Metric("cortex_engine_launches_total", "counter", "Engines asked for.", ("pool",)),
    Metric("cortex_engine_ends_total", "counter", "Engines that have ended.", ("pool", "reason")),
    Metric("cortex_engine_ejections_total", "counter", "Times that an engine was left out.", ("pool",)),
    Metric("cortex_engine_state", "gauge", "1 for the state that an engine is in.", ("engine", "state")),
    Metric("cortex_engine_running_calls", "gauge", "Calls in an engine.", ("engine",)),
    Metric("cortex_engine_queued_calls", "gauge", "Those that wait inside it, as it says.", ("engine",)),
    Metric("cortex_engine_committed_work_tokens", "gauge", "Committed work of an engine.", ("engine",)),
    Metric("cortex_engine_budget_tokens", "gauge", "Committed work that it may hold.", ("engine",)),
    Metric("cortex_engine_on_loan_tokens", "gauge", "Committed work of other pools' calls.", ("engine",)),
    Metric("cortex_engine_kv_use_ratio", "gauge", "KV memory in use, as the engine says.", ("engine",)),
    Metric("cortex_engine_pressure_ratio", "gauge", "Share of an engine's time for prompts.", ("engine",)),
    Metric("cortex_engine_prefix_tokens", "gauge", "Tokens that it is believed to hold.", ("engine",)),
    Metric("cortex_engine_resident_blocks", "gauge", "KV blocks that it says it holds.", ("engine",)),
    Metric("cortex_gate_window", "gauge", "Runs that may be under way; tokens of their contexts (pause_restore)."),
    Metric("cortex_gate_active", "gauge", "Runs that the gate has let through."),
    Metric("cortex_gate_parked", "gauge", "Calls parked with their runs.", ("pool",)),
    Metric("cortex_prefix_predicted_tokens_total", "counter", "Tokens expected in cache.", ("index",)),
    Metric("cortex_prefix_cached_tokens_total", "counter", "Tokens of the same found in cache.", ("index",)),
    Metric("cortex_prefix_error_blocks", "histogram", "How far apart.", ("index",), (0, 1, 2, 4, 8, 16, 64, 256)),
    # SQL
    Metric("cortex_sql_answers_total", "counter", "SQL answers by where from.", ("cache",)),
    Metric("cortex_sql_saved_seconds_total", "counter", "Workers' time that recalled answers did not take."),
    Metric("cortex_sql_runs_total", "counter", "Statements run by workers.", ("pool", "outcome")),
    Metric("cortex_sql_seconds", "histogram", "Time of a statement in its worker.", ("pool",), _SECONDS),
    Metric("cortex_sql_worker_ends_total", "counter", "Worker processes ended.", ("pool", "reason")),
    Metric("cortex_sql_ahead_total", "counter", "SQL ahead of its call.", ("fate",)),
    Metric("cortex_sql_ahead_saved_seconds_total", "counter", "Seconds by which SQL was ahead of its call."),
    # what is kept
    Metric("cortex_completion_lookups_total", "counter", "Completions by where from.", ("pool", "cache")),
    Metric("cortex_completion_saved_seconds_total", "counter", "Engine time not taken.", ("pool",)),
    Metric("cortex_artifact_lookups_total", "counter", "Artifacts looked up.", ("tier", "result")),
    Metric("cortex_artifact_evictions_total", "counter", "Artifacts let go for others."),
    Metric("cortex_artifacts", "gauge", "Artifacts in memory."),
    Metric("cortex_artifact_bytes", "gauge", "Their size."),
    Metric("cortex_redis_failures_total", "counter", "Questions without answer.", ("reason",)),
    Metric("cortex_state_readers", "gauge", "Streams of events that are read."),
)


class Metrics:
    """Everything that `/metrics` shows, by family. `refresh` sets the gauges when it is asked."""

    def __init__(self, config: Config) -> None:
        self.registry = CollectorRegistry()
        self.refresh: Callable[[], None] = lambda: None
        made = Instruments(METRICS, self.registry)
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        made.gauge("cortex_build_info")(version("cortex-gateway")).set(1)
        known = [(name, stage) for name, workflow in config.workflows.items() for stage in ("", *workflow.stages)]
        places = Places(known, most=config.metrics.labels)
        self.requests = RequestMetrics(made)
        self.calls = CallMetrics(made, config, places)
        self.runs = RunMetrics(made, config, places)
        self.engines = EngineMetrics(made, config)
        self.sql = SqlMetrics(made, config)
        self.stores = StoreMetrics(made, config)

    def watch(self, event: Event, actions: list[Action]) -> None:
        """Hear what the dispatcher was told and decided."""
        self.calls.watch(event, actions)
        self.engines.watch(event, actions)

    def text(self) -> bytes:
        """The exposition format of all of it."""
        self.refresh()
        return generate_latest(self.registry)
