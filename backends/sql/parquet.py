"""A folder of Parquet files as a database: which tables it has, and what version of it that is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

_SUFFIX = ".parquet"


def parquet_tables(folder: str) -> dict[str, list[str]]:
    """The files of each table by its name. Raises OSError.

    `sales.parquet` is the table `sales`; a folder `sales` (or `sales.parquet`) with Parquet files at any depth is one
    table of them all. Names that begin with `.` or `_` are those of files that are still being written, or of notes
    about the others.
    """
    tables: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        files = sorted(_files(path)) if os.path.isdir(path) else [path] if _is_table(name) else []
        if files and not _is_hidden(name):
            tables.setdefault(name.removesuffix(_SUFFIX), []).extend(files)
    return tables


def parquet_version(folder: str) -> int:
    """Another number when a file of any table was added, replaced, changed or removed. Raises OSError."""
    digest = hashlib.sha256()
    for name, files in parquet_tables(folder).items():
        for file in files:
            stat = os.stat(file)
            version = (name, file, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino)
            digest.update(repr(version).encode(errors="surrogateescape"))
    return int.from_bytes(digest.digest()[:8])


def _files(folder: str) -> Iterator[str]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        yield from (os.path.join(place, name) for name in names if _is_table(name))


def _is_table(name: str) -> bool:
    return name.endswith(_SUFFIX) and not _is_hidden(name)


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_"))
