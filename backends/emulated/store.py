"""The responses that the engine remembers: the newest ones, for retrieval and for the conversations that go on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from backends.emulated.fields import Refusal, bad
from backends.emulated.replies import Job
from backends.emulated.responses import Wanted, answer_messages, listed_items
from backends.emulated.responsewire import ResponseWire

MOST = 1000
MOST_BYTES = 64_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A response and the job that makes it; what it is now can be read off the engine's line at any time."""

    wanted: Wanted
    job: Job

    @property
    def id(self) -> str:
        return str(self.wanted.members["id"])

    @property
    def size(self) -> int:
        """Bytes of the prompt, which is most of it."""
        return len(self.wanted.ask.prompt.data)

    @property
    def known(self) -> bool:
        """One that is not in the background is there only in the end."""
        return self.wanted.background or self.ended

    @property
    def ended(self) -> bool:
        line = self.job.line
        return line.aborted or line.produced >= len(self.job.answer.pieces)

    def document(self) -> dict[str, Any]:
        wire = ResponseWire(self.wanted.members)
        if self.ended:
            return wire.ended(self.job.said(), self.job.counts())
        if self.job.line.closed:
            return wire.state("cancelled")
        return wire.state("queued" if self.job.line.admitted is None else "in_progress")

    def items(self) -> dict[str, Any]:
        return listed_items(self.wanted)

    def again(self) -> Job:
        """The job, to be sent from its first event on."""
        return replace(self.job, wire=ResponseWire(self.wanted.members))


class Store:
    """At most `most` responses of `most_bytes` in all, but the newest always; each use makes one the newest."""

    def __init__(self, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def keep(self, kept: Kept) -> None:
        self._forget(kept.id)
        self._kept[kept.id] = kept
        self._bytes += kept.size
        while len(self._kept) > self._most or (self._bytes > self._most_bytes and len(self._kept) > 1):
            self._forget(next(iter(self._kept)))

    def get(self, response_id: str) -> Kept:
        """Raises Refusal for one that is not there."""
        kept = self._kept.get(response_id)
        if kept is None or not kept.known:
            message = f"Response with id '{response_id}' not found."
            raise Refusal(404, "invalid_request_error", message, "response_id")
        self._kept.move_to_end(response_id)
        return kept

    def drop(self, response_id: str) -> Kept:
        """Forget it. Raises Refusal for one that is not there."""
        kept = self.get(response_id)
        self._forget(response_id)
        return kept

    def _forget(self, response_id: str) -> None:
        kept = self._kept.pop(response_id, None)
        self._bytes -= kept.size if kept else 0

    def conversation(self, response_id: str | None) -> Sequence[Mapping[str, Any]]:
        """The messages with which a response goes on that comes after this one."""
        if response_id is None:
            return ()
        kept = self.get(response_id)
        if not kept.ended:
            raise bad("previous_response_id", "names a response that is not complete")
        return [*kept.wanted.messages, *answer_messages(kept.job.said())]
