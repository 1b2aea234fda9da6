"""Every endpoint's way in and out: how many are inside, what went wrong as a reply, what came of it as metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from gateway.asgi import ClientLeft, Out
from gateway.away import begin
from gateway.openai.errors import ApiError, internal, unavailable
from gateway.settings import Limits

_log = logging.getLogger("cortex.relay")


class Counts(Protocol):
    """What the relay tells the metrics."""

    def answered(self, endpoint: str, status: int, seconds: float, own: float) -> None: ...

    def cancelled(self, endpoint: str) -> None: ...

    def failed(self, endpoint: str, reason: str) -> None: ...


class Door:
    """Lets so many requests in at once, with so many bytes, and answers what their endpoints raise."""

    def __init__(self, *, counts: Counts, limits: Limits, clock: Callable[[], float]) -> None:
        self._counts = counts
        self._limits = limits
        self._now = clock
        self.inside = 0
        self.held = 0

    async def __call__(self, endpoint: str, out: Out, serve: Callable[[Out], Awaitable[None]]) -> None:
        """Serve one request."""
        began, away = self._now(), begin(self._now)
        self.inside += 1
        try:
            if self.inside > self._limits.concurrent_calls:
                raise unavailable("the gateway holds as many calls as it may", retry_after=1.0)
            await serve(out)
            status, reason = out.status, out.reason or (f"status_{out.status}" if out.status >= 400 else "")
        except ClientLeft:
            self._counts.cancelled(endpoint)
            return
        except asyncio.CancelledError:
            # The server's grace is over, and this request is not: its client is told, not just cut off.
            ending = unavailable("the gateway is shutting down", retry_after=5.0)
            self._counts.failed(endpoint, ending.code)
            await out.fail(ending)
            raise
        except ApiError as error:
            status, reason = error.status, error.code
            await out.fail(error)
        except Exception:  # noqa: BLE001 - the root of the request: logged, and told to the client
            _log.exception("request failed endpoint=%s", endpoint)
            status, reason = 500, "internal_error"
            await out.fail(internal())
        finally:
            self.inside -= 1
        if reason:
            self._counts.failed(endpoint, reason)
        seconds = self._now() - began
        self._counts.answered(endpoint, status, seconds, max(0.0, seconds - away.seconds))

    @contextmanager
    def holding(self, body: bytes) -> Iterator[None]:
        """Count a body while its call is open. Raises ApiError 503 when the gateway holds too much already."""
        if self.held and self.held + len(body) > self._limits.held_bytes:
            raise unavailable("the gateway holds as many bytes as it may", retry_after=1.0)
        self.held += len(body)
        try:
            yield
        finally:
            self.held -= len(body)
