"""The file of API keys: how it is read and written whole, and how a gateway that runs notices that it has changed.

Whoever writes it puts a new file in the place of the old one, so a reader never sees half of one. What cannot be
read, or is wrong in any place, leaves the keys as they were: a slip of an editor must lock nobody out.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
from pydantic import ValidationError

from gateway.keyspecs import StoredKey
from gateway.yamlfile import spelled

LOOK_EVERY = 1.0
"""Seconds between two looks at the file."""
BYTES_MOST = 64_000_000
KEYS_MOST = 100_000
_log = logging.getLogger("cortex.keys")

Entry = dict[str, object]
Check = Callable[[StoredKey], str | None]
"""What is wrong with a key besides what its file tells, or None."""


class KeyFileError(Exception):
    """Why a file of keys cannot be used, as one line without the file's name."""


@dataclass(frozen=True, slots=True)
class Sign:
    """By what a file is known to be another one, or another version."""

    device: int
    inode: int
    size: int
    written: int
    changed: int


def signed(found: os.stat_result) -> Sign:
    return Sign(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def entries(path: Path) -> list[Entry]:
    """What stands in the file, unchecked. Raises KeyFileError, and FileNotFoundError."""
    try:
        # Without O_NONBLOCK a pipe that nobody writes to would be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise KeyFileError(f"cannot be read: {error.strerror}") from None
    with open(descriptor, "rb") as stream:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise KeyFileError("is no file")
        if found.st_mode & stat.S_IWOTH:
            raise KeyFileError("anybody may write to it, and make keys (chmod o-w)")
        if found.st_size > BYTES_MOST:
            raise KeyFileError(f"is larger than {BYTES_MOST // 1_000_000} MB")
        raw = stream.read(BYTES_MOST + 1)
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise KeyFileError(f"is not JSON: {error}") from None
    match document:
        case {"keys": [*listed]} if len(document) == 1 and all(isinstance(one, dict) for one in listed):
            if len(listed) > KEYS_MOST:
                raise KeyFileError(f"has more than {KEYS_MOST} keys")
            return listed
    raise KeyFileError('must be {"keys": [...]}, with an object for each key')


def checked(
    listed: Sequence[Entry],
    check: Check | None = None,
    known: Mapping[str, tuple[Entry, StoredKey]] | None = None,
) -> dict[str, tuple[Entry, StoredKey]]:
    """The keys by their ids, each with what it was read from; what is in `known` already is taken from there.

    Raises KeyFileError for the first that is wrong, or that stands there twice.
    """
    found: dict[str, tuple[Entry, StoredKey]] = {}
    digests: set[bytes] = set()
    for index, entry in enumerate(listed):
        old = known.get(str(entry.get("id"))) if known else None
        if old is not None and old[0] == entry:
            key = old[1]
        else:
            key = _read(entry, index)
            if check is not None and (complaint := check(key)):
                raise KeyFileError(f"keys[{index}].{complaint}")
        if key.public in found or key.digest in digests:
            raise KeyFileError(f"keys[{index}]: the same key stands further up")
        found[key.public] = entry, key
        digests.add(key.digest)
    return found


def _read(entry: Entry, index: int) -> StoredKey:
    try:
        key = StoredKey.model_validate(entry)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise KeyFileError(f"{spelled(('keys', index, *first['loc']))}: {first['msg']}") from None
    for place, message in key.faults():
        raise KeyFileError(f"{spelled(('keys', index, *place))}: {message}")
    if key.id is None:
        raise KeyFileError(f"keys[{index}].id: missing")
    return key


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep others from writing the file between a reading and a writing of it. Raises OSError."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # given back with the descriptor
        yield
    finally:
        os.close(folder)


def write(path: Path, listed: Iterable[Entry]) -> None:
    """Put a new file in the place of the old one: for its owner alone, or as the old one was. Raises OSError."""
    text = orjson.dumps({"keys": list(listed)}, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as stream:
            with contextlib.suppress(OSError):  # there may be none, or it is somebody else's
                old = path.stat()
                os.fchown(descriptor, old.st_uid, old.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(old.st_mode) & 0o644)
            stream.write(text)
            stream.flush()
            os.fsync(descriptor)
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink()
        raise


class KeyFile:
    """The keys of a file that may change. `broken` is why its present state is not in force; empty where it is."""

    def __init__(self, path: Path, check: Check) -> None:
        self.path = path
        self.broken = ""
        self._check = check
        self._known: dict[str, tuple[Entry, StoredKey]] = {}
        self._sign: Sign | None = None

    def first(self) -> list[StoredKey]:
        """Read it at the start. Raises KeyFileError."""
        try:
            self._sign = signed(self.path.stat())
            return self._take()
        except OSError as error:
            raise KeyFileError(_reason(error)) from None

    def again(self) -> list[StoredKey] | None:
        """The keys, where the file is another than at the last look and in order; None where they stay."""
        try:
            sign = signed(self.path.stat())
            if sign == self._sign:
                return None
            self._sign = sign  # also of what is wrong, which need not be read again at every look
            found = self._take()
        except (KeyFileError, OSError) as error:
            self._keep(error)
            return None
        self.broken = ""
        _log.info("%s has changed: %d keys", self.path, len(found))
        return found

    def _keep(self, error: KeyFileError | OSError) -> None:
        reason = str(error)
        if isinstance(error, OSError):
            reason, self._sign = _reason(error), None
        if reason != self.broken:
            _log.error("the keys stay as they are: %s: %s", self.path, reason)
        self.broken = reason

    def _take(self) -> list[StoredKey]:
        self._known = checked(entries(self.path), self._check, self._known)
        return [key for _, key in self._known.values()]


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file (cortex keys create makes one)"
    return f"cannot be read: {error.strerror}"
