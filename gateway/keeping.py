"""Keeps what was learned in a file: read at the start, written every so often and at the end."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from pathlib import Path

import orjson

from policies.profiles import Profiles
from policies.snapshot import ProfileError

_log = logging.getLogger("cortex.profiles")


def kept(path: Path | None) -> Mapping[str, object] | None:
    """What the file holds, if it can be used. One that cannot is no reason not to start: learning begins anew."""
    if path is None or not path.exists():
        return None
    try:
        data = orjson.loads(path.read_bytes())
        Profiles({}, {}).load(data)
    except (OSError, orjson.JSONDecodeError, ProfileError) as error:
        _log.warning("profiles are learned anew, those kept in %s cannot be used: %s", path, error)
        return None
    assert isinstance(data, dict)
    return data


class ProfileFile:
    """Writes the profiles to a file. What cannot be written is logged, and tried again the next time."""

    def __init__(self, profiles: Profiles, path: Path, *, every: float) -> None:
        self._profiles = profiles
        self._path = path
        self._every = every
        self._turn = threading.Lock()  # a save that was cancelled goes on in its thread

    async def run(self) -> None:
        """Save every so often until cancelled."""
        while True:
            await asyncio.sleep(self._every)
            await self.save()

    async def save(self) -> None:
        """Write a whole new file, then put it in the place of the old one: a crash leaves either."""
        data = self._profiles.dump()  # here, so that nothing changes under it; the rest is done in a thread
        try:
            await asyncio.to_thread(self._write, data)
        except OSError as error:
            _log.warning("profiles cannot be kept in %s: %s", self._path, error.strerror)

    def _write(self, data: Mapping[str, object]) -> None:
        new = self._path.with_name(f"{self._path.name}.new")
        with self._turn:
            new.write_bytes(orjson.dumps(data))
            new.replace(self._path)
