"""Which names a gateway answers to where nobody needs a key: those that no page of others in a browser can be behind.

A page may let a name of its own lead to this machine, and then ask here as if it were its own server (DNS rebinding).
Its requests give it away by that name in `Host`. What a page sends to another server has `Origin`, by which it is
known in the same way. An address is no name that anybody can lead elsewhere, so as `Host` all of them will do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gateway.openai.errors import ApiError, misdirected, shown

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_ADDRESS = rb"[0-9.]+|\[[0-9a-f:.]+\]"


class Hosts:
    """The names by which this machine may be asked: its own, and those that are configured."""

    def __init__(self, allowed: Iterable[str]) -> None:
        names = b"|".join(re.escape(name.lower()).encode() for name in (*LOOPBACK, *allowed))
        self._host = re.compile(rb"(?:%b|%b)(?::[0-9]+)?" % (names, _ADDRESS), re.IGNORECASE).fullmatch
        self._origin = re.compile(rb"https?://(?:%b)(?::[0-9]+)?" % names, re.IGNORECASE).fullmatch

    def check(self, host: bytes | None, origin: bytes | None) -> None:
        """Raises ApiError: 421 for a host, 403 for an origin. A request without either comes from no browser."""
        if host is not None and self._host(host) is None:
            name = shown(host.decode("latin-1"))
            message = f"Host: this gateway is not called '{name}' (server.allowed_hosts, or use an API key)"
            raise misdirected(message)
        if origin is not None and self._origin(origin) is None and not _same(host, origin):
            name = shown(origin.decode("latin-1"))
            message = f"Origin: pages of '{name}' may not ask here (server.allowed_hosts, or use an API key)"
            raise ApiError(message, code="permission_denied", param="Origin")


def _same(host: bytes | None, origin: bytes) -> bool:
    """Whether a page comes from this very server."""
    return host is not None and origin.lower() in (b"http://" + host.lower(), b"https://" + host.lower())
