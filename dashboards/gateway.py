"""The board *Gateway*: what clients get, what the gateway itself costs, and how it is."""

from __future__ import annotations

from dashboards.board import INSTANCE, Board, Panel, Query, Row, quantile, rate

HERE = 'instance=~"$instance"'

TRAFFIC = (
    Panel(
        title="Requests",
        description="Requests answered in a second, by endpoint.",
        queries=(Query(rate("cortex_requests_total", by="endpoint", where=HERE), "{{endpoint}}"),),
        kind="stack",
        unit="reqps",
    ),
    Panel(
        title="Replies by status",
        description="Requests answered in a second, by status.",
        queries=(Query(rate("cortex_requests_total", by="status", where=HERE), "{{status}}"),),
        kind="stack",
        unit="reqps",
    ),
    Panel(
        title="Time of a request, 95 %",
        description="From its arrival to the end of the answer, engines and all.",
        queries=(Query(quantile(0.95, "cortex_request_seconds", by="endpoint", where=HERE), "{{endpoint}}"),),
        unit="s",
    ),
    Panel(
        title="Errors by reason",
        description="Replies of status 400 and above in a second, and streams that were broken off, by the error's "
        "code.",
        queries=(Query(rate("cortex_errors_total", by="reason", where=HERE), "{{reason}}"),),
        kind="stack",
        unit="ops",
        width=12,
    ),
    Panel(
        title="Refusals by reason",
        description="Calls in a second that were let go without being served.",
        queries=(Query(rate("cortex_refusals_total", by="reason", where=HERE), "{{reason}}"),),
        kind="stack",
        unit="ops",
        width=12,
    ),
)

CALLS = (
    Panel(
        title="Source of identity",
        description="What named the run or the stage of a call: a header, the path, the body, an alias, or nothing. "
        "The more is known, the better calls are placed.",
        queries=(Query(rate("cortex_identity_total", by="source", where=HERE), "{{source}}"),),
        kind="stack",
        unit="ops",
        width=12,
    ),
    Panel(
        title="Cancellations",
        description="Requests in a second whose client left before the answer was whole.",
        queries=(Query(rate("cortex_cancellations_total", by="endpoint", where=HERE), "{{endpoint}}"),),
        unit="ops",
        width=6,
    ),
    Panel(
        title="Wasted tokens",
        description="Tokens in a second that engines wrote for clients that had left.",
        queries=(Query(rate("cortex_wasted_tokens_total", by="pool", where=HERE), "{{pool}}"),),
        unit="ops",
        width=6,
    ),
    Panel(
        title="Retries",
        description="Attempts in a second beyond a call's first, by the pool of the engine.",
        queries=(Query(rate("cortex_retries_total", by="pool", where=HERE), "{{pool}}"),),
        unit="ops",
        width=12,
    ),
    Panel(
        title="Failed attempts by reason",
        description="Attempts in a second that failed: what retries are for.",
        queries=(Query(rate("cortex_attempt_failures_total", by="reason", where=HERE), "{{reason}}"),),
        kind="stack",
        unit="ops",
        width=12,
    ),
)

ITSELF = (
    Panel(
        title="The gateway's own time",
        description="What the gateway adds to a request: all of its time but the queue and the engine.",
        queries=tuple(
            Query(quantile(share, "cortex_gateway_seconds", where=HERE), f"{share:.0%}")
            for share in (0.5, 0.95, 0.99)
        ),
        unit="s",
    ),
    Panel(
        title="The gateway's own time by endpoint, 95 %",
        description="The same for each endpoint.",
        queries=(Query(quantile(0.95, "cortex_gateway_seconds", by="endpoint", where=HERE), "{{endpoint}}"),),
        unit="s",
    ),
    Panel(
        title="Lag of the event loop",
        description="How late the event loop came to what it was to do. Above 0.1 s every stream stutters.",
        queries=tuple(
            Query(
                quantile(share, "cortex_loop_lag_seconds", by="instance", where=HERE), f"{{{{instance}}}} {share:.0%}"
            )
            for share in (0.5, 0.99)
        ),
        unit="s",
        limits=((0, "green"), (0.1, "red")),
    ),
    Panel(
        title="CPU",
        description="Cores that the process of the gateway keeps busy. One event loop cannot use more than one.",
        queries=(Query(rate("process_cpu_seconds_total", by="instance", where=HERE), "{{instance}}"),),
        unit="none",
        limits=((0, "green"), (0.8, "orange")),
    ),
    Panel(
        title="Memory",
        description="Resident memory of the process.",
        queries=(Query(f"process_resident_memory_bytes{{{HERE}}}", "{{instance}}"),),
        unit="bytes",
    ),
    Panel(
        title="Open files",
        description="Sockets and files that are open, of those that may be.",
        queries=(Query(f"process_open_fds{{{HERE}}} / process_max_fds{{{HERE}}}", "{{instance}}"),),
        unit="percentunit",
        limits=((0, "green"), (0.8, "red")),
    ),
    Panel(
        title="Runs remembered",
        description="Runs that are kept track of.",
        queries=(Query(f"cortex_runs{{{HERE}}}", "{{instance}}"),),
        width=6,
    ),
    Panel(
        title="Journal steps lost",
        description="Steps that the journal could not write. More than 0: a replay will not be whole.",
        queries=(Query(f"cortex_journal_dropped{{{HERE}}}", "{{instance}}"),),
        width=6,
        limits=((0, "green"), (1, "red")),
    ),
    Panel(
        title="Collections of garbage",
        description="Runs of Python's garbage collector in a second, by generation.",
        queries=(Query(rate("python_gc_collections_total", by="generation", where=HERE), "{{generation}}"),),
        unit="ops",
        width=6,
    ),
    Panel(
        title="Gateways by version",
        description="How many gateways run which version.",
        queries=(Query(f"count by (version) (cortex_build_info{{{HERE}}})", "{{version}}"),),
        kind="figure",
        width=6,
    ),
)

BOARD = Board(
    name="gateway",
    title="Cortex / Gateway",
    description="Requests, errors, and the gateway's own health.",
    variables=(INSTANCE,),
    rows=(Row("Traffic", TRAFFIC), Row("Calls", CALLS), Row("The gateway itself", ITSELF)),
)
