"""The board *Pools and engines*: who waits, who works, who helps whom, and what is in the engines' memory."""

from __future__ import annotations

from dashboards.board import INSTANCE, POOL, Board, Panel, Query, Row, buckets, quantile, rate, total

GATEWAY = 'instance=~"$instance"'
POOLS = f'{GATEWAY}, pool=~"$pool"'
ENGINES = f'{GATEWAY}, engine=~"($pool)/.*"'
STATES = (
    (1, "starting", "blue"),
    (2, "ready", "green"),
    (3, "draining", "yellow"),
    (4, "asleep", "purple"),
    (5, "ejected", "red"),
)
OWN = "Told by the engines themselves (vLLM's own metric): shown where Prometheus scrapes them too. "


def state_number() -> str:
    """A number for the state that each engine is in, as `STATES` has them."""
    return (
        "max by (instance, engine) ("
        + " or ".join(f'cortex_engine_state{{{ENGINES}, state="{name}"}} * {number}' for number, name, _ in STATES)
        + ")"
    )


QUEUES = (
    Panel(
        title="Waiting calls",
        description="Calls in the queue of each pool, parked ones among them.",
        queries=(Query(total("cortex_waiting_calls", by="pool", where=POOLS), "{{pool}}"),),
    ),
    Panel(
        title="Running calls",
        description="Calls in the engines of each pool, those of other pools among them.",
        queries=(Query(total("cortex_running_calls", by="pool", where=POOLS), "{{pool}}"),),
        kind="stack",
    ),
    Panel(
        title="Queue wait, 95 %",
        description="Wait of a call for its engine, by the pool of the engine.",
        queries=(Query(quantile(0.95, "cortex_queue_seconds", by="pool", where=POOLS), "{{pool}}"),),
        unit="s",
    ),
    Panel(
        title="Attempts",
        description="Attempts sent to the engines of each pool in a second.",
        queries=(Query(rate("cortex_attempts_total", by="pool", where=POOLS), "{{pool}}"),),
        kind="stack",
        unit="reqps",
    ),
    Panel(
        title="Committed work",
        description="Tokens of the calls in a pool's engines: what is still to be read and written.",
        queries=(Query(total("cortex_committed_work_tokens", by="pool", where=POOLS), "{{pool}}"),),
    ),
    Panel(
        title="Parked calls",
        description="Calls that the gate holds back with their runs, so that the KV memory is enough for the others.",
        queries=(Query(total("cortex_gate_parked", by="pool", where=POOLS), "{{pool}}"),),
    ),
)

LENDING = (
    Panel(
        title="Borrowed capacity",
        description="Calls in a second that an engine of one pool was given for another pool.",
        queries=(Query(rate("cortex_loans_total", by="pool, borrower", where=POOLS), "{{pool}} to {{borrower}}"),),
        kind="stack",
        unit="ops",
        width=12,
    ),
    Panel(
        title="Work on loan",
        description="Committed work of other pools' calls in each engine.",
        queries=(Query(f"cortex_engine_on_loan_tokens{{{ENGINES}}}", "{{engine}}"),),
        width=12,
    ),
)

FLEET = (
    Panel(
        title="State of the engines",
        description="In which state each engine is: an ejected one is left out for a while, because it kept failing.",
        queries=(Query(state_number(), "{{engine}}"),),
        kind="states",
        unit="none",
        width=12,
        words=STATES,
    ),
    Panel(
        title="Engines by state",
        description="How many engines are in which state, in all pools chosen.",
        queries=(Query(total("cortex_engines", by="state", where=POOLS), "{{state}}"),),
        kind="stack",
        width=6,
    ),
    Panel(
        title="Launches, ends and ejections",
        description="Engines in a minute that were started, that ended (retired: as they should; failed: by "
        "themselves), and that were left out because they kept failing.",
        queries=(
            Query(f"{rate('cortex_engine_launches_total', where=POOLS)} * 60", "launched"),
            Query(f"{rate('cortex_engine_ends_total', by='reason', where=POOLS)} * 60", "{{reason}}"),
            Query(f"{rate('cortex_engine_ejections_total', where=POOLS)} * 60", "ejected"),
        ),
        width=6,
    ),
    Panel(
        title="Calls in each engine",
        description="Calls that each engine has been given and has not yet answered.",
        queries=(Query(f"cortex_engine_running_calls{{{ENGINES}}}", "{{engine}}"),),
        width=6,
    ),
    Panel(
        title="Queued inside the engines",
        description="Calls that wait inside an engine, by its own report. The order among them is the engine's, so "
        "this should stay near 0.",
        queries=(Query(f"cortex_engine_queued_calls{{{ENGINES}}}", "{{engine}}"),),
        width=6,
    ),
    Panel(
        title="Committed work of its budget",
        description="Which share of the committed work that an engine may hold it does hold.",
        queries=(
            Query(
                f"cortex_engine_committed_work_tokens{{{ENGINES}}} / cortex_engine_budget_tokens{{{ENGINES}}}",
                "{{engine}}",
            ),
        ),
        unit="percentunit",
        width=6,
        limits=((0, "green"), (0.9, "orange")),
    ),
    Panel(
        title="Prefill pressure",
        description="Share of its time that an engine spends on prompts, going by what it was sent of late.",
        queries=(Query(f"cortex_engine_pressure_ratio{{{ENGINES}}}", "{{engine}}"),),
        unit="percentunit",
        width=6,
    ),
)

MEMORY = (
    Panel(
        title="KV memory in use",
        description="Share of the KV memory that running calls hold. What an idle engine keeps in its prefix cache "
        "does not count.",
        queries=(Query(f"cortex_engine_kv_use_ratio{{{ENGINES}}}", "{{engine}}"),),
        unit="percentunit",
        limits=((0, "green"), (0.9, "orange"), (0.98, "red")),
        bounds=(0, 1),
    ),
    Panel(
        title="Resident blocks",
        description="KV blocks with content that an engine says it holds. With `kv_events` only.",
        queries=(Query(f"cortex_engine_resident_blocks{{{ENGINES}}}", "{{engine}}"),),
    ),
    Panel(
        title="Prefixes believed to be held",
        description="Prompt tokens that an engine is believed to hold in its prefix cache, by what it was sent.",
        queries=(Query(f"cortex_engine_prefix_tokens{{{ENGINES}}}", "{{engine}}"),),
    ),
    Panel(
        title="Prefix tokens found of those expected",
        description="1: engines held just what was expected. By where the expectation came from: their events "
        "(exact), or what they were sent (approximate). With `kv_events` only.",
        queries=(
            Query(
                f"{rate('cortex_prefix_cached_tokens_total', by='index', where=GATEWAY)} "
                f"/ ({rate('cortex_prefix_predicted_tokens_total', by='index', where=GATEWAY)} > 0)",
                "{{index}}",
            ),
        ),
        unit="percentunit",
    ),
    Panel(
        title="Error of the expected prefix",
        description="How many KV blocks more or fewer than expected an engine held of a call's prompt. "
        "With `kv_events` only.",
        queries=buckets("cortex_prefix_error_blocks", where=GATEWAY),
        kind="heat",
    ),
    Panel(
        title="Runs let through",
        description="Runs that the gate has let through and that go on: all others wait, parked, with their calls.",
        queries=(Query(f"cortex_gate_active{{{GATEWAY}}}", "{{instance}}"),),
    ),
    Panel(
        title="Window of the gate",
        description="How many runs it would let: as a number, or (`working_set`, `pause_restore`) as tokens of their "
        "contexts. Empty where it is `open`.",
        queries=(Query(f"cortex_gate_window{{{GATEWAY}}} < +Inf", "{{instance}}"),),
        width=12,
    ),
    Panel(
        title="Prefill and decode",
        description="Prompt tokens computed, and tokens written, by all engines in a second.",
        queries=(
            Query(
                f"{rate('cortex_stage_prompt_tokens_total', where=GATEWAY)} "
                f"- {rate('cortex_stage_cached_tokens_total', where=GATEWAY)}",
                "computed",
            ),
            Query(rate("cortex_stage_output_tokens_total", where=GATEWAY), "written"),
        ),
        unit="ops",
        width=12,
    ),
)

VLLM = (
    Panel(
        title="vLLM: running and waiting",
        description=OWN + "Requests in a batch, and those that wait for one.",
        queries=(
            Query("vllm:num_requests_running", "{{instance}} running"),
            Query("vllm:num_requests_waiting", "{{instance}} waiting"),
        ),
    ),
    Panel(
        title="vLLM: prefix-cache hits",
        description=OWN + "Share of the prompt tokens that were found in the prefix cache.",
        queries=(
            Query(
                f"{rate('vllm:prefix_cache_hits_total', by='instance')} "
                f"/ ({rate('vllm:prefix_cache_queries_total', by='instance')} > 0)",
                "{{instance}}",
            ),
        ),
        unit="percentunit",
        bounds=(0, 1),
    ),
    Panel(
        title="vLLM: KV memory in use",
        description=OWN + "Share of the KV memory that running requests hold.",
        queries=(Query("vllm:kv_cache_usage_perc", "{{instance}}"),),
        unit="percentunit",
        bounds=(0, 1),
    ),
    Panel(
        title="vLLM: tokens",
        description=OWN + "Tokens in a second: prompts, and what was written.",
        queries=(
            Query(rate("vllm:prompt_tokens_total"), "prompts"),
            Query(rate("vllm:generation_tokens_total"), "written"),
        ),
        unit="ops",
    ),
    Panel(
        title="vLLM: preemptions",
        description=OWN + "Requests in a second that lost their KV memory to others and are computed again.",
        queries=(Query(rate("vllm:num_preemptions_total", by="instance"), "{{instance}}"),),
        unit="ops",
    ),
    Panel(
        title="vLLM: wait inside the engine, 95 %",
        description=OWN + "Wait of a request in the engine's own queue, after the gateway had sent it.",
        queries=(Query(quantile(0.95, "vllm:request_queue_time_seconds", by="instance"), "{{instance}}"),),
        unit="s",
    ),
)

BOARD = Board(
    name="pools",
    title="Cortex / Pools and engines",
    description="Queues, engines, loans between pools, and memory.",
    variables=(INSTANCE, POOL),
    rows=(
        Row("Pools", QUEUES),
        Row("Lending", LENDING),
        Row("Engines", FLEET),
        Row("Memory", MEMORY),
        Row("The engines' own view", VLLM),
    ),
)
