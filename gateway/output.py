"""What a command prints: whole and at once, so that what cannot be printed is known before the command has ended."""

from __future__ import annotations

import contextlib
import os
import sys

UNWRITTEN = 5
"""The exit status of a command that has done what it was asked, but could not say so."""


class OutputError(Exception):
    """Why the standard output takes no more, in a few words; none where its reader has read enough."""


def say(text: str) -> None:
    """Print a text to the standard output, behind what was printed before. Raises OutputError."""
    if sys.stdout is None:  # it was closed before Python began
        if text:
            raise OutputError("it is closed")
        return
    try:
        if text:  # without a buffer, to write nothing is a write, too
            sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _forget()
        raise OutputError from None
    except UnicodeEncodeError as error:
        lacking = error.object[error.start]
        raise OutputError(f"{error.encoding} has no {lacking!a} (PYTHONIOENCODING=utf-8 has)") from None
    except OSError as error:
        _forget()
        raise OutputError((error.strerror or str(error)).lower()) from None
    except ValueError:
        raise OutputError("it is closed") from None


def complain(line: str) -> None:
    """Print a line to the standard error. Where that cannot be, the exit status says it alone."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()


def _forget() -> None:
    """Let what could not be printed go nowhere: Python would try again as it ends, and fail with a traceback."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
