"""Who may come in: what must agree between the API keys, the host that is listened on, and `insecure`."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from functools import partial

from gateway.keys import hash_of
from gateway.keyspecs import ApiKey
from gateway.keystore import KeyFile, KeyFileError
from gateway.settings import Config
from gateway.yamlfile import Place

Fault = tuple[Place, str]
KEYS = "make one with `cortex keys create` and name its file (auth.file), or list some (auth.keys)"


def door(config: Config) -> Iterator[Fault]:
    """What is wrong with who may come in: nobody at all, or anybody by accident. Reads the file of keys."""
    auth, host = config.auth, config.server.host
    listed = "auth.keys" if auth.keys else "auth.file" if auth.file else ""
    if config.insecure:
        if listed:
            yield ("insecure",), f"true lets anybody in, and {listed} asks for a key: take one of the two away"
        elif not _loopback(host):
            message = f"{host} can be reached from outside, so callers need a key: {KEYS}, in the place of insecure"
            yield ("server", "host"), message
        return
    if not listed:
        yield ("auth",), f"no API key is configured: {KEYS}, or on a loopback host let anybody in (insecure: true)"
    yield from _listed_keys(config)
    if auth.file is not None:
        try:
            stored = KeyFile(auth.file, partial(complaint, config)).first()
        except KeyFileError as error:
            yield ("auth", "file"), f"{auth.file}: {error}"
        else:
            if not stored and not auth.keys:
                yield ("auth", "file"), f"{auth.file}: has no keys (cortex keys create makes one)"


def _listed_keys(config: Config) -> Iterator[Fault]:
    seen, names = Counter[bytes](), Counter[str]()
    admin = hash_of(config.admin.token) if config.admin.token else ""
    for index, key in enumerate(config.auth.keys):
        place = ("auth", "keys", index)
        within = (*key.faults(), *strangers(config, key))
        yield from (((*place, *where), message) for where, message in within)
        if (key.hash is None) == (key.key is None):
            continue
        secret = "key" if key.hash is None else "hash"
        seen[key.digest] += 1
        names[key.public] += 1
        if seen[key.digest] == 2:
            yield (*place, secret), "the same key stands further up"
        elif names[key.public] == 2:
            yield (*place, "id"), "another key further up has this id"
        if admin in (key.hash, key.key):
            yield (*place, secret), "is the admin token: a client would have the admin API"


def complaint(config: Config, key: ApiKey) -> str | None:
    """What is wrong with a key of the file, in this configuration."""
    if key.hash is not None and config.admin.token and key.hash == hash_of(config.admin.token):
        return "hash: is the admin token: a client would have the admin API"
    if any(key.public == other.public or key.digest == other.digest for other in config.auth.keys):
        return "id: a key of the configuration (auth.keys) has it, or is the same"
    return None


def strangers(config: Config, key: ApiKey) -> Iterator[Fault]:
    """The names in a key that stand for nothing in this configuration. In the file they are no fault: it may serve
    several gateways, and what is wrong with one key must not keep another from being revoked."""
    if key.workflow is not None and key.workflow not in config.workflows:
        yield ("workflow",), _unknown("workflow", key.workflow, config.workflows)
    for index, pattern in enumerate(key.pools or ()):
        if not any(fnmatchcase(pool, pattern) for pool in config.pools):
            yield ("pools", index), _unknown("pool", pattern, config.pools)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _unknown(what: str, name: str, known: Collection[str]) -> str:
    return f"no {what} named '{name}' ({what}s: {', '.join(known)})"
