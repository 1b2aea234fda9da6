"""The board *SQL and state*: what the workers run, what need not run again, and what agents share."""

from __future__ import annotations

from dashboards.board import POOL, Board, Panel, Query, Row, quantile, rate, total

HERE = 'pool=~"$pool"'

ANSWERS = (
    Panel(
        title="Answers from cache",
        description="Share of the SQL answers that were known, or being computed already, when they were asked for.",
        queries=(
            Query(
                'sum(rate(cortex_sql_answers_total{cache=~"hit|joined"}[$__range])) '
                "/ sum(rate(cortex_sql_answers_total[$__range]))"
            ),
        ),
        kind="figure",
        unit="percentunit",
        width=4,
        bounds=(0, 1),
    ),
    Panel(
        title="Answers by tier",
        description="Where answers came from: hit (kept), joined (another call's statement that ran), miss (a "
        "worker), bypass (may not be kept), refused (by the guard).",
        queries=(Query(rate("cortex_sql_answers_total", by="cache"), "{{cache}}"),),
        kind="stack",
        unit="ops",
        width=10,
    ),
    Panel(
        title="Time saved",
        description="Seconds of workers in each second that were not needed, for answers that were kept or joined, "
        "or were on their way before their call.",
        queries=(
            Query(rate("cortex_sql_saved_seconds_total"), "kept or joined"),
            Query(rate("cortex_sql_ahead_saved_seconds_total"), "ahead of the call"),
        ),
        unit="s",
        width=10,
    ),
)

WORKERS = (
    Panel(
        title="Statements by outcome",
        description="Statements that workers executed, in a second.",
        queries=(Query(rate("cortex_sql_runs_total", by="outcome", where=HERE), "{{outcome}}"),),
        kind="stack",
        unit="ops",
    ),
    Panel(
        title="Time in the worker",
        description="How long a statement took in its worker.",
        queries=(
            Query(quantile(0.5, "cortex_sql_seconds", by="pool", where=HERE), "{{pool}} 50 %"),
            Query(quantile(0.95, "cortex_sql_seconds", by="pool", where=HERE), "{{pool}} 95 %"),
        ),
        unit="s",
    ),
    Panel(
        title="Workers that ended",
        description="Workers in a minute: killed (a statement went beyond a limit and did not stop), crashed (the "
        "process ended by itself), retired (as they should).",
        queries=(
            Query(
                f"{rate('cortex_sql_worker_ends_total', by='pool, reason', where=HERE)} * 60", "{{pool}} {{reason}}"
            ),
        ),
    ),
    Panel(
        title="Ahead of the call",
        description="Statements that began before their call was whole: started; then hit or joined by the call, or "
        "wasted. Skipped ones never began, for want of an idle worker.",
        queries=(Query(rate("cortex_sql_ahead_total", by="fate"), "{{fate}}"),),
        unit="ops",
        width=12,
    ),
    Panel(
        title="Calls by outcome and source",
        description="Calls that ended, SQL and models together: by an engine, or from memory.",
        queries=(Query(rate("cortex_calls_total", by="outcome, source"), "{{outcome}} by {{source}}"),),
        kind="stack",
        unit="ops",
        width=12,
    ),
)

STATE = (
    Panel(
        title="Artifact lookups",
        description="Artifacts that were looked up in memory and in Redis, in a second.",
        queries=(Query(rate("cortex_artifact_lookups_total", by="tier, result"), "{{tier}} {{result}}"),),
        unit="ops",
    ),
    Panel(
        title="Artifacts in memory",
        description="How many bytes of artifacts are kept in this process.",
        queries=(Query(total("cortex_artifact_bytes"), "bytes"),),
        unit="bytes",
    ),
    Panel(
        title="Artifacts and readers",
        description="Artifacts in memory, those that were let go for others in a minute, and streams of events that "
        "are being read.",
        queries=(
            Query(total("cortex_artifacts"), "artifacts"),
            Query(f"{rate('cortex_artifact_evictions_total')} * 60", "let go"),
            Query(total("cortex_state_readers"), "readers"),
        ),
    ),
    Panel(
        title="Redis without an answer",
        description="Questions in a second that Redis did not answer; skipped: not asked because of those before.",
        queries=(Query(rate("cortex_redis_failures_total", by="reason"), "{{reason}}"),),
        unit="ops",
    ),
    Panel(
        title="Recalled completions",
        description="Answers of models at stages that recall: known, being computed already, or computed.",
        queries=(Query(rate("cortex_completion_lookups_total", by="cache", where=HERE), "{{cache}}"),),
        kind="stack",
        unit="ops",
    ),
    Panel(
        title="Engine time saved by recall",
        description="Seconds of engines in each second that recalled and joined answers did not take.",
        queries=(Query(rate("cortex_completion_saved_seconds_total", by="pool", where=HERE), "{{pool}}"),),
        unit="s",
    ),
)

BOARD = Board(
    name="sql",
    title="Cortex / SQL and state",
    description="SQL workers and their cache, and the state that agents share.",
    variables=(POOL,),
    rows=(Row("Answers", ANSWERS), Row("Workers", WORKERS), Row("State and recall", STATE)),
)
