"""What stands before a pool of SQL workers: how statements are read, and what is kept of their results."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import cast

from backends.sql.cache import ExactTexts, Generation, ResultCache, ResultKey, generation
from backends.sql.parser import Parser
from gateway.backendspecs import DuckDb
from gateway.settings import Config
from gateway.tools import Results, Warehouse
from policies.dialects import Known
from policies.sql import Statement

_log = logging.getLogger("cortex.sql")


def warehouses_of(config: Config, parsers: Mapping[str, Parser]) -> dict[str, Warehouse]:
    """One for each pool of SQL workers."""
    stores = {name: pool.backend for name, pool in config.pools.items() if isinstance(pool.backend, DuckDb)}
    return {name: _warehouse(name, settings, parsers[name]) for name, settings in stores.items()}


def _warehouse(name: str, settings: DuckDb, parser: Parser) -> Warehouse:
    missing: set[str] = set()

    def version(database: str) -> Generation:
        """Raises OSError, once with a word to the operator: clients are not told which file it is."""
        path = settings.databases[database]
        try:
            found = generation(str(path))
        except OSError as error:
            if database not in missing:
                missing.add(database)
                _log.warning(
                    "database cannot be read pool=%s database=%s: %s: %s", name, database, path, error.strerror
                )
            raise
        missing.discard(database)
        return found

    def key(tenant: str, database: str, canonical: str, limit: int) -> ResultKey:
        return ResultKey(
            tenant=tenant,
            database=database,
            generation=version(database),
            canonical=canonical,
            limit=limit,
            max_bytes=settings.max_bytes,
        )

    def current(key: Hashable) -> bool:
        assert isinstance(key, ResultKey)
        try:
            return version(key.database) == key.generation
        except OSError:
            return False

    return Warehouse(
        pool=name,
        settings=settings,
        reader=_Reader(parser, ExactTexts()),
        kept=cast(Results, ResultCache(settings.cache)),
        key=key,
        current=current,
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads a text that was read before from memory, any other in the helper process."""

    parser: Parser
    texts: ExactTexts

    def known(self, text: str, dialect: str, columns: Known | None) -> Statement | None:
        return self.texts.get(text, dialect, columns)

    async def read(self, text: str, dialect: str, columns: Known | None, tenant: str) -> Statement:
        known = self.texts.get(text, dialect, columns)
        if known is None:
            known = await self.parser.read(text, dialect, parameters=True, known=columns, tenant=tenant)
            self.texts.put(text, dialect, known, columns)
        return known
