"""SQL ahead of its call: a statement runs as soon as it stands whole in a streamed tool call's arguments.

The model still writes the rest of its turn meanwhile. Whoever runs the call then, the gateway or its client, finds
the result, or joins the statement under way: it is run by the desk like any other, under the client's tenant, so
guard, cache and single flight hold. It is nobody's call, though: it belongs to a run of its own, of the least
priority and without a deadline, which admission may refuse, and it neither waits nor lets others wait
(`gateway.advances`). What goes wrong with it is counted, and the stream never hears of it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from backends.base import BackendError
from gateway.advances import Advance, Advances
from gateway.arguments import Arguments
from gateway.intake import Asked, Inbound
from gateway.openai import sse
from gateway.openai.errors import ApiError
from gateway.params import Misfit
from gateway.question import Question, read_arguments, read_question
from gateway.runtime import Runtime
from gateway.settings import Config
from gateway.spare import LEAST
from gateway.tools import EXECUTE, Desk, Warehouse
from policies.sql import SqlRefused
from policies.workflow import Stage, Workflow

CALLS_MOST = 4
"""Calls of one turn whose statements run ahead; more of them are still run when they are asked for."""
_VALUES = re.compile(r"[?$]")
"""What a statement has where it has parameters."""
WORKFLOW = "(ahead)"
"""The workflow and the stage under which statements ahead are told of, and learned from, apart from calls."""

_log = logging.getLogger("cortex.sql")


@dataclass(slots=True, eq=False)
class _Call:
    """A tool call as far as it has come; `task` runs `wanted`, which was asked for by what was `seen` of it."""

    arguments: Arguments
    name: str = ""
    seen: tuple[str, bool, bool] | None = None
    begun: bool = False
    wanted: Question | None = None
    task: asyncio.Task[None] | None = None

    def drop(self) -> None:
        self.wanted = None
        if self.task is not None:
            self.task.cancel()


class Watch:
    """Watches the tool calls of one turn. Leaving the block drops what still runs, unless it was released.

    `tools` are the functions to look for; with none of them a look at an event costs nothing.
    """

    def __init__(
        self,
        tools: Set[str],
        default: str | None,
        databases: Set[str],
        begin: Callable[[Question], asyncio.Task[None]],
        skip: Callable[[], None],
    ) -> None:
        self._tools = tools
        self._default = default
        self._databases = databases
        self._begin = begin
        self._skip = skip
        self._calls: dict[int, _Call] = {}

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for call in self._calls.values():
            call.drop()

    def see(self, event: bytes) -> None:
        """Look at an event, one that is known to be sound."""
        if not self._tools or b'"tool_calls"' not in event:
            return
        match (sse.chunk_of(event) or {}).get("choices"):
            case [{"delta": {"tool_calls": pieces}, **choice}, *_] if choice.get("index", 0) == 0:
                self.take(pieces)

    def take(self, pieces: object) -> None:
        """Take in pieces of tool calls, of whatever form, and run what they make whole."""
        if not self._tools or not isinstance(pieces, list):
            return
        for piece in pieces:
            match piece:
                case {"index": int(index), "function": dict() as function}:
                    self._add(index, function)

    def release(self) -> None:
        """The turn has ended well, and its client will ask for its calls; those that came incomplete are dropped."""
        for call in self._calls.values():
            if not call.arguments.ended:
                call.drop()
        self._calls.clear()

    def _add(self, index: int, function: Mapping[str, Any]) -> None:
        call = self._calls.get(index)
        if call is None:
            if len(self._calls) >= CALLS_MOST:
                return
            call = self._calls[index] = _Call(Arguments())
        name, piece = function.get("name"), function.get("arguments")
        call.name = call.name or (name if isinstance(name, str) else "")
        if call.name in self._tools and isinstance(piece, str):
            call.arguments.feed(piece)
            self._follow(call)

    def _follow(self, call: _Call) -> None:
        """Run what the arguments ask for by now, instead of what they seemed to ask for before.

        As a rule nothing follows the statement. Where something does that makes it another question, the second one
        waits for the end of the arguments, and so does a statement whose values have not come.
        """
        arguments = call.arguments
        seen = arguments.whole, arguments.ended, arguments.broken
        if seen == call.seen:
            return
        call.seen = seen
        wanted = None if arguments.broken else self._wanted(arguments)
        if wanted == call.wanted:
            return
        call.drop()
        if wanted is not None and wanted.database is None:
            if arguments.ended:  # nobody knows where it would have to run
                self._skip()
        elif wanted is not None and (arguments.ended or not call.begun):
            call.begun = True
            call.wanted, call.task = wanted, self._begin(wanted)

    def _wanted(self, arguments: Arguments) -> Question | None:
        """What a call with these arguments would ask, as far as it can be known."""
        try:
            document = read_arguments(arguments.whole)
            question = read_question(document, arguments.whole)
        except ApiError:
            return None
        if not arguments.ended and not question.params and _VALUES.search(question.sql):
            return None
        database = question.database or self._default
        known = database is None or database in self._databases
        return replace(question, database=database) if known else None


class Ahead:
    """Begins statements before their calls are made."""

    def __init__(
        self,
        *,
        config: Config,
        runtime: Runtime,
        desk: Desk,
        warehouses: Mapping[str, Warehouse],
        advances: Advances,
        graphs: Mapping[str, Workflow],
    ) -> None:
        self._config = config
        self._runtime = runtime
        self._desk = desk
        self._advances = advances
        self._graphs = graphs
        self._houses = {
            database: house
            for house in warehouses.values()
            if house.settings.ahead and house.settings.cache  # what is not kept would be run again
            for database in house.settings.databases
        }
        self._ids = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """End what still runs. Idempotent."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def passing(self, inbound: Inbound) -> Watch:
        """For a turn that passes to a client which runs its tools here, as far as its workflow says so."""
        identity = inbound.asked.identity
        workflow = self._config.workflows.get(identity.workflow)
        modes = workflow.tools if workflow is not None else {}
        ahead = (identity.tools or modes.get(EXECUTE, "pass")) == "ahead"
        return self.watch(inbound, {EXECUTE} if ahead and EXECUTE in inbound.payload.tools else set())

    def watch(self, inbound: Inbound, tools: Set[str]) -> Watch:
        """For a turn whose calls of these tools will be run here."""

        def begin(question: Question) -> asyncio.Task[None]:
            task = asyncio.create_task(self._run(inbound.asked, question), name="sql ahead")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return task

        tools = tools & {EXECUTE} if self._houses else set()
        default = self._default(inbound) if tools else None
        return Watch(tools, default, self._houses.keys(), begin, self._advances.skip)

    def _default(self, inbound: Inbound) -> str | None:
        """The database of a call that names none, as far as that is known; the only one, or that of its stage."""
        known = self._desk.databases
        tool = sql_stage(self._graphs, inbound)
        if tool is not None:
            stage = self._config.workflows[inbound.asked.identity.workflow].stages[tool.name]
            return stage.database or (known[0] if len(known) == 1 else None)
        return known[0] if len(known) == 1 else None

    async def _run(self, asked: Asked, question: Question) -> None:
        house = self._houses[question.database or ""]
        try:
            if self._free(house) and await self._worth_it(asked, question) and self._free(house):
                await self._advance(house, asked, question)
            else:
                self._advances.skip()
        except (ApiError, BackendError) as error:
            _log.info("statement ahead got no answer pool=%s reason=%s", house.pool, error)
        except Exception:  # noqa: BLE001 - a task's root: nobody has asked for it, and nobody may suffer from it
            _log.exception("statement ahead failed pool=%s", house.pool)

    async def _advance(self, house: Warehouse, asked: Asked, question: Question) -> None:
        advance, kept = Advance(pool=house.pool), False
        self._advances.begin(advance)
        try:
            answer = await self._desk.query(self._nobody(asked), question, stage=WORKFLOW)
            kept = answer.status == 200 and not answer.volatile
        finally:
            self._advances.end(advance, kept=kept)

    async def _worth_it(self, asked: Asked, question: Question) -> bool:
        """Whether the result could be given to a call. The reader keeps what it has read: the desk reads for free."""
        try:
            statement, _ = await self._desk.read(asked, question)
        except (SqlRefused, Misfit):
            return False
        return statement.deterministic

    def _free(self, house: Warehouse) -> bool:
        """Whether there is room for one more, in a worker that stands idle and that nobody waits for."""
        view = self._runtime.dispatcher.pool_view(house.pool, self._runtime.now())
        room = self._advances.running(house.pool) < house.settings.ahead
        return room and not view.waiting and view.running < view.slots

    def _nobody(self, asked: Asked) -> Asked:
        """The same client in a run of its own that nobody waits for: the run that asked stays where it is."""
        identity = replace(
            asked.identity, workflow=WORKFLOW, stage=WORKFLOW, step=0, deadline=None, priority=LEAST, final=True
        )
        return replace(asked, identity=identity, run=f"ahead-{next(self._ids):x}")


def sql_stage(graphs: Mapping[str, Workflow], inbound: Inbound) -> Stage | None:
    """The stage that a model's tools stand for: the one that follows the model's in the graph, where that is SQL."""
    graph = graphs.get(inbound.asked.identity.workflow)
    name = graph.following(inbound.call.stage, "ok") if graph is not None else None
    stage = graph.stages[name] if graph is not None and name is not None else None
    return stage if stage is not None and stage.kind == "sql" else None
