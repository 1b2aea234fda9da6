"""The health of the event loop: by how much it is late when it is asked for a moment's work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

EVERY: Final = 0.25
"""Seconds between two samples."""


async def beat(late: Callable[[float], None], every: float = EVERY) -> None:
    """Sample until cancelled; `late` is told in seconds."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + every
        await asyncio.sleep(every)
        late(max(0.0, loop.time() - due))
