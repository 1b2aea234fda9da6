"""What commands print, on outputs that do not take it: one line and an exit status, never a traceback."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.output import UNWRITTEN, OutputError, complain, say

NO_SPACE = "cortex: the output cannot be written: no space left on device\n"


def test_words_get_out_behind_what_was_printed_before(capsys: pytest.CaptureFixture[str]) -> None:
    sys.stdout.write("one, ")
    say("two\n")
    complain("three")
    assert capsys.readouterr() == ("one, two\n", "three\n")


def test_an_output_that_was_closed_on_the_way_is_told_as_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    with pytest.raises(OutputError, match="it is closed"):
        say("words")


def test_nothing_can_be_printed_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    say("")
    monkeypatch.setattr(sys, "stderr", None)
    complain("nobody hears this")
    with io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True) as full:
        monkeypatch.setattr(sys, "stderr", full)
        complain("nor this")
        monkeypatch.undo()


@pytest.mark.parametrize(
    "words", [["--version"], ["status", "--help"], ["keys", "list"], ["keys", "create", "--tenant", "t"]]
)
def test_whatever_is_printed_a_full_disk_is_one_line(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("keys.json").write_text('{"keys": []}')
    Path("keys.json").chmod(0o600)
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(words) == UNWRITTEN
    lines = capsys.readouterr().err.splitlines(keepends=True)
    assert lines[-1] == NO_SPACE
    if "create" in words:
        assert "of t stands in keys.json" in lines[0], "its id, by which it can be revoked"
    else:
        assert len(lines) == 1


def test_python_itself_says_nothing_more_as_it_ends(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text('{"keys": []}')
    file.chmod(0o600)
    command = [sys.executable, "-m", "gateway", "keys", "list", "--file", str(file)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (UNWRITTEN, NO_SPACE)
