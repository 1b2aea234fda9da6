"""Which run and stage a call belongs to, and what it asks for, from all the places where a client can say so.

Field by field the first that speaks wins: our headers; the body (its `workflow` object, then string members of
`metadata`); the path of the base_url; the alias used as model; the default that comes with the API key. What these
leave open is filled from one vendor's schema (`vendors.py`), then the run from a session named in passing
(`sessions.py`). Only in what was written for us is an ill-formed value an error.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from gateway import headers as names
from gateway import sessions, vendors
from gateway.lineage import Lineage
from gateway.openai.errors import ill_formed, unknown_member
from gateway.sessions import Responses, SessionSource
from gateway.spots import ID_BYTES, as_flag, as_integer, as_text
from gateway.vendors import ANY_SESSION, OSL_MOST, VendorName

Source = Literal["header", "body", "path", "alias", "key", VendorName, SessionSource, "inferred", "none"]
Tools = Literal["pass", "ahead", "intercept"]

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
_VENDORS = frozenset(vendor.name for vendor in vendors.VENDORS)
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
_OURS: Mapping[bytes, names.Header] = MappingProxyType(
    {name: row for name, row in names.READ.items() if name.startswith(b"x-workflow-")}
)
# These say nothing of whose call it is: keys, the request's own id, what the client is.
_QUIET_HEADERS = (names.READ.keys() - _OURS.keys()) | vendors.CLIENT
_NATIVE_HEADERS = _QUIET_HEADERS | _OURS.keys()
_READ_HEADERS = _NATIVE_HEADERS | vendors.HEADERS | sessions.HEADERS
_LAST = ANY_SESSION[-1]
_FOREIGN_MEMBERS = vendors.MEMBERS | sessions.MEMBERS
_PARTED_MEMBERS = frozenset(("workflow", "vllm_xargs"))
_READ_MEMBERS = _FOREIGN_MEMBERS | {"workflow", "metadata"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path, an alias or a key puts a call; a stage may be left open."""

    workflow: str
    stage: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a call says of itself; empty strings, `step` 0 and None stand for what it does not say.

    `deadline` is in seconds from the run's first call. A call that names no run is a run of its own, and so the
    `final` one; `last` is one that says itself that its run ends. `hints` knows `osl` (output tokens expected) and
    `resume`.
    `source` is the channel that named the workflow, else the one that named the stage, else the run. `weak`: the run
    is a guess, to which what the conversation itself shows is to be preferred. `hinted`: the stage is a
    vendor's word, to be passed over where it does not fit. `body_keys_to_strip` are the members of the body that are
    for us alone and must not reach an engine, `body_replaced` those that reach it in part, as it is to have them.
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
    last: bool = False
    tools: Tools | None = None
    source: Source = "none"
    weak: bool = False
    hinted: bool = False
    body_keys_to_strip: tuple[str, ...] = ()
    body_replaced: Mapping[str, object] = field(default_factory=dict)


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
    tenant: str = "",
    lineage: Lineage | None = None,
    responses: Responses | None = None,
) -> Identity:
    """Put together what the channels say. Raises ApiError that names the header or the member of the body.

    `headers` as ASGI has them, names in lower case. `lineage` and `responses` know what earlier calls have told;
    without them a sub-agent's run is the one of its parent, and an earlier response names none.
    """
    given = _read_headers(headers)
    body = body or {}
    silent = _QUIET_HEADERS.issuperset(given) and _READ_MEMBERS.isdisjoint(body)
    if silent and path is alias is key_default is None:
        return NOBODY
    said = _Said()
    said.add_headers(given)
    said.add_body(body)
    said.add_place("path", "path", path)
    said.add_place("alias", "model", alias)
    said.add_place("key", "key", key_default)
    if not (_NATIVE_HEADERS.issuperset(given) and _FOREIGN_MEMBERS.isdisjoint(body)):
        said.add_vendor(vendors.told(given, body, tenant=tenant, lineage=lineage))
        if said.by("run") is None:
            said.add_session(sessions.named(given, body, tenant=tenant, responses=responses))
    return said.identity(body)


def _read_headers(headers: Iterable[tuple[bytes, bytes]]) -> Mapping[bytes, bytes]:
    """The headers that somebody here reads, by name.

    Two values of one id are nobody's. Raises ApiError where the header is one of those in our own table; any other
    one is left out. Every call passes here, so nearly every header costs no more than a look-up.
    """
    found: dict[bytes, bytes] = {}
    twice: list[bytes] = []
    for name, value in headers:
        if name in _READ_HEADERS or (name[-1] == _LAST and name.endswith(ANY_SESSION)):
            if name in found:
                twice.append(name)
            found[name] = value
    for name in twice:
        if name in names.READ:
            raise ill_formed(names.READ[name].name, "is given twice")
        found.pop(name, None)
    return found


class _Said:
    """The first that each field was given: by which channel, in which place, and as what."""

    def __init__(self) -> None:
        self._fields: dict[str, tuple[Source, str, object]] = {}

    def add(self, source: Source, where: str, field: str, value: object) -> None:
        if value is not None and field not in self._fields:
            self._fields[field] = (source, where, value)

    def add_headers(self, given: Mapping[bytes, bytes]) -> None:
        for name, value in given.items():
            row = _OURS.get(name)
            if row is not None:
                # A byte that is not UTF-8 becomes a lone surrogate, which is not printable and so is refused later.
                self._fields[row.field] = ("header", row.name, value.decode("utf-8", "surrogateescape"))

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
                if value is not None and (ours or _fits(field, value)):
                    self.add("body", f"metadata.{key}", field, value)

    def add_place(self, source: Source, where: str, place: Place | None) -> None:
        if place is not None:
            self.add(source, where, "workflow", place.workflow)
            self.add(source, where, "stage", place.stage or None)

    def add_vendor(self, told: vendors.Told | None) -> None:
        if told is not None:
            for name, value in told.fields.items():
                self.add(told.name, told.name, name, value)

    def add_session(self, named: sessions.Named | None) -> None:
        if named is not None:
            self.add(named.source, named.source, "run", named.run)

    def by(self, field: str) -> Source | None:
        """The channel that gave a field."""
        said = self._fields.get(field)
        return said[0] if said is not None else None

    def identity(self, body: Mapping[str, object]) -> Identity:
        """What was said, read. Raises ApiError."""
        deadline_ms = self.integer("deadline_ms")
        run, run_by, stage_by = self.text("run"), self.by("run"), self.by("stage")
        final = self.flag("final")
        strip, replaced = _for_engines(body) if not _PARTED_MEMBERS.isdisjoint(body) else ((), {})
        return Identity(
            workflow=self.text("workflow"),
            run=run,
            stage=self.text("stage"),
            agent=self.text("agent"),
            parent=self.text("parent"),
            step=self.integer("step") or 0,
            deadline=None if deadline_ms is None else deadline_ms / 1000,
            slo=self.text("slo"),
            priority=self.integer("priority") or 0,
            hints=self.hints(),
            final=final or not run,
            last=final,
            tools=self.tools(),
            source=self.by("workflow") or stage_by or run_by or "none",
            weak=run_by == "trace",
            hinted=stage_by in _VENDORS,
            body_keys_to_strip=strip,
            body_replaced=replaced,
        )

    def text(self, field: str) -> str:
        said = self._fields.get(field)
        if said is None:
            return ""
        text = as_text(said[2])
        if text is None:
            raise ill_formed(said[1], f"must be 1 to {ID_BYTES} bytes of printable text")
        return text

    def integer(self, field: str) -> int | None:
        said = self._fields.get(field)
        if said is None:
            return None
        low, high = _BOUNDS[field]
        number = as_integer(said[2], low, high)
        if number is None:
            raise ill_formed(said[1], f"must be an integer from {low} to {high}")
        return number

    def flag(self, field: str) -> bool:
        said = self._fields.get(field)
        if said is None:
            return False
        flag = as_flag(said[2])
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


def _fits(field: str, value: object) -> bool:
    if field in _BOUNDS:
        return as_integer(value, *_BOUNDS[field]) is not None
    return (as_flag(value) if field == "final" else as_text(value)) is not None


def _for_engines(body: Mapping[str, object]) -> tuple[tuple[str, ...], Mapping[str, object]]:
    """The members that no engine is to see, and those that it is to see otherwise.

    vLLM refuses a request whose `vllm_xargs` hold an object, as those for vLLM Router do.
    """
    strip = ("workflow",) if "workflow" in body else ()
    extra = body.get("vllm_xargs")
    if not isinstance(extra, Mapping) or "agentic_context" not in extra:
        return strip, {}
    rest = {key: value for key, value in extra.items() if key != "agentic_context"}
    return (strip, {"vllm_xargs": rest}) if rest else ((*strip, "vllm_xargs"), {})


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
