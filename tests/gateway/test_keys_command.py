"""`cortex keys` as people run it: what it prints where, what it writes, and how it says what is wrong."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import main
from gateway.keys import hash_of

Capture = pytest.CaptureFixture[str]
ALL = (
    "--workflow nl2sql --pools sql-*,warehouse --pools more --models Qwen/* --requests 60/m --tokens 100000/m "
    "--concurrency 8 --deadline-min 2s --deadline-max 60s --priority-min -4 --priority-max 0 --expires 30d"
)


@pytest.fixture(name="file")
def _file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "keys.json"


def kept(file: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(file.read_text())["keys"]
    return entries


def test_a_key_is_made_by_the_command_and_shown_once(file: Path) -> None:
    command = [sys.executable, "-m", "gateway", "keys", "create", "--tenant", "team-a"]
    made = subprocess.run(command, capture_output=True, text=True, check=False, cwd=file.parent, timeout=60)
    assert (made.returncode, made.stdout.count("\n")) == (0, 1)
    (entry,) = kept(file)
    assert entry["hash"] == hash_of(made.stdout.strip())
    assert made.stdout.strip() not in file.read_text() + made.stderr
    assert f"key {entry['id']} of team-a stands in keys.json as a hash" in made.stderr
    assert "auth: {file: keys.json}" in made.stderr


def test_a_key_is_revoked_by_its_id(file: Path, capsys: Capture) -> None:
    main(["keys", "create", "--tenant", "t"])
    main(["keys", "create", "--tenant", "other"])
    capsys.readouterr()
    first, second = kept(file)
    assert main(["keys", "revoke", first["id"]]) == 0
    assert capsys.readouterr() == ("", f"key {first['id']} of t is revoked; requests that are open go on\n")
    assert kept(file) == [second]
    assert main(["keys", "revoke", first["id"]]) == 2
    said = f"cortex keys: no key has the id '{first['id']}' in keys.json (cortex keys list shows them)\n"
    assert capsys.readouterr().err == said


def test_all_that_a_key_may_is_written_and_listed(file: Path, capsys: Capture) -> None:
    assert main(["keys", "create", "--tenant", "team-a", *ALL.split()]) == 0
    assert file.stat().st_mode & 0o777 == 0o600
    (entry,) = kept(file)
    now = datetime.now(UTC)
    assert abs(datetime.fromisoformat(entry.pop("expires")) - now - timedelta(days=30)) < timedelta(minutes=1)
    assert abs(datetime.fromisoformat(entry.pop("created")) - now) < timedelta(minutes=1)
    assert capsys.readouterr().out.startswith(f"ck_{entry.pop('id')}_")
    assert entry.pop("hash").startswith("sha256:")
    assert entry == {
        "tenant": "team-a",
        "workflow": "nl2sql",
        "pools": ["sql-*", "warehouse", "more"],
        "models": ["Qwen/*"],
        "requests": "60/m",
        "tokens": "100000/m",
        "concurrency": 8,
        "deadline": {"min": "2s", "max": "60s"},
        "priority": {"min": -4, "max": 0},
    }
    assert main(["keys", "create", "--tenant", "b", "--deadline-max", "5s"]) == 0
    entries = kept(file)
    entries[1]["expires"] = "2020-01-31"
    file.write_text(json.dumps({"keys": entries}))
    capsys.readouterr()
    assert main(["keys", "list"]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["ID", "TENANT", "WORKFLOW", "POOLS", "MODELS", "LIMITS", "EXPIRES", "CREATED"]
    said = "60/m requests, 100000/m tokens, 8 open, deadline 2s..60s, priority -4..0"
    for part in ("team-a", "nl2sql", "sql-*,warehouse,more", "Qwen/*", said):
        assert part in first
    for part in (" b ", " all ", "deadline ..5s", "expired"):
        assert part in second
    assert "sha256" not in first + second


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--requests 60", "--requests: must be a rate such as 5/s, 60/m, 1000/h or 1000000/d"),
        ("--tokens 0/m", "--tokens: must be a rate"),
        ("--concurrency 0", "--concurrency: must be at least 1"),
        ("--deadline-min 5", "--deadline-min: 5 has no unit; write a duration such as 8s"),
        ("--deadline-min 5s --deadline-max 4s", "--deadline-min: min is above max"),
        ("--priority-max 9", "--priority-max: must be at most 8"),
        ("--priority-min 2 --priority-max 1", "--priority-min: min is above max"),
        ("--expires soon", "--expires: must be a date or a time such as 2027-01-31"),
        ("--expires 2020-01-31", "--expires: is in the past"),
        ("--expires 0d", "--expires: must be a date or a time"),
        ("--pools=", "--pools: must not be empty"),
        ("--models=a,,b", "--models: must not be empty"),
        ("--workflow=", "--workflow: must not be empty"),
        ("--file nowhere/keys.json", "nowhere: No such file or directory"),
    ],
)
def test_an_option_that_is_wrong_is_named_and_nothing_written(
    file: Path, capsys: Capture, options: str, said: str
) -> None:
    assert main(["keys", "create", "--tenant", "t", *options.split()]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert error.startswith("cortex keys: ")
    assert said in error
    assert not file.exists()


def test_a_tenants_name_is_checked(file: Path, capsys: Capture) -> None:
    assert main(["keys", "create", "--tenant", "team a"]) == 2
    assert "--tenant: a name has letters" in capsys.readouterr().err
    assert not file.exists()


def test_a_file_that_is_wrong_is_not_written_over(file: Path, capsys: Capture) -> None:
    for content, said in (
        ("{", "keys.json: is not JSON"),
        ('{"keys": [{"id": "x", "tenant": "t"}]}', "keys.json: keys[0].hash: missing"),
    ):
        file.write_text(content)
        for command in (["create", "--tenant", "t"], ["list"], ["revoke", "x"]):
            assert main(["keys", *command]) == 2
            out, error = capsys.readouterr()
            assert (out, error.count("\n")) == ("", 1)
            assert said in error
        assert file.read_text() == content
        assert [path.name for path in file.parent.iterdir()] == ["keys.json"], "nothing is left beside it"


def test_without_a_file_there_is_nothing_to_list_or_revoke(file: Path, capsys: Capture) -> None:
    for command in (["list"], ["revoke", "x"]):
        assert main(["keys", *command, "--file", str(file)]) == 2
        assert capsys.readouterr().err == f"cortex keys: {file}: No such file or directory\n"


def test_commands_at_the_same_time_lose_no_key(file: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        states = list(threads.map(lambda n: main(["keys", "create", "--tenant", f"t{n}"]), range(24)))
    assert states == [0] * 24
    assert sorted(entry["tenant"] for entry in kept(file)) == sorted(f"t{n}" for n in range(24))


def test_a_file_keeps_its_mode_but_for_what_lets_others_write(file: Path) -> None:
    for before, after in ((0o644, 0o644), (0o660, 0o640), (0o600, 0o600)):
        main(["keys", "create", "--tenant", "t"])
        file.chmod(before)
        main(["keys", "create", "--tenant", "t"])
        assert file.stat().st_mode & 0o777 == after


def test_what_was_there_stays_as_it_was(file: Path) -> None:
    mine = {"hash": hash_of("mine"), "tenant": "t", "id": "mine", "priority": {"max": 1}}
    file.write_text(json.dumps({"keys": [mine]}))
    main(["keys", "create", "--tenant", "t"])
    assert kept(file)[0] == mine


def test_a_key_that_exists_is_hashed_from_the_input(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("0123456789abcdef\n"))
    assert main(["keys", "hash"]) == 0
    assert capsys.readouterr() == (hash_of("0123456789abcdef") + "\n", "")
    monkeypatch.setattr("sys.stdin", io.StringIO("secret\n"))
    assert main(["keys", "hash"]) == 2
    out, error = capsys.readouterr()
    assert (out, error) == ("", "cortex keys: a key has at least 16 characters (`cortex keys create` draws one)\n")


def test_an_id_that_is_taken_is_not_taken_twice(file: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(json.dumps({"keys": [{"hash": hash_of("mine"), "tenant": "t", "id": "00" * 5}]}))
    monkeypatch.setattr("gateway.keys.secrets.token_hex", lambda size: "00" * size)
    assert main(["keys", "create", "--tenant", "t"]) == 2
    assert "keys[1]: the same key stands further up" in capsys.readouterr().err
    assert len(kept(file)) == 1
