"""How other gateways and agents name a run, one entry each: what tells that it is theirs, and what stands where.

At most one of them speaks for a call: the first of `VENDORS` that names a session, else the first that says anything.
To add one, add its name to `VendorName` and its entry to `VENDORS`; `docs/headers.md` lists what they read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple

from gateway.lineage import Lineage
from gateway.spots import Body, Headers, Spot, as_flag, as_integer, as_text, header, member

VendorName = Literal[
    "dynamo",
    "vllm-router",
    "llm-d",
    "claude-code",
    "codex",
    "opencode",
    "litellm",
    "helicone",
    "smg",
    "aibrix",
    "envoy",
    "portkey",
]
# `root` is the run where a session has its own id and its root's as well; `osl` and `resume` are hints.
Field = Literal["workflow", "root", "run", "agent", "parent", "stage", "slo", "priority", "osl", "resume", "final"]

PRIORITY_MOST = 8
OSL_MOST = 10_000_000
_NUMBER_MOST = 10**15


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """One schema. The first spot of a field whose value fits wins.

    Where `client` or `signs` are given, the schema counts only if the client calls itself so (User-Agent or
    Originator) or one of those headers is there. `workflow` is the default name of what such a client does.
    `tree`: a session names its parent only, and the run is the one at the root. `ids` is what its ids look like.
    `priorities` are its words for them; numbers are higher first unless `lower_first`, and cut to our −8…8.
    """

    name: VendorName
    fields: Mapping[Field, Sequence[Spot]]
    client: bytes = b""
    signs: tuple[bytes, ...] = ()
    workflow: str = ""
    tree: bool = False
    ids: re.Pattern[str] | None = None
    priorities: Mapping[str, int] = field(default_factory=dict)
    lower_first: bool = False


class Told(NamedTuple):
    """What one vendor's schema says of a call, by the fields of an identity."""

    name: VendorName
    fields: Mapping[str, object]


def _after_session(text: str) -> str | None:
    return text.rpartition("_session_")[2] if "_session_" in text else None


def _last_segment(text: str) -> str | None:
    return text.rstrip("/").rpartition("/")[2]


ANY_SESSION = b"-session-id"
_XARGS = "vllm_xargs.agentic_context."

VENDORS: tuple[Vendor, ...] = (
    Vendor(
        name="dynamo",
        tree=True,
        fields={
            "run": (header("X-Dynamo-Session-ID"), member("nvext.agent_context.session_id")),
            "agent": (header("X-Dynamo-Session-ID"), member("nvext.agent_context.session_id")),
            "parent": (header("X-Dynamo-Parent-Session-ID"), member("nvext.agent_context.parent_session_id")),
            "final": (header("X-Dynamo-Session-Final"), member("nvext.agent_context.session_final")),
            "priority": (header("X-Dynamo-Request-Priority"), member("nvext.agent_hints.priority")),
            "osl": (member("nvext.agent_hints.osl"),),
        },
    ),
    Vendor(
        name="vllm-router",
        tree=True,
        fields={
            "root": (member(_XARGS + "root_program_id"),),
            "run": (member(_XARGS + "program_id"), member(_XARGS + "session_id"), member("agent_hint.session_id")),
            "agent": (member(_XARGS + "program_id"), member(_XARGS + "agent_id"), member("agent_hint.session_id")),
            "parent": (member(_XARGS + "parent_program_id"), member("agent_hint.parent_session_id")),
            "stage": (member(_XARGS + "agent_role"),),
            "priority": (member(_XARGS + "priority"),),
            "osl": (member(_XARGS + "expected_output_length"),),
            "resume": (member(_XARGS + "expected_resume"),),
        },
    ),
    Vendor(
        name="llm-d",
        fields={
            "run": (header("X-LLM-D-Inference-Fairness-Id"), header("X-Gateway-Inference-Fairness-Id")),
            "slo": (header("X-LLM-D-Inference-Objective"), header("X-Gateway-Inference-Objective")),
        },
    ),
    Vendor(
        name="claude-code",
        workflow="claude-code",
        fields={
            "run": (
                header("X-Claude-Code-Session-Id"),
                member("metadata.user_id.session_id"),
                Spot(name="metadata", path=("user_id",), body=True, take=_after_session, note="after `_session_`"),
            ),
            "agent": (header("X-Claude-Code-Agent-Id"),),
            "parent": (
                header("X-Claude-Code-Parent-Agent-Id"),
                header("X-Claude-Code-Session-Id", beside="X-Claude-Code-Agent-Id"),
            ),
            "stage": (
                header("X-Claude-Code-Request-Class", unless=("subagent", "workflow")),
                header("X-Claude-Code-Agent-Type"),
                header("X-Claude-Code-Request-Class"),
            ),
        },
    ),
    Vendor(
        name="codex",
        workflow="codex",
        client=b"codex",
        signs=(b"x-codex-turn-metadata", b"x-codex-window-id", b"x-codex-parent-thread-id"),
        fields={
            "run": (header("Session-Id"), header("Session_Id"), member("prompt_cache_key")),
            "agent": (header("Thread-Id"),),
            "parent": (header("X-Codex-Parent-Thread-Id"),),
            "stage": (
                header("X-Codex-Turn-Metadata", "request_kind", unless=("turn",)),
                header("X-OpenAI-Subagent"),
                header("X-Codex-Turn-Metadata", "subagent_kind"),
                header("X-Codex-Turn-Metadata", "request_kind"),
            ),
        },
    ),
    Vendor(
        name="opencode",
        workflow="opencode",
        client=b"opencode",
        signs=(b"x-parent-session-id", b"x-session-affinity"),
        tree=True,
        fields={
            "run": (header("X-Session-ID"),),
            "agent": (header("X-Session-ID"),),
            "parent": (header("X-Parent-Session-ID"),),
        },
    ),
    Vendor(
        name="litellm",
        ids=re.compile(r"[A-Za-z0-9_-]{8,}"),
        lower_first=True,
        fields={
            "run": (
                header("X-LiteLLM-Session-Id"),
                header("X-LiteLLM-Trace-Id"),
                member("litellm_session_id"),
                member("litellm_trace_id"),
                Spot(
                    name="X-…-Session-Id",
                    like=re.compile(rb"x-(?!.*parent-)[a-z0-9-]+-session-id"),
                    note="any other vendor's",
                ),
            ),
            "agent": (header("X-LiteLLM-Agent-Id"),),
            "priority": (header("X-LiteLLM-Priority"),),
        },
    ),
    Vendor(
        name="helicone",
        fields={
            "run": (header("Helicone-Session-Id"),),
            "workflow": (header("Helicone-Session-Name"),),
            "stage": (Spot(name="Helicone-Session-Path", take=_last_segment, note="its last segment"),),
        },
    ),
    Vendor(
        name="smg",
        priorities={"system": 8, "interactive": 4, "default": 0, "bulk": -8},
        fields={"run": (header("X-SMG-Routing-Key"),), "priority": (header("X-SMG-Priority"),)},
    ),
    Vendor(name="aibrix", fields={"run": (header("X-AIBrix-Session-Key"),)}),
    Vendor(name="envoy", fields={"run": (header("Agent-Session-Id"),)}),
    Vendor(
        name="portkey",
        fields={"run": (header("X-Portkey-Trace-Id"),), "stage": (header("X-Portkey-Span-Name"),)},
    ),
)


def _readers(*, body: bool) -> Mapping[str, frozenset[int]]:
    """The places in VENDORS of those that look at a header, in lower case, or at a member of the body."""
    found: dict[str, set[int]] = {}
    for place, vendor in enumerate(VENDORS):
        for spot in (spot for spots in vendor.fields.values() for spot in spots):
            if spot.body == body and spot.like is None:
                found.setdefault(spot.name if body else spot.name.lower(), set()).add(place)
    return {name: frozenset(places) for name, places in found.items()}


_BY_HEADER: Mapping[bytes, frozenset[int]] = MappingProxyType(
    {name.encode(): places for name, places in _readers(body=False).items()}
)
_BY_MEMBER: Mapping[str, frozenset[int]] = MappingProxyType(_readers(body=True))
_BY_LIKE = frozenset(
    place
    for place, vendor in enumerate(VENDORS)
    if any(spot.like is not None for spots in vendor.fields.values() for spot in spots)
)
HEADERS = _BY_HEADER.keys() | {sign for vendor in VENDORS for sign in vendor.signs}
"""Names of headers, in lower case, that say something of a call. So may others that end in ANY_SESSION."""
CLIENT = frozenset((b"user-agent", b"originator"))
"""Headers in which a client says what it is."""
MEMBERS = frozenset(_BY_MEMBER)
"""Members of the body of which one at least is there when a vendor speaks in the body."""


def told(headers: Headers, body: Body, *, tenant: str = "", lineage: Lineage | None = None) -> Told | None:
    """What the one vendor says whose schema this call has; None where it has none."""
    places: set[int] = set()
    for name in _BY_HEADER.keys() & headers.keys():
        places |= _BY_HEADER[name]
    for key in MEMBERS & body.keys():
        places |= _BY_MEMBER[key]
    if any(name.endswith(ANY_SESSION) for name in headers):
        places |= _BY_LIKE
    spare: Told | None = None
    for place in sorted(places):
        vendor = VENDORS[place]
        if not _is_its(vendor, headers):
            continue
        found = _found(vendor, headers, body)
        if "run" in found or "root" in found:
            return Told(vendor.name, _identified(vendor, found, tenant, lineage))
        if found and spare is None:
            spare = Told(vendor.name, _hinted(found))
    return spare


def _is_its(vendor: Vendor, headers: Headers) -> bool:
    """Whether it is this vendor's client that calls, where the names of its headers do not tell."""
    if not vendor.client or not headers.keys().isdisjoint(vendor.signs):
        return True
    return any(vendor.client in headers.get(name, b"").lower() for name in CLIENT)


def _found(vendor: Vendor, headers: Headers, body: Body) -> dict[Field, object]:
    found: dict[Field, object] = {}
    for name, spots in vendor.fields.items():
        for spot in spots:
            value = _fitting(vendor, name, spot.value(headers, body))
            if value is not None:
                found[name] = value
                break
    return found


def _fitting(vendor: Vendor, name: Field, value: object) -> object:
    """A value as its field has it, or None where it does not fit."""
    if value is None:
        return None
    if name in ("final", "resume"):
        return as_flag(value)
    if name == "osl":
        return as_integer(value, 1, OSL_MOST)
    if name == "priority":
        return _priority(vendor, value)
    text = as_text(value)
    if text is not None and name == "run" and vendor.ids is not None and not vendor.ids.fullmatch(text):
        return None
    return text


def _priority(vendor: Vendor, value: object) -> int | None:
    if vendor.priorities:
        return vendor.priorities.get(value.lower()) if isinstance(value, str) else None
    number = as_integer(value, -_NUMBER_MOST, _NUMBER_MOST)
    if number is None:
        return None
    return max(-PRIORITY_MOST, min(PRIORITY_MOST, -number if vendor.lower_first else number))


def _identified(
    vendor: Vendor, found: dict[Field, object], tenant: str, lineage: Lineage | None
) -> Mapping[str, object]:
    """What is found, with the run that the session belongs to, and the name of what such a client does."""
    session, parent = str(found.get("run") or found["root"]), str(found.get("parent") or "")
    root = found.pop("root", None)
    if root is None and vendor.tree:
        root = lineage.root(tenant, session, parent) if lineage is not None else parent or session
    run = str(root or session)
    if parent or run != session:  # the end of a sub-agent is not the run's
        found.pop("final", None)
    if vendor.workflow:
        found.setdefault("workflow", vendor.workflow)
    return {**_hinted(found), "run": run}


def _hinted(found: dict[Field, object]) -> dict[str, object]:
    hints = {name: found[name] for name in ("osl", "resume") if name in found}
    rest: dict[str, object] = {name: value for name, value in found.items() if name not in hints}
    return rest | {"hints": hints} if hints else rest
