"""The board *Workflows*: whether runs meet their deadlines, and which stage it is that takes the time."""

from __future__ import annotations

from dashboards.board import SLO, WORKFLOW, Board, Panel, Query, Row, buckets, mean, quantile, rate

HERE = 'workflow=~"$workflow"'
OURS = f'{HERE}, workflow!~"|[(]ahead[)]"'
"""Runs of workflows: neither calls that belong to none, nor statements ahead of their call."""
BOUND = f'{OURS}, outcome=~"in_time|late|broken"'
MET = f'{OURS}, outcome="in_time"'


def met(window: str) -> str:
    """The share of the runs with a deadline that met it, by workflow."""
    good, ended = (
        f"sum by (workflow) (rate(cortex_runs_ended_total{{{where}}}[{window}]))" for where in (MET, BOUND)
    )
    return f"({good} or {ended} * 0) / ({ended} > 0)"


def burn(window: str) -> str:
    """How many times as fast as it may a workflow uses up the share of deadlines that it may miss."""
    allowed = f"on (workflow) group_left () max by (workflow) (1 - cortex_slo_target_ratio{{{HERE}}})"
    return f"(1 - {met(window)}) / {allowed}"


def over_range(metric: str, where: str) -> str:
    return f"sum(rate({metric}{{{where}}}[$__range]))"


GLANCE = (
    Panel(
        title="Runs ended",
        description="Runs that ended, in a second. A run ends where its graph ends, where its client says so, or "
        "when it has been idle for too long.",
        queries=(Query(over_range("cortex_runs_ended_total", HERE)),),
        kind="figure",
        unit="ops",
        width=4,
    ),
    Panel(
        title="SLO attainment",
        description="Share of the runs of workflows that met their deadline, over the time shown. One that broke has "
        "not; those without a deadline, and those whose client left, do not count.",
        queries=(
            Query(
                f"{over_range('cortex_runs_ended_total', MET)} / {over_range('cortex_runs_ended_total', BOUND)}",
            ),
        ),
        kind="figure",
        unit="percentunit",
        width=5,
        limits=((0, "red"), (SLO - 0.05, "orange"), (SLO, "green")),
        bounds=(0, 1),
    ),
    Panel(
        title="Makespan, 95 %",
        description="95 of 100 runs took no longer, from the arrival of their first call to the end of their last.",
        queries=(
            Query(
                f"histogram_quantile(0.95, sum by (le) (rate(cortex_run_seconds_bucket{{{OURS}}}[$__range])))",
            ),
        ),
        kind="figure",
        unit="s",
        width=5,
    ),
    Panel(
        title="Repairs per run",
        description="Calls after a stage that ended in an error, empty-handed or too late, for each run.",
        queries=(
            Query(f"{over_range('cortex_run_repairs_total', OURS)} / {over_range('cortex_runs_ended_total', OURS)}"),
        ),
        kind="figure",
        width=5,
    ),
    Panel(
        title="Prompt from cache",
        description="Share of all prompt tokens that engines found in their prefix caches.",
        queries=(
            Query(
                f"{over_range('cortex_stage_cached_tokens_total', HERE)} "
                f"/ {over_range('cortex_stage_prompt_tokens_total', HERE)}"
            ),
        ),
        kind="figure",
        unit="percentunit",
        width=5,
        bounds=(0, 1),
    ),
)

DEADLINES = (
    Panel(
        title="Makespan against the SLO",
        description="Time of a run, from the arrival of its first call to the end of its last. The SLO is the "
        "deadline that the configuration gives a run whose client names none.",
        queries=(
            Query(quantile(0.5, "cortex_run_seconds", by="workflow", where=OURS), "{{workflow}} 50 %"),
            Query(quantile(0.95, "cortex_run_seconds", by="workflow", where=OURS), "{{workflow}} 95 %"),
            Query(f"max by (workflow) (cortex_slo_deadline_seconds{{{HERE}}})", "{{workflow}} SLO"),
        ),
        unit="s",
        width=12,
    ),
    Panel(
        title="Runs by how they ended",
        description="In time, late, broken (the last call was refused or failed), abandoned (its client left), or "
        "unbounded: without a deadline.",
        queries=(Query(rate("cortex_runs_ended_total", by="outcome", where=HERE), "{{outcome}}"),),
        kind="stack",
        unit="ops",
        width=12,
    ),
    Panel(
        title="SLO attainment by workflow",
        description="Share of the runs with a deadline that met it, over five minutes.",
        queries=(Query(met("5m"), "{{workflow}}"),),
        unit="percentunit",
        width=12,
        limits=((0, "red"), (SLO, "green")),
        bounds=(0, 1),
    ),
    Panel(
        title="Burn of the error budget",
        description="1: deadlines are missed just as often as the target allows. At 14.4 a month's allowance is gone "
        "in two days. The alerts look at a long and a short window together.",
        queries=(
            Query(burn("5m"), "{{workflow}} 5 min"),
            Query(burn("1h"), "{{workflow}} 1 h"),
            Query(burn("6h"), "{{workflow}} 6 h"),
        ),
        width=12,
        limits=((0, "green"), (1, "orange"), (14.4, "red")),
    ),
)

SLACK = (
    Panel(
        title="Slack at dispatch",
        description="What the deadline of a call's run left when the call was sent, less what was still to be done. "
        "Calls below 0 were sent too late for their run. All workflows.",
        queries=buckets("cortex_slack_at_dispatch_seconds"),
        kind="heat",
        unit="s",
        width=12,
    ),
    Panel(
        title="Slack at finish",
        description="How long before its deadline a run ended. Below 0: how late it was.",
        queries=buckets("cortex_run_slack_at_finish_seconds", where=OURS),
        kind="heat",
        unit="s",
        width=12,
    ),
)

STAGES = (
    Panel(
        title="Critical path by stage",
        description="Which share of the longest chain of calls of the runs that ended each stage took, waiting and "
        "running. To make the largest one faster makes runs shorter; to make another one faster may not.",
        queries=(
            Query(
                rate("cortex_stage_critical_path_seconds_total", by="stage", where=HERE)
                + " / on () group_left () "
                + f"({rate('cortex_stage_critical_path_seconds_total', where=HERE)} > 0)",
                "{{stage}}",
            ),
        ),
        kind="stack",
        unit="percentunit",
        width=12,
        bounds=(0, 1),
    ),
    Panel(
        title="Queue wait by stage, 95 %",
        description="Wait of a call of this stage for its engine, in the gateway.",
        queries=(Query(quantile(0.95, "cortex_stage_queue_seconds", by="stage", where=HERE), "{{stage}}"),),
        unit="s",
        width=12,
    ),
    Panel(
        title="First token by stage, 95 %",
        description="From the start of an attempt at an engine to the first token of its answer.",
        queries=(Query(quantile(0.95, "cortex_stage_first_token_seconds", by="stage", where=HERE), "{{stage}}"),),
        unit="s",
    ),
    Panel(
        title="Service by stage, mean",
        description="Engine time of a call.",
        queries=(Query(mean("cortex_stage_service_seconds", by="stage", where=HERE), "{{stage}}"),),
        unit="s",
    ),
    Panel(
        title="Repairs per run by workflow",
        description="Calls after a stage that ended in an error, empty-handed or too late, for each run that ended.",
        queries=(
            Query(
                f"{rate('cortex_run_repairs_total', by='workflow', where=OURS)} "
                f"/ ({rate('cortex_runs_ended_total', by='workflow', where=OURS)} > 0)",
                "{{workflow}}",
            ),
        ),
    ),
)

TOKENS = (
    Panel(
        title="Prefix hits by stage",
        description="Share of the prompt tokens of a stage that engines found in their prefix caches.",
        queries=(
            Query(
                f"{rate('cortex_stage_cached_tokens_total', by='stage', where=HERE)} "
                f"/ ({rate('cortex_stage_prompt_tokens_total', by='stage', where=HERE)} > 0)",
                "{{stage}}",
            ),
        ),
        unit="percentunit",
        bounds=(0, 1),
    ),
    Panel(
        title="Prompt tokens computed by stage",
        description="Prompt tokens a second that were not in a prefix cache: what prefill costs.",
        queries=(
            Query(
                f"{rate('cortex_stage_prompt_tokens_total', by='stage', where=HERE)} "
                f"- {rate('cortex_stage_cached_tokens_total', by='stage', where=HERE)}",
                "{{stage}}",
            ),
        ),
        kind="stack",
        unit="ops",
    ),
    Panel(
        title="Output tokens by stage",
        description="Tokens a second that engines wrote.",
        queries=(Query(rate("cortex_stage_output_tokens_total", by="stage", where=HERE), "{{stage}}"),),
        kind="stack",
        unit="ops",
    ),
)

BOARD = Board(
    name="workflows",
    title="Cortex / Workflows",
    description="Runs against their deadlines, and where their time goes.",
    variables=(WORKFLOW,),
    rows=(
        Row("At a glance", GLANCE),
        Row("Deadlines", DEADLINES),
        Row("Slack", SLACK),
        Row("Stages", STAGES),
        Row("Tokens", TOKENS),
    ),
)
