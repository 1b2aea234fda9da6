"""The file of keys: what a gateway makes of a new one, a changed one and a hostile one."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from gateway.access import Access, Caller
from gateway.cli import main, read_config
from gateway.config import ConfigError
from gateway.keys import draw, hash_of
from gateway.openai.errors import ApiError
from tests.gateway.support import written

POOLS = {"default": {"model": "m", "backend": {"name": "emulated"}}}
ADA, BOB = "key-of-ada", "key-of-bob"


class Site:
    """A gateway's access by a file of keys, with clocks that stand."""

    def __init__(self, folder: Path, *entries: dict[str, Any], **auth: object) -> None:
        self.file = folder / "keys.json"
        self.put(*entries)
        (folder / "config.yaml").write_text(written(POOLS, auth={"file": "keys.json", **auth}))
        self.now = self.wall = 1_000_000.0
        config = read_config(folder / "config.yaml", {})
        self.access = Access(config, clock=lambda: self.now, wall=lambda: self.wall)

    def put(self, *entries: dict[str, Any]) -> None:
        """Put a new file in the place of the old one, with a look at it due."""
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps({"keys": entries}))
        new.rename(self.file)
        self.now = getattr(self, "now", 0.0) + 1

    def caller(self, key: str) -> Caller:
        return self.access.caller([(b"host", b"x"), (b"authorization", b"Bearer " + key.encode())])

    def opens(self, key: str) -> bool:
        with contextlib.suppress(ApiError):
            return bool(self.caller(key).tenant)
        return False


def entry(key: str, **more: object) -> dict[str, Any]:
    return {"id": f"id-{key}", "hash": hash_of(key), "tenant": "t", **more}


def test_a_drawn_key_has_its_id_and_more_than_128_random_bits() -> None:
    one, other = draw(), draw()
    prefix, public, secret = one.text.split("_", 2)
    assert (prefix, public) == ("ck", one.id)
    assert len(secret) == 32  # six bits each
    assert one.text != other.text
    assert one.id != other.id


def test_a_new_key_is_taken_and_a_revoked_one_refused_without_a_restart(tmp_path: Path) -> None:
    site = Site(tmp_path, entry(ADA))
    assert (site.opens(ADA), site.opens(BOB)) == (True, False)
    site.put(entry(ADA), entry(BOB, tenant="bob"))
    assert (site.opens(ADA), site.caller(BOB).tenant) == (True, "bob")
    assert site.access.tenants == {"t", "bob"}
    site.put(entry(BOB, tenant="bob"))
    assert (site.opens(ADA), site.opens(BOB)) == (False, True)
    site.put()
    assert (site.opens(ADA), site.opens(BOB)) == (False, False), "no key is left, and nobody is let in for that"


def test_the_file_is_looked_at_once_in_a_second_and_read_where_it_has_changed(tmp_path: Path) -> None:
    site = Site(tmp_path, entry(ADA))
    site.put()
    site.now -= 0.5
    assert site.opens(ADA), "nobody has looked yet"
    site.now += 0.5
    assert not site.opens(ADA)


def test_a_file_that_is_written_in_place_is_seen_too(tmp_path: Path) -> None:
    site = Site(tmp_path, entry(ADA))
    site.file.write_text(json.dumps({"keys": [entry(ADA), entry(BOB)]}))
    site.now += 1
    assert site.opens(BOB)


def test_what_is_left_of_a_key_stays_when_the_file_changes(tmp_path: Path) -> None:
    site = Site(tmp_path, entry(ADA, requests="2/m"))
    before = site.caller(ADA)
    assert before.quota is not None
    before.quota.enter(site.now)
    site.put(entry(ADA, requests="2/m"), entry(BOB))
    assert site.caller(ADA) is before
    site.put(entry(ADA, requests="2/m", expires="2100-01-01"))
    assert site.caller(ADA).quota is before.quota
    site.put(entry(ADA, requests="3/m"))
    assert site.caller(ADA).quota is not before.quota


def test_a_key_expires_and_only_its_holder_is_told_so(tmp_path: Path) -> None:
    site = Site(tmp_path, entry(ADA, expires="2027-01-31T12:00:00Z"))
    site.wall = 1_801_396_800.0 - 0.001
    assert site.opens(ADA)
    site.wall += 0.001
    with pytest.raises(ApiError) as caught:
        site.caller(ADA)
    assert (caught.value.status, caught.value.code) == (401, "expired_api_key")
    with pytest.raises(ApiError) as caught:
        site.caller(BOB)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")


def test_a_date_is_its_first_moment_in_utc(tmp_path: Path) -> None:
    site = Site(tmp_path, entry(ADA, expires="2027-01-31"), entry(BOB, expires="2027-01-31T01:00:00+02:00"))
    assert site.caller(ADA).expires == 1_801_353_600.0
    assert site.caller(BOB).expires == 1_801_353_600.0 - 3600


BROKEN = {
    "no JSON": b"{",
    "empty": b"",
    "no UTF-8": b'{"keys": ["\xff"]}',
    "a list": b"[]",
    "another member": b'{"keys": [], "more": 1}',
    "a text": b'{"keys": ["x"]}',
    "nested": b'{"keys": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "no id": json.dumps({"keys": [{"hash": hash_of(BOB), "tenant": "t"}]}).encode(),
    "no hash": b'{"keys": [{"id": "b", "tenant": "t"}]}',
    "a key": b'{"keys": [{"id": "b", "tenant": "t", "key": "key-of-bob"}]}',
    "a short hash": b'{"keys": [{"id": "b", "tenant": "t", "hash": "sha256:00"}]}',
    "another hash": json.dumps({"keys": [entry(BOB, hash="md5:" + "0" * 64)]}).encode(),
    "an unknown member": json.dumps({"keys": [entry(BOB, admin=True)]}).encode(),
    "a wrong rate": json.dumps({"keys": [entry(BOB, requests="0/m")]}).encode(),
    "a wrong time": json.dumps({"keys": [entry(BOB, expires=True)]}).encode(),
    "a wrong order": json.dumps({"keys": [entry(BOB, deadline={"min": "2s", "max": "1s"})]}).encode(),
    "a tenant that is none": json.dumps({"keys": [entry(BOB, tenant="../x")]}).encode(),
    "one key twice": json.dumps({"keys": [entry(BOB), entry(BOB, id="other")]}).encode(),
    "one id twice": json.dumps({"keys": [entry(BOB), entry("another key", id=f"id-{BOB}")]}).encode(),
    "the key of the configuration": json.dumps({"keys": [entry("listed")]}).encode(),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_file_that_is_wrong_leaves_the_keys_as_they_were(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(tmp_path, entry(ADA), keys=[{"key": "listed", "tenant": "t"}])
    site.file.write_bytes(content)
    for _ in range(3):
        site.now += 1
        assert (site.opens(ADA), site.opens(BOB), site.opens("listed")) == (True, False, True)
    assert site.access.broken
    assert [record.levelno for record in caplog.records] == [logging.ERROR], "said once"
    assert "keys.json" in caplog.text
    assert hash_of(BOB) not in caplog.text
    site.put(entry(BOB))
    assert (site.opens(ADA), site.opens(BOB)) == (False, True)
    assert not site.access.broken


def test_a_file_that_goes_away_and_comes_back_is_told_and_read(tmp_path: Path) -> None:
    site = Site(tmp_path, entry(ADA))
    aside = site.file.rename(tmp_path / "aside")
    site.now += 1
    assert site.opens(ADA)
    assert site.access.broken
    aside.rename(site.file)
    site.now += 1
    assert site.opens(ADA)
    assert not site.access.broken


def test_a_file_that_anybody_may_write_to_and_a_pipe_are_not_read(tmp_path: Path) -> None:
    site = Site(tmp_path, entry(ADA))
    site.put(entry(BOB))
    site.file.chmod(0o666)
    assert (site.opens(ADA), site.opens(BOB)) == (True, False)
    site.file.unlink()
    os.mkfifo(site.file)
    site.now += 1
    assert site.opens(ADA)
    site.file.unlink()
    site.file.mkdir()
    site.now += 1
    assert site.opens(ADA)
    assert site.access.broken


def test_names_that_mean_nothing_here_are_told_and_let_nobody_further_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(tmp_path, entry(ADA, workflow="nowhere", pools=["x-*"]))
    assert "key id-key-of-ada: workflow: no workflow named 'nowhere'" in caplog.text
    assert not site.caller(ADA).may_use("default")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "auth.file: {file}: no such file (cortex keys create makes one)"),
        ('{"keys": []}', "auth.file: {file}: has no keys (cortex keys create makes one)"),
        ("[]", 'auth.file: {file}: must be {{"keys": [...]}}, with an object for each key'),
        ('{"keys": [{"id": "x"}]}', "auth.file: {file}: keys[0].tenant: missing, and has no default"),
        (json.dumps({"keys": [entry("admins")]}),
         "auth.file: {file}: keys[0].hash: is the admin token: a client would have the admin API"),
    ],
    ids=["none", "empty", "no object", "a wrong key", "the admin's"],
)  # fmt: skip
def test_a_gateway_does_not_start_on_a_file_that_is_wrong(
    tmp_path: Path, content: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "keys.json").write_text(content)
    path = tmp_path / "config.yaml"
    path.write_text(written(POOLS, auth={"file": "keys.json"}, admin={"token": "admins"}))
    for command in ("check", "serve"):
        assert main([command, str(path)]) == 2
        assert capsys.readouterr().err == f"{path}:1: {said.format(file=tmp_path / 'keys.json')}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("server: {port: 0}\n", ":1: auth: no API key is configured: make one with `cortex keys create`"),
        ("server: {port: 0}\nauth: {keys: []}\n", ":2: auth: no API key is configured"),
        ("insecure: false\n", "insecure: true"),
        ("insecure: true\nserver: {host: 0.0.0.0}\n", ":2: server.host: 0.0.0.0 can be reached from outside"),
        ("insecure: true\nauth: {file: keys.json}\n", ":1: insecure: true lets anybody in, and auth.file asks"),
        (
            "insecure: true\nauth: {keys: [{key: '${K}', tenant: t}]}\n",
            "insecure: true lets anybody in, and auth.keys",
        ),
    ],
)
def test_nobody_is_let_in_by_accident(
    tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("K", "a key")
    path = tmp_path / "config.yaml"
    path.write_text(f"{text}pools: {{p: {{model: m, backend: {{name: emulated}}}}}}\n")
    for command in ("check", "serve"):
        assert main([command, str(path)]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_a_file_of_keys_beside_those_of_the_configuration_may_be_empty(tmp_path: Path) -> None:
    site = Site(tmp_path, keys=[{"key": "listed", "tenant": "t"}])
    assert site.opens("listed")


def test_a_wrong_key_of_the_configuration_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    listed = {"hash": hash_of(ADA), "tenant": "t"}
    for keys, said in (
        ([listed, listed], "auth.keys[1].hash: the same key stands further up"),
        ([{**listed, "id": "a"}, {"hash": hash_of(BOB), "id": "a", "tenant": "t"}], "auth.keys[1].id: another key"),
        ([{**listed, "pools": ["x", "default"]}], "auth.keys[0].pools[0]: no pool named 'x' (pools: default)"),
        ([{**listed, "models": []}], "auth.keys[0].models: must not be empty"),
        ([{**listed, "requests": "60"}], "auth.keys[0].requests: must be a rate such as 5/s, 60/m"),
        ([{**listed, "expires": "soon"}], "auth.keys[0].expires: must be a date or a time such as"),
        ([{**listed, "deadline": {"min": "3s", "max": "1s"}}], "auth.keys[0].deadline: min is above max"),
        ([{**listed, "hash": "x"}], "auth.keys[0].hash: must be sha256: and 64 hexadecimal digits"),
        ([{"tenant": "t"}], "auth.keys[0].hash: missing"),
        ([{**listed, "key": "${K}"}], "auth.keys[0].hash: there is a key, too"),
    ):
        path.write_text(json.dumps({"auth": {"keys": keys}, "pools": POOLS}))
        with pytest.raises(ConfigError) as caught:
            read_config(path, {"K": "a key"})
        assert f"{path}:1: {said}" in str(caught.value)


def test_a_key_in_the_configuration_comes_whole_from_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for text, fine in (
        *[("${K}", True), ("${K:-}", True)],
        *[("a key", False), ("${K:-a key}", False), ("$${K}", False), ("x${K}", False), ("${K}${K}", False)],
    ):
        path.write_text(json.dumps({"auth": {"keys": [{"key": text, "tenant": "t"}]}, "pools": POOLS}))
        if fine:
            config = read_config(path, {"K": "a key"})
            assert config.auth.keys[0].key == hash_of("a key")
            assert "a key" not in repr(config)
        else:
            with pytest.raises(ConfigError, match=r"a key itself does not belong in a file.*cortex keys hash"):
                read_config(path, {"K": "a key"})
