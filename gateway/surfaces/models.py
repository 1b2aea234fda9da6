"""The list of models, in OpenAI's shape or in Anthropic's."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

Json = dict[str, Any]


def listed(names: Sequence[str], created: int, *, anthropic: bool) -> Json:
    """All of them; `created` in whole seconds since 1970."""
    cards = [card(name, created, anthropic=anthropic) for name in names]
    if not anthropic:
        return {"object": "list", "data": cards}
    first, last = (names[0], names[-1]) if names else (None, None)
    return {"data": cards, "has_more": False, "first_id": first, "last_id": last}


def card(name: str, created: int, *, anthropic: bool) -> Json:
    """One of them."""
    if not anthropic:
        return {"id": name, "object": "model", "created": created, "owned_by": "cortex"}
    made = datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z")
    return {"type": "model", "id": name, "display_name": name, "created_at": made}
