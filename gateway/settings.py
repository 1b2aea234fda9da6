"""What can be configured: the frozen objects that a configuration file becomes, each key with its type and default.

Durations are seconds, sizes bytes, paths absolute. `docs/configuration.md` says what each key means.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from gateway.backendspecs import Backend, DuckDb, places
from gateway.fields import (
    Bytes,
    Count,
    FilePathOrNone,
    Flag,
    Frozen,
    Host,
    List,
    Map,
    Named,
    Number,
    OneOrMany,
    Part,
    Pattern,
    PolicySpec,
    Prompt,
    RedisUrl,
    Seconds,
    SecondsOfADay,
    SecondsOrZero,
    Share,
    Spec,
    Text,
    Whole,
)
from gateway.keyspecs import Auth
from policies.calls import Kind
from policies.workflow import StageKind

Outcome = Literal["ok", "error", "empty", "timeout"]
Tool = Literal["execute_sql", "describe_tables"]
DEFAULT_POOL = "default"


class Server(Part):
    """Where the gateway listens and what it takes in."""

    host: Text = "127.0.0.1"
    port: Annotated[Whole, Field(ge=0, le=65535)] = 8080
    allowed_hosts: List[Host] = ()
    max_body: Bytes = 10_000_000
    max_header: Bytes = 32_000
    max_header_count: Count = 100
    graceful_shutdown: Seconds = 30.0
    keep_alive: Seconds | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    journal: FilePathOrNone = None


class Admin(Part):
    """The admin API; off without a token."""

    token: str = Field(default="", repr=False)


class Metrics(Part):
    """What the metrics tell apart."""

    labels: Count = 100


class Mcp(Part):
    """The SQL tools over the Model Context Protocol."""

    enabled: Flag = False


class Limits(Part):
    """How much the gateway holds at once."""

    queue_calls: Count = 1000
    queue_bytes: Bytes = 256_000_000
    runs: Count = 100_000
    run_idle: Seconds = 900.0
    concurrent_calls: Count = 20_000
    held_bytes: Bytes = 1_000_000_000
    attempts: Count = 3


class Timeouts(Part):
    """How long the gateway waits for an engine."""

    connect: Seconds = 2.0
    head: Seconds = 60.0
    idle: Seconds = 60.0
    total: Seconds = 600.0
    warm: SecondsOrZero = 10.0


class Engines(Part):
    """How many engines a pool has: at least, at the start, at most. A pool fills in what the file leaves out."""

    min: Annotated[Whole, Field(ge=0)] = 1
    start: Count = 0
    max: Count = 0


class Concurrency(Part):
    """How much one engine is given at once."""

    sequences: Count = 32
    work: Count = 120_000
    kv_tokens: Count | None = None


class PoolPolicies(Part):
    """Policies by name; None stands for the catalog's own choice, or in a pool for that of all pools."""

    instead: ClassVar[Mapping[str, str]] = MappingProxyType(
        dict.fromkeys(("layout", "gate", "borrowing"), "holds for all pools together; set it in policies")
    )
    priority: Spec | None = None
    admission: Spec | None = None
    budget: Spec | None = None
    filters: List[Spec] | None = None
    scorers: List[Spec] | None = None
    picker: Spec | None = None

    def specs(self) -> list[tuple[str, int | None, PolicySpec]]:
        """Each policy with its slot, and its position where the slot is a list."""
        found: list[tuple[str, int | None, PolicySpec]] = []
        for slot in type(self).model_fields:
            chosen = getattr(self, slot)
            if isinstance(chosen, PolicySpec):
                found.append((slot, None, chosen))
            elif isinstance(chosen, tuple):
                found += [(slot, index, spec) for index, spec in enumerate(chosen)]
        return found


class Policies(PoolPolicies):
    """The policies of all pools, and what holds for them together: whose engines serve whom, and the gate on runs."""

    layout: Literal["isolated", "shared", "adaptive"] = "adaptive"
    borrowing: Spec | None = None
    gate: Spec | None = None


class Pool(Part):
    """Engines of one kind, with a queue of their own."""

    model: Text | None = None
    backend: Backend
    engines: Engines = Field(default_factory=Engines, validate_default=True)
    concurrency: Concurrency = Field(default_factory=Concurrency, validate_default=True)
    lends_to: List[Text] | None = None
    policies: PoolPolicies = Field(default_factory=PoolPolicies)

    @property
    def kind(self) -> Kind:
        return "sql" if isinstance(self.backend, DuckDb) else "llm"

    @field_validator("engines")
    @classmethod
    def _fill(cls, engines: Engines, info: ValidationInfo) -> Engines:
        """Attached servers are all used from the start; others begin with as few as are allowed."""
        backend = info.data.get("backend")
        attached = places(backend) if backend is not None else 0
        least = max(engines.min, 1)
        most = engines.max or attached or max(engines.start, least)
        return Engines(min=engines.min, start=engines.start or (most if attached else least), max=most)

    @field_validator("concurrency")
    @classmethod
    def _one_statement(cls, concurrency: Concurrency, info: ValidationInfo) -> Concurrency:
        """A SQL worker runs one statement at a time."""
        return Concurrency(sequences=1) if isinstance(info.data.get("backend"), DuckDb) else concurrency


class Slo(Part):
    """What a workflow's runs are owed: the deadline of a whole run, and the share of runs that shall meet it."""

    deadline: Seconds | None = None
    target: Annotated[Number, Field(gt=0, le=1)] = 0.95


class Sampling(Part):
    """What a stage's own calls send to the model; what is None is left to the engine."""

    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    max_tokens: Count | None = None
    seed: Whole | None = None
    stop: OneOrMany[Text] | None = None


class Stage(Part):
    """A node of a workflow's graph: a call to a model, a SQL tool (`tool`), or a rendered answer (`render`)."""

    render: Prompt | None = None
    pool: Text | None = Field(default=DEFAULT_POOL, validate_default=True)
    tool: Tool | None = None
    database: Text | None = None
    prompt: Prompt | None = None
    tools: List[Tool] = ()
    sampling: Sampling = Field(default_factory=Sampling)
    outcomes: Annotated[Mapping[Outcome, Pattern], Frozen] = Field(default={}, validate_default=True)
    recall: SecondsOfADay | None = None
    visits: Annotated[Count, Field(le=1000)] = 3
    width: Annotated[Number, Field(ge=1, le=1000)] = 1.0

    @field_validator("pool")
    @classmethod
    def _none_where_rendered(cls, pool: str | None, info: ValidationInfo) -> str | None:
        return None if info.data.get("render") else pool

    @property
    def kind(self) -> StageKind:
        if self.render:
            return "render"
        return "sql" if self.tool else "llm"


class Edge(Part):
    """A way from stages to the next one. An empty `on` takes every outcome; `chance` is what is expected at first.

    A parallel way is taken besides the others instead of in their place.
    """

    sources: Annotated[OneOrMany[Text], Field(min_length=1, alias="from")]
    to: Text
    on: Annotated[OneOrMany[Outcome], Field(min_length=1)] = ()
    chance: Share | None = None
    parallel: Flag = False


class Workflow(Part):
    """A call graph with its SLO. `tools` says what happens to a tool call whose client drives itself."""

    slo: Slo = Field(default_factory=Slo)
    tools: Map[Literal["pass", "ahead", "intercept"]] = Field(default={}, validate_default=True)
    stages: Named[Stage] = Field(default={}, validate_default=True)
    edges: List[Edge] = ()


class Profiles(Part):
    """Where what was learned of calls and runs is kept across restarts; nowhere without a path."""

    path: FilePathOrNone = None
    every: Seconds = 60.0


class State(Part):
    """Artifacts that agents publish and find: where they are kept, how long, and how many."""

    memory: Bytes = 64_000_000
    redis: RedisUrl | None = Field(default=None, repr=False)
    timeout: Seconds = 0.1
    lifetime: Seconds = 3600.0
    longest: SecondsOfADay = 24 * 3600.0
    value: Bytes = 1_000_000
    keys: Count = 1000
    subscribers: Count = 100


class Inference(Part):
    """Whether runs and stages are told apart whose clients do not name them; bounds for each tenant."""

    enabled: Flag = True
    runs: Count = 2000
    idle: Seconds = 1800.0


class Config(Part):
    """A whole configuration."""

    server: Server = Field(default_factory=Server)
    admin: Admin = Field(default_factory=Admin)
    mcp: Mcp = Field(default_factory=Mcp)
    metrics: Metrics = Field(default_factory=Metrics)
    insecure: Flag = False
    auth: Auth = Field(default_factory=Auth)
    inference: Inference = Field(default_factory=Inference)
    limits: Limits = Field(default_factory=Limits)
    timeouts: Timeouts = Field(default_factory=Timeouts)
    pools: Annotated[Named[Pool], Field(min_length=1)]
    models: Map[Text] = Field(default={}, validate_default=True)
    workflows: Named[Workflow] = Field(default={}, validate_default=True)
    policies: Policies = Field(default_factory=Policies)
    profiles: Profiles = Field(default_factory=Profiles)
    state: State = Field(default_factory=State)

    def alias(self, model: str) -> str | None:
        """The pool that `models` gives to a model's name; the first pattern that fits wins."""
        return next((pool for pattern, pool in self.models.items() if fnmatchcase(model, pattern)), None)

    def lends(self, lender: str, borrower: str) -> bool:
        """Whether the engines of one pool may serve the calls of another: a pool's own, and beyond them, unless the
        layout is isolated, those of the same model, or as many of them as `lends_to` names."""
        if lender == borrower:
            return True
        pools: Mapping[str, Pool] = self.pools
        one, other = pools[lender], pools[borrower]
        same = one.kind == other.kind == "llm" and one.model == other.model
        named = one.lends_to is None or borrower in one.lends_to
        return self.policies.layout != "isolated" and same and named

    def policies_of(self, pool: str) -> PoolPolicies:
        """A pool's policies: its own, and those of all pools where it names none."""
        own = self.pools[pool].policies
        slots = PoolPolicies.model_fields
        chosen = {slot: getattr(own, slot) for slot in slots if getattr(own, slot) is not None}
        return PoolPolicies.model_construct(**{s: getattr(self.policies, s) for s in slots} | chosen)
