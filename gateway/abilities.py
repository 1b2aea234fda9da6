"""What each engine can do: asked when it comes up, told to the log, and looked up by whoever speaks to it."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace

from backends.base import Engine
from backends.capabilities import Capabilities
from gateway.openai.errors import ApiError
from policies.pool import EngineLimits

UNKNOWN = Capabilities()
_log = logging.getLogger("cortex.engines")


class Abilities:
    """By engine. `ordered` are the pools whose calls are to be ordered inside their engines too."""

    def __init__(self, *, ordered: Collection[str] = ()) -> None:
        self._ordered = ordered
        self._known: dict[str, Capabilities] = {}
        self._served: dict[str, frozenset[str]] = {}

    def check(self, pool: str, surface: str) -> None:
        """Raise ApiError 404 where not all of a pool's engines have a surface, as far as all of them tell theirs."""
        served = self._served.get(pool)
        if served is not None and surface not in served:
            has = ", ".join(sorted(served)) or "nothing that this gateway knows"
            message = f"the engines of pool '{pool}' do not serve {surface} (all of them serve: {has})"
            raise ApiError(message, code="not_found")

    def serves(self, engine: str, surface: str) -> bool:
        """Whether an engine may have a surface."""
        surfaces = self.of(engine).surfaces
        return surfaces is None or surface in surfaces

    def of(self, engine: str) -> Capabilities:
        """As it said when it was last asked."""
        return self._known.get(engine, UNKNOWN)

    async def ask(self, pool: str, name: str, engine: Engine) -> Capabilities:
        """Ask an engine that has come up, or has come back."""
        can = await engine.capabilities()
        if can.silent and name in self._known:
            return self._known[name]  # it is busy: what it said before holds
        self._know(pool, name, can)
        if can != UNKNOWN:
            _log.info("engine can engine=%s %s", name, said(can))
        for lack in self._lacks(pool, can):
            _log.warning("engine cannot engine=%s %s", name, lack)
        return can

    def forget(self, engine: str) -> None:
        self._know(engine.rpartition("/")[0], engine, None)

    def _know(self, pool: str, engine: str, can: Capabilities | None) -> None:
        """Keep what one engine can do, and what those of its pool can do together, while all of them say."""
        self._known.pop(engine, None)
        if can is not None:
            self._known[engine] = can
        told = [known.surfaces for name, known in self._known.items() if name.rpartition("/")[0] == pool]
        self._served.pop(pool, None)
        if told and None not in told:
            self._served[pool] = frozenset.intersection(*(surfaces for surfaces in told if surfaces is not None))

    def _lacks(self, pool: str, can: Capabilities) -> list[str]:
        """What is configured and not there, or counted upon."""
        lacks = []
        if pool in self._ordered and can.priority is False:
            lacks.append(
                "priority: it serves in the order of arrival (--scheduling-policy priority, or priority: false)"
            )
        if can.token_details is False:
            lacks.append("tell how many tokens of a prompt were cached (--enable-prompt-tokens-details)")
        if can.prefix_caching is False:
            lacks.append("keep prefixes (--enable-prefix-caching)")
        return lacks


def limited(limits: EngineLimits, can: Capabilities) -> EngineLimits:
    """An engine's limits, with the size of its KV memory where only the engine could tell it."""
    return limits if limits.kv_tokens is not None else replace(limits, kv_tokens=can.kv_tokens)


def said(can: Capabilities) -> str:
    """What is known, on one line."""
    words = {
        "version": _plain(can.version),
        "models": _plain(",".join(can.models)),
        "surfaces": ",".join(sorted(can.surfaces or ())),
        "longest": can.longest,
        "block_size": can.block_size,
        "kv_blocks": can.kv_blocks,
        "prefix_caching": can.prefix_caching,
        "token_details": can.token_details,
        "priority": can.priority,
        "ordering": can.ordering,
        "kv_events": _plain(",".join(source.endpoint for source in can.kv_events)),
        "sleeps": can.sleeps,
    }
    return " ".join(
        f"{name}={value}".lower() if value is True or value is False else f"{name}={value}"
        for name, value in words.items()
        if value not in (None, "")
    )


def _plain(text: str) -> str:
    """A server's words as they may stand in a log: on one line, and not without end."""
    return ascii(text)[1:-1][:200]
