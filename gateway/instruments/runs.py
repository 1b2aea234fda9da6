"""Runs as they end: in time or not, after how long, and what of that was due to which stage."""

from __future__ import annotations

from typing import Literal, get_args

from gateway.instruments.labels import Places
from gateway.instruments.series import Instruments
from gateway.settings import Config, Slo
from policies.runs import Run

Ending = Literal["in_time", "late", "unbounded", "broken", "abandoned"]


class RunMetrics:
    """What became of runs. Their times count those alone that came to an end of their own."""

    def __init__(self, made: Instruments, config: Config, places: Places) -> None:
        self._places = places
        self.tracked = made.gauge("cortex_runs")()
        self._ended = made.counter("cortex_runs_ended_total")
        self._seconds = made.histogram("cortex_run_seconds")
        self._slack = made.histogram("cortex_run_slack_at_finish_seconds")
        self._repairs = made.counter("cortex_run_repairs_total")
        self._critical = made.counter("cortex_stage_critical_path_seconds_total")
        self._target = made.gauge("cortex_slo_target_ratio")
        self._owed = set(config.workflows)
        for workflow, settings in config.workflows.items():
            self._target(workflow).set(settings.slo.target)
            if settings.slo.deadline is not None:
                made.gauge("cortex_slo_deadline_seconds")(workflow).set(settings.slo.deadline)
            self._repairs(workflow)
            for ending in get_args(Ending):
                self._ended(workflow, ending)

    def ended(self, run: Run) -> None:
        """Count a run that is over; to be told by `Runs.watch`."""
        workflow, ending = self._places.workflow(run.workflow), ending_of(run)
        self._ended(workflow, ending).inc()
        if workflow not in self._owed:
            self._owed.add(workflow)
            self._target(workflow).set(Slo().target)
        self._repairs(workflow).inc(run.repairs)
        for stage, seconds in run.longest.by_stage.items():
            self._critical(*self._places.pair(run.workflow, stage)).inc(seconds)
        if ending in ("broken", "abandoned"):
            return
        self._seconds(workflow).observe(run.left - run.started)
        if run.deadline is not None:
            self._slack(workflow).observe(run.deadline - run.left)


def ending_of(run: Run) -> Ending:
    """How a run ended, going by its last call."""
    if run.last in ("error", "timeout"):
        return "broken"
    if run.last == "cancelled":
        return "abandoned"
    if run.deadline is None:
        return "unbounded"
    return "late" if run.left > run.deadline else "in_time"
