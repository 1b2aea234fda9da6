"""Calls as the dispatcher hears of them: their attempts by pool, what they took by workflow and stage."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.instruments.labels import Places
from gateway.instruments.series import Instruments
from gateway.settings import Config
from policies.calls import Call, Outcome
from policies.events import Action, Arrived, Event, Failed, Finished, Left, Recalled, Refused, Start

SQL_OUTCOMES = ("ok", "error", "empty", "timeout", "cancelled")


@dataclass(slots=True, eq=False)
class _Open:
    """A call that is queued or runs: how often it was sent, and to the engine of which pool where it runs."""

    call: Call
    attempts: int = 0
    pool: str = ""


class CallMetrics:
    """What becomes of calls. Its series of pools are there from the start, so that a first event is an increase."""

    def __init__(self, made: Instruments, config: Config, places: Places) -> None:
        self._places = places
        self._open: dict[str, _Open] = {}
        self._ended = made.counter("cortex_calls_total")
        self._refusals = made.counter("cortex_refusals_total")
        self._attempts = made.counter("cortex_attempts_total")
        self._retries = made.counter("cortex_retries_total")
        self._failures = made.counter("cortex_attempt_failures_total")
        self._loans = made.counter("cortex_loans_total")
        self._queue = made.histogram("cortex_queue_seconds")
        self._slack = made.histogram("cortex_slack_at_dispatch_seconds")
        self._stage_queue = made.histogram("cortex_stage_queue_seconds")
        self._stage_first = made.histogram("cortex_stage_first_token_seconds")
        self._stage_service = made.histogram("cortex_stage_service_seconds")
        self._stage_prompt = made.counter("cortex_stage_prompt_tokens_total")
        self._stage_cached = made.counter("cortex_stage_cached_tokens_total")
        self._stage_output = made.counter("cortex_stage_output_tokens_total")
        self._sql_runs = made.counter("cortex_sql_runs_total")
        self._sql_seconds = made.histogram("cortex_sql_seconds")
        for name, pool in config.pools.items():
            self._retries(name)
            for other in config.pools:
                if other != name and config.lends(name, other):
                    self._loans(name, other)
            for outcome in SQL_OUTCOMES if pool.kind == "sql" else ():
                self._sql_runs(name, outcome)

    def watch(self, event: Event, actions: list[Action]) -> None:
        """Hear what the dispatcher was told and decided."""
        match event:
            case Arrived():
                self._open[event.call.id] = _Open(event.call)
            case Recalled():
                self._ended(event.outcome.fate, event.outcome.source).inc()
            case Finished():
                self._ended(event.outcome.fate, event.outcome.source).inc()
                self._over(event.call, event.outcome)
            case Failed():
                self._failures(event.trouble).inc()
            case Left():
                self._over(event.call, Outcome(fate="cancelled"))
            case _:
                pass
        for action in actions:
            match action:
                case Start():
                    self._started(action)
                case Refused():
                    self._refusals(action.reason).inc()
                    self._over(action.call, Outcome(fate="error"))
                case _:
                    pass

    def _started(self, start: Start) -> None:
        pool = start.engine.rpartition("/")[0]
        self._attempts(pool).inc()
        self._queue(pool).observe(start.queued)
        if start.slack is not None:
            self._slack(pool).observe(start.slack)
        opened = self._open[start.call]
        opened.attempts, opened.pool = opened.attempts + 1, pool
        call = opened.call
        if opened.attempts == 1:
            self._stage_queue(*self._places.pair(call.workflow, call.stage)).observe(start.queued)
        else:
            self._retries(pool).inc()
        if pool != call.pool:
            self._loans(pool, call.pool).inc()

    def _over(self, call: str, outcome: Outcome) -> None:
        opened = self._open.pop(call, None)
        if opened is None or not opened.attempts:  # it followed another, or never ran
            return
        if opened.call.kind == "sql":
            self._sql_runs(opened.pool, outcome.fate).inc()
        if outcome.total:
            self._served(opened, outcome)

    def _served(self, opened: _Open, outcome: Outcome) -> None:
        """What an engine's answer took."""
        place = self._places.pair(opened.call.workflow, opened.call.stage)
        self._stage_service(*place).observe(outcome.total)
        if opened.call.kind == "sql":
            self._sql_seconds(opened.pool).observe(outcome.total)
            return
        if outcome.first_token is not None:
            self._stage_first(*place).observe(outcome.first_token)
        self._stage_prompt(*place).inc(outcome.prompt_tokens)
        self._stage_cached(*place).inc(outcome.cached_tokens or 0)
        self._stage_output(*place).inc(outcome.output_tokens)
