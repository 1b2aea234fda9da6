"""OpenAI's Responses, written: the body, and the events of a stream that build it item by item."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from backends.emulated.answers import Answer, Part, Piece
from backends.emulated.responses import namespaces
from backends.emulated.wire import Counts

Item = dict[str, Any]

FAILED = {"code": "server_error", "message": "the engine has aborted the request"}
ENDS = {"length": "incomplete", "abort": "failed"}


class ResponseWire:
    """The answer to /v1/responses, whose `members` are known before it."""

    def __init__(self, members: Mapping[str, Any]) -> None:
        self._members = members
        self._namespaces = namespaces(members["tools"])
        self._id = str(members["id"]).removeprefix("resp_")
        self._number = 0
        self._index = 0
        self._calls = 0
        self._part: Part | None = None
        self._said: list[str] = []

    def greeting(self) -> list[bytes]:
        begun = self.state("in_progress")
        return [self._event("response.created", response=begun), self._event("response.in_progress", response=begun)]

    def opening(self) -> list[bytes]:
        return []

    def piece(self, piece: Piece, tokens: int) -> list[bytes]:
        begun: list[bytes] = []
        if piece.kind == "call":
            self._calls += 1
            return self._begin(Part(piece.text, "", self._calls - 1))
        if self._part is None:
            begun = self._begin(Part(None, ""))
        self._said.append(piece.text)
        if piece.kind == "arguments":
            return [self._of_item("response.function_call_arguments.delta", delta=piece.text)]
        delta = self._of_item("response.output_text.delta", content_index=0, delta=piece.text, logprobs=[])
        return [*begun, delta]

    def closing(self, answer: Answer, counts: Counts) -> list[bytes]:
        ended = self.ended(answer, counts)
        last = "incomplete" if answer.finish == "length" else "completed"
        return [*self._end(last), self._event(f"response.{ended['status']}", response=ended)]

    def whole(self, answer: Answer, counts: Counts) -> bytes:
        return orjson.dumps(self.ended(answer, counts))

    def ended(self, answer: Answer, counts: Counts) -> dict[str, Any]:
        """The response in the end."""
        status = ENDS.get(answer.finish, "completed")
        parts = answer.parts()
        cut = "incomplete" if status == "incomplete" else "completed"
        output = [
            self._item(index, part, cut if index == len(parts) - 1 else "completed")
            for index, part in enumerate(parts)
        ]
        more: dict[str, Any] = {"usage": _usage(counts)}
        if status == "incomplete":
            more["incomplete_details"] = {"reason": "max_output_tokens"}
        if status == "failed":
            more["error"] = FAILED
        return self.state(status, output) | more

    def state(self, status: str, output: list[Item] | None = None) -> dict[str, Any]:
        """The response while it has no usage yet."""
        return {**self._members, "status": status, "output": output or [], "usage": None}

    def _begin(self, part: Part) -> list[bytes]:
        ended = self._end("completed")
        self._part = part
        item = self._item(self._index, part, "in_progress")
        added = self._event("response.output_item.added", output_index=self._index, item=item)
        if part.name is not None:
            return [*ended, added]
        return [
            *ended,
            added,
            self._of_item("response.content_part.added", content_index=0, part=_text("")),
        ]

    def _end(self, status: str) -> list[bytes]:
        if self._part is None:
            return []
        part = self._part._replace(text="".join(self._said))
        self._said.clear()
        if part.name is None:
            done = [
                self._of_item("response.output_text.done", content_index=0, text=part.text, logprobs=[]),
                self._of_item("response.content_part.done", content_index=0, part=_text(part.text)),
            ]
        else:
            done = [self._of_item("response.function_call_arguments.done", arguments=part.text, name=part.name)]
        item = self._item(self._index, part, status)
        done.append(self._event("response.output_item.done", output_index=self._index, item=item))
        self._index, self._part = self._index + 1, None
        return done

    def _item(self, index: int, part: Part, status: str) -> Item:
        item = {"id": self._item_id(index, part), "status": status}
        if part.name is None:
            content = [] if status == "in_progress" else [_text(part.text)]
            return item | {"type": "message", "role": "assistant", "content": content}
        call = f"call_{self._id}" + (f"_{part.number}" if part.number else "")
        call_item = {"type": "function_call", "call_id": call, "name": part.name, "arguments": part.text}
        own = {"namespace": self._namespaces[part.name]} if part.name in self._namespaces else {}
        return item | call_item | own

    def _item_id(self, index: int, part: Part) -> str:
        return f"{'msg' if part.name is None else 'fc'}_{self._id}_{index}"

    def _of_item(self, kind: str, **members: object) -> bytes:
        assert self._part is not None
        return self._event(kind, item_id=self._item_id(self._index, self._part), output_index=self._index, **members)

    def _event(self, kind: str, **members: object) -> bytes:
        event = {"type": kind, "sequence_number": self._number, **members}
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(counts: Counts) -> dict[str, Any]:
    return {
        "input_tokens": counts.prompt,
        "input_tokens_details": {"cached_tokens": counts.cached, "cache_write_tokens": 0},
        "output_tokens": counts.completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counts.prompt + counts.completion,
    }
