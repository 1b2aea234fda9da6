"""What the tests of the policies are made of: calls, pools, a workflow and dispatchers over them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from policies.blueprint import Blueprint
from policies.calls import Call, Estimate, Fate, Outcome
from policies.catalog import Named, PolicySet
from policies.dispatcher import Dispatcher, Limits
from policies.events import Action, Arrived, EngineUp, Event, Finished, Launch, Refused, Scaled, Start
from policies.pool import EngineLimits, EngineView, PoolSpec
from policies.protocols import Key
from policies.queue import Waiting
from policies.workflow import Edge, Stage, Workflow

A = TypeVar("A", bound=Action)

FCFS = PolicySet(priority=Named(name="fcfs"), admission=Named(name="queue_bound"))


def a_call(id: str = "c", **given: Any) -> Call:
    """A call of a run of its own, unless told otherwise."""
    usual: dict[str, Any] = {"id": id, "pool": "p", "run": f"run of {id}", "arrived": 0.0}
    return Call(**usual | given)


def a_pool(name: str = "p", *, sequences: int = 1, work: float = 1e9, **given: Any) -> PoolSpec:
    return PoolSpec(name=name, limits=EngineLimits(sequences=sequences, work=work), **given)


def a_view(name: str = "e", **given: Any) -> EngineView:
    """An idle engine as routing sees it."""
    usual: dict[str, Any] = {
        "name": name,
        "pool": "p",
        "running": 0,
        "work": 0.0,
        "limits": EngineLimits(sequences=4, work=1000.0),
        "kv_use": 0.0,
        "matched": 0,
        "last_start": 0,
        "tried": False,
    }
    given = usual | given
    return EngineView(**{"budget": given["limits"].work} | given)


def a_waiting(call: Call, order: int = 0) -> Waiting:
    """A call that wants to queue, as urgent as any other."""
    return Waiting(
        call=call,
        estimate=Estimate(output_tokens=(1, 1), service=1.0, remaining=0.0),
        key=Key(start=(0.0,), bucket=0),
        order=order,
        deadline=None,
        visit=1,
        since=call.arrived,
    )


def nl2sql(deadline: float | None = 8.0) -> Workflow:
    """Generate, execute, verify; a fixer after an error or an empty result."""
    return Workflow(
        name="nl2sql",
        deadline=deadline,
        stages={
            "generate": Stage(name="generate", kind="llm", pool="gen", visits=1),
            "execute": Stage(name="execute", kind="sql", pool="sql", visits=4),
            "verify": Stage(name="verify", kind="llm", pool="gen", visits=2),
            "fix": Stage(name="fix", kind="llm", pool="fix", visits=3),
            "answer": Stage(name="answer", kind="render", visits=1),
        },
        edges=(
            Edge(source="start", target="generate"),
            Edge(source="generate", target="execute"),
            Edge(source="fix", target="execute"),
            Edge(source="execute", target="verify", on=frozenset({"ok"}), chance=0.7),
            Edge(source="execute", target="fix", on=frozenset({"error", "empty"}), chance=0.3),
            Edge(source="verify", target="answer", on=frozenset({"ok"}), chance=0.9),
            Edge(source="verify", target="fix", on=frozenset({"error"}), chance=0.1),
        ),
    )


@dataclass
class Desk:
    """A dispatcher with the clock beside it: feeds events, and picks out the actions that a test asks for."""

    dispatcher: Dispatcher
    now: float = 0.0
    ended: set[str] = field(default_factory=set)

    def tell(self, event: Event, kind: type[A]) -> list[A]:
        """Feed one event; the actions of one kind that it gave."""
        return [action for action in self.dispatcher.handle(event, self.now) if isinstance(action, kind)]

    def arrive(self, call: Call) -> Start | Refused | None:
        """Let a call arrive; what became of it at once."""
        actions = self.dispatcher.handle(Arrived(call=call), self.now)
        said = [action for action in actions if isinstance(action, Start | Refused) and action.call == call.id]
        return said[0] if said else None

    def finish(self, start: Start, *, fate: Fate = "ok", total: float = 1.0, output: int = 0) -> list[Start]:
        """Let an attempt end with an answer; the calls that start in its place."""
        outcome = Outcome(fate=fate, total=total, output_tokens=output)
        return self.tell(Finished(call=start.call, attempt=start.attempt, outcome=outcome), Start)

    def scale(self, pool: str, engines: int) -> list[str]:
        """Bring a pool to so many engines, and up with those that are launched; their names."""
        names = [launch.engine for launch in self.tell(Scaled(pool=pool, engines=engines), Launch)]
        for name in names:
            self.up(name)
        return names

    def up(self, engine: str) -> list[Start]:
        state = self.dispatcher.fleet.get(engine)
        assert state is not None
        return self.tell(EngineUp(engine=engine, limits=state.limits), Start)


def a_desk(
    pools: Iterable[PoolSpec] = (a_pool(),),
    *,
    policies: PolicySet | Mapping[str, PolicySet] = FCFS,
    workflows: Iterable[Workflow] = (),
    limits: Limits | None = None,
    gate: Named | None = None,
    seed: int = 0,
    start: bool = True,
) -> Desk:
    """A dispatcher over these pools, with their first engines up unless `start` says otherwise."""
    specs = {spec.name: spec for spec in pools}
    chosen = dict.fromkeys(specs, policies) if isinstance(policies, PolicySet) else policies
    blueprint = Blueprint(
        pools=specs,
        workflows={workflow.name: workflow for workflow in workflows},
        policies=chosen,
        limits=limits or Limits(),
        gate=gate or Named(name="open"),
        seed=seed,
    )
    desk = Desk(blueprint.dispatcher())
    for spec in specs.values():
        if start:
            desk.scale(spec.name, spec.start)
    return desk


def started(desk: Desk, call: Call) -> Start:
    """The start of a call that is served at once."""
    start = desk.arrive(call)
    assert isinstance(start, Start)
    return start


def order_of_service(desk: Desk, running: Start) -> list[str]:
    """Let the one running call end, and then each that starts in its place; who came in which order."""
    served = []
    following = desk.finish(running)
    while following:
        [running] = following
        served.append(running.call)
        following = desk.finish(running)
    return served


def a_step(number: int, stage: str = "generate", **given: Any) -> Call:
    """A call of the one run `r` of the workflow `nl2sql`."""
    return a_call(f"c{number}", **{"run": "r", "workflow": "nl2sql", "stage": stage} | given)
