"""Which run and stage a call belongs to, and what it asks for, from the four places where a client can say so.

Field by field the first that speaks wins: our headers; the body (its `workflow` object, then string members of
`metadata`); the path of the base_url; the alias used as model; last, the default that comes with the API key.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from gateway import headers as names
from gateway.openai.errors import ill_formed, unknown_member

Source = Literal["header", "body", "path", "alias", "key", "none"]
Tools = Literal["pass", "ahead", "intercept"]

ID_BYTES = 256
OSL_MOST = 10_000_000
_BOUNDS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"step": (1, 1_000_000), "deadline_ms": (1, 30 * 24 * 3600 * 1000), "priority": (-8, 8)}
)

# Member of the body -> field.
_BODY_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "type": "workflow",
        "id": "run",
        "stage": "stage",
        "agent": "agent",
        "parent": "parent",
        "step": "step",
        "deadline_ms": "deadline_ms",
        "slo": "slo",
        "priority": "priority",
        "hints": "hints",
        "final": "final",
        "tools": "tools",
    }
)
# Other clients put their own things into metadata, so the general words `type`, `id` and `tools` are not ours there.
_METADATA_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        f"workflow_{key}" if key in ("type", "id") else key: field
        for key, field in _BODY_FIELDS.items()
        if key not in ("hints", "tools")
    }
)
_PATH = re.compile(r"/w/(?P<workflow>[^/]+)(?:/s/(?P<stage>[^/]+))?(?P<rest>/mcp|/v1(?:/.*)?)", re.DOTALL)
_INTEGER = re.compile(r"-?[0-9]{1,15}")
# One member of an RFC 8941 dictionary with the comma behind it; parameters are passed over.
_MEMBER = re.compile(
    r"""[ \t]*(?P<key>[a-z*][a-z0-9_.*-]*)
        (?:=(?P<value>"(?:[^"\\]|\\["\\])*"|\([^()]*\)|[^,;\s"()]+))?
        (?:;[^,"]*|[ \t]*)(?:,(?=.)|\Z)""",
    re.VERBOSE,
)
_FLAGS: Mapping[str, bool] = MappingProxyType({"true": True, "1": True, "false": False, "0": False})
_HEADER_OF: Mapping[str, str] = MappingProxyType(
    {row.field: row.name for row in names.READ.values() if row.name.startswith("X-Workflow-")}
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path, an alias or a key puts a call; a stage may be left open."""

    workflow: str
    stage: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a call says of itself; empty strings, `step` 0 and None stand for what it does not say.

    `deadline` is in seconds from the run's first call. A call that names no run is a run of its own, and so the
    `final` one. `hints` knows `osl` (output tokens expected) and `resume`.
    `source` is the channel that named the workflow, else the one that named the stage. `body_keys_to_strip` are
    the members of the body that are for us alone and must not reach an engine.
    """

    workflow: str = ""
    run: str = ""
    stage: str = ""
    agent: str = ""
    parent: str = ""
    step: int = 0
    deadline: float | None = None
    slo: str = ""
    priority: int = 0
    hints: Mapping[str, int] = field(default_factory=dict)
    final: bool = False
    tools: Tools | None = None
    source: Source = "none"
    body_keys_to_strip: tuple[str, ...] = ()


NOBODY = Identity(final=True)
"""What a call says of itself that says nothing."""


def split_path(path: str) -> tuple[Place | None, str]:
    """The place that a path names, and the path without it: `/w/nl2sql/s/fix/v1/models` → (…, `/v1/models`).

    `path` is percent-decoded. Any other path comes back whole, with None.
    """
    match = _PATH.fullmatch(path) if path.startswith("/w/") else None
    if match is None:
        return None, path
    return Place(match["workflow"], match["stage"] or ""), match["rest"]


def alias_place(model: str, workflows: Container[str]) -> Place | None:
    """The place that a model name such as `nl2sql/fix` stands for; None when no known workflow comes first.

    Models are named with slashes too (`Qwen/Qwen2.5-Coder-7B-Instruct`), hence `workflows`.
    """
    workflow, slash, stage = model.partition("/")
    return Place(workflow, stage) if slash and stage and workflow in workflows else None


def read_identity(
    headers: Iterable[tuple[bytes, bytes]],
    body: Mapping[str, object] | None = None,
    *,
    path: Place | None = None,
    alias: Place | None = None,
    key_default: Place | None = None,
) -> Identity:
    """Put together what the channels say. Raises ApiError that names the header or the member of the body.

    `headers` as ASGI has them, names in lower case.
    """
    ours = names.read(headers)
    told = body is not None and ("workflow" in body or "metadata" in body)
    if not told and path is alias is key_default is None and _HEADER_OF.keys().isdisjoint(ours):
        return NOBODY
    said = _Said()
    for name, value in ours.items():
        if name in _HEADER_OF:
            # A byte that is not UTF-8 becomes a lone surrogate, which is not printable and so is refused later.
            said.add("header", _HEADER_OF[name], name, value.decode("utf-8", "surrogateescape"))
    said.add_body(body or {})
    said.add_place("path", "path", path)
    said.add_place("alias", "model", alias)
    said.add_place("key", "key", key_default)
    deadline_ms = said.integer("deadline_ms")
    run = said.text("run")
    final = said.flag("final")
    return Identity(
        workflow=said.text("workflow"),
        run=run,
        stage=said.text("stage"),
        agent=said.text("agent"),
        parent=said.text("parent"),
        step=said.integer("step") or 0,
        deadline=None if deadline_ms is None else deadline_ms / 1000,
        slo=said.text("slo"),
        priority=said.integer("priority") or 0,
        hints=said.hints(),
        final=final or not run,
        tools=said.tools(),
        source=said.source(),
        body_keys_to_strip=("workflow",) if body and "workflow" in body else (),
    )


class _Said:
    """The first that each field was given: by which channel, in which place, and as what."""

    def __init__(self) -> None:
        self._fields: dict[str, tuple[Source, str, object]] = {}

    def add(self, source: Source, where: str, field: str, value: object) -> None:
        if value is not None and field not in self._fields:
            self._fields[field] = (source, where, value)

    def add_body(self, body: Mapping[str, object]) -> None:
        workflow = body.get("workflow")
        if isinstance(workflow, Mapping):
            for key in workflow:
                if key not in _BODY_FIELDS:
                    raise unknown_member(key, tuple(_BODY_FIELDS), within="workflow.")
            for key, field in _BODY_FIELDS.items():
                self.add("body", f"workflow.{key}", field, workflow.get(key))
        elif workflow is not None:
            raise ill_formed("workflow", "must be an object")
        metadata = body.get("metadata")
        if isinstance(metadata, Mapping):
            # Metadata is the client's own: its `priority: high` is a mistake only where it also names a workflow.
            ours = "workflow_type" in metadata or "workflow_id" in metadata
            for key, field in _METADATA_FIELDS.items():
                value = metadata.get(key)
                if ours or _fits(field, value):
                    self.add("body", f"metadata.{key}", field, value)

    def add_place(self, source: Source, where: str, place: Place | None) -> None:
        if place is not None:
            self.add(source, where, "workflow", place.workflow)
            self.add(source, where, "stage", place.stage or None)

    def source(self) -> Source:
        first = self._fields.get("workflow") or self._fields.get("stage")
        return first[0] if first else "none"

    def text(self, field: str) -> str:
        said = self._fields.get(field)
        if said is None:
            return ""
        text = _as_text(said[2])
        if text is None:
            raise ill_formed(said[1], f"must be 1 to {ID_BYTES} bytes of printable text")
        return text

    def integer(self, field: str) -> int | None:
        said = self._fields.get(field)
        if said is None:
            return None
        low, high = _BOUNDS[field]
        number = _as_integer(said[2], low, high)
        if number is None:
            raise ill_formed(said[1], f"must be an integer from {low} to {high}")
        return number

    def flag(self, field: str) -> bool:
        said = self._fields.get(field)
        if said is None:
            return False
        flag = _as_flag(said[2])
        if flag is None:
            raise ill_formed(said[1], "must be true or false")
        return flag

    def tools(self) -> Tools | None:
        said = self._fields.get("tools")
        if said is None:
            return None
        if said[2] == "pass":
            return "pass"
        if said[2] == "ahead":
            return "ahead"
        if said[2] == "intercept":
            return "intercept"
        raise ill_formed(said[1], "must be pass, ahead or intercept")

    def hints(self) -> Mapping[str, int]:
        said = self._fields.get("hints")
        if said is None:
            return {}
        where, value = said[1:]
        if isinstance(value, str):
            return _known_hints(where, _dictionary(where, value))
        if isinstance(value, Mapping):
            return _known_hints(where, value)
        raise ill_formed(where, "must be an object")


def _as_text(value: object) -> str | None:
    if isinstance(value, str) and value.isprintable() and 0 < len(value.encode()) <= ID_BYTES:
        return value
    return None


def _as_integer(value: object, low: int, high: int) -> int | None:
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        value = int(value)
    return value if type(value) is int and low <= value <= high else None


def _as_flag(value: object) -> bool | None:
    if isinstance(value, str):
        return _FLAGS.get(value)
    return value if isinstance(value, bool) else None


def _fits(field: str, value: object) -> bool:
    if field in _BOUNDS:
        return _as_integer(value, *_BOUNDS[field]) is not None
    return (_as_flag(value) if field == "final" else _as_text(value)) is not None


def _dictionary(where: str, text: str) -> dict[str, object]:
    """The members of an RFC 8941 dictionary; booleans and integers as such, every other item as its text."""
    members: dict[str, object] = {}
    at = 0
    while at < len(text):
        match = _MEMBER.match(text, at)
        if match is None:
            raise ill_formed(where, "must be a list such as `osl=900, resume=?1`")
        value = match["value"] or "?1"
        if value in ("?0", "?1"):
            members[match["key"]] = value == "?1"
        else:
            members[match["key"]] = int(value) if _INTEGER.fullmatch(value) else value
        at = match.end()
    return members


def _known_hints(where: str, given: Mapping[str, object]) -> Mapping[str, int]:
    hints: dict[str, int] = {}
    osl, resume = given.get("osl"), given.get("resume")
    if osl is not None:
        if type(osl) is not int or not 1 <= osl <= OSL_MOST:
            raise ill_formed(where, f"osl must be an integer from 1 to {OSL_MOST}")
        hints["osl"] = osl
    if resume is not None:
        if not isinstance(resume, bool):
            raise ill_formed(where, "resume must be a boolean")
        hints["resume"] = resume
    return hints
