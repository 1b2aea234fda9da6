"""Names the run of calls whose clients name none, and the stage where nobody else can know it.

What decides is `policies.linkage`; here it is asked when a call comes in, and told what the call was answered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, replace
from typing import Final

import orjson

from gateway.identity import Identity
from gateway.inference import Answer, conversation
from gateway.openai.payload import Payload
from policies.linkage import Linkage

GUESSES_MOST: Final = 100_000
"""Weak names of runs that are remembered with what became of them."""


@dataclass(frozen=True, slots=True)
class Linked:
    """A call as it is understood. `again`: its run has asked the very same before, which any client can do."""

    identity: Identity
    again: bool


class Linking:
    """What is known of the conversations of late. `workflows` are configured: their stages have names already."""

    def __init__(self, linkage: Linkage, *, workflows: Container[str], clock: Callable[[], float]) -> None:
        self._linkage = linkage
        self._workflows = workflows
        self._now = clock
        self._guesses: OrderedDict[tuple[str, str], str] = OrderedDict()

    def link(self, identity: Identity, payload: Payload, *, tenant: str, call: str) -> Linked | None:
        """The call with what its client has not said; None where there is nothing to add, and nobody to listen."""
        stage_open = not identity.stage and identity.workflow not in self._workflows
        if identity.run and not identity.weak and not stage_open:
            return None
        run = self._guesses.get((tenant, identity.run), "") if identity.weak else identity.run
        found = self._linkage.link(conversation(payload, tenant=tenant, call=call, run=run), self._now())
        if identity.weak:
            self._guess(tenant, identity.run, found.run)
        # A lone question is all of its run until another call shows that it was not: most have nothing to follow.
        alone = found.how in ("new", "repeats") and not payload.tools and not identity.workflow
        return Linked(
            replace(
                identity,
                run=found.run,
                stage=found.stage if stage_open else identity.stage,
                final=identity.last or (alone and not identity.run),
                source=identity.source if identity.source != "none" else "inferred",
            ),
            again=found.how == "repeats",
        )

    def listener(self, tenant: str, call: str) -> Listener:
        """Who hears what a call that was linked is answered."""
        return Listener(self._linkage, tenant, call, self._now)

    def _guess(self, tenant: str, guess: str, run: str) -> None:
        """Calls that share a weak name share a run from now on."""
        self._guesses[tenant, guess] = run
        self._guesses.move_to_end((tenant, guess))
        if len(self._guesses) > GUESSES_MOST:
            self._guesses.popitem(last=False)


class Listener:
    """Hears one answer, and passes it on when it is over, however it ended."""

    def __init__(self, linkage: Linkage, tenant: str, call: str, clock: Callable[[], float]) -> None:
        self._linkage = linkage
        self._tenant = tenant
        self._call = call
        self._now = clock
        self._answer = Answer()

    def chunk(self, chunk: object) -> None:
        """What an event of the answer's stream holds."""
        self._answer.chunk(chunk)

    def whole(self, document: object) -> None:
        self._answer.whole(document)

    def at_once(self, events: Iterable[bytes], body: bytes) -> None:
        """Hear an answer that is there already, as events or as a body."""
        for event in events:
            self._answer.event(event)
        if body:
            self.whole(orjson.loads(body))
        self.close()

    def close(self) -> None:
        """The answer is over. Idempotent: a call that is known no more is passed over."""
        self._linkage.answered(self._tenant, self._call, self._answer.text(), self._now(), self._answer.handles)
