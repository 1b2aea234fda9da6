"""`python -m backends.emulated`: one emulated engine as a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence

import uvloop

from backends.emulated.options import EmulatedOptions, add_flags, options_from
from backends.emulated.script import ScriptError
from backends.emulated.server import serve


def main(words: Sequence[str] | None = None) -> int:
    """Serve until a signal, or until the parent is gone. 2 is the status of a start that could not be."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    parser = _parser()
    arguments = parser.parse_args(words)
    try:
        options = options_from(arguments)
    except ValueError as error:
        parser.error(str(error))
    try:
        uvloop.run(_serve(arguments, options))
    except (ScriptError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m backends.emulated",
        description="An engine that behaves like a vLLM server and needs no GPU (docs/emulated.md).",
    )
    parser.add_argument("--model", default="cortex-emulated", help="the name that it serves (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="the address it binds (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="its port; 0 is one that is free (default: %(default)s)")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input is closed")
    add_flags(parser)
    return parser


async def _serve(arguments: argparse.Namespace, options: EmulatedOptions) -> None:
    loop = asyncio.get_running_loop()
    serving = serve(
        options, model=arguments.model, host=arguments.host, port=arguments.port, on_exit=lambda: os._exit(1)
    )
    async with serving as server:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.stop.set)
        if arguments.with_parent:
            threading.Thread(target=_outlive_nobody, args=[loop, server.stop], daemon=True).start()
        ready = {"event": "ready", "url": server.url, "model": server.model}
        sys.stdout.write(json.dumps(ready, separators=(",", ":")) + "\n")
        sys.stdout.flush()
        await server.stop.wait()


def _outlive_nobody(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Set `stop` at the end of standard input. In a thread of its own: epoll refuses input that is a file."""
    while os.read(0, 4096):
        pass
    loop.call_soon_threadsafe(stop.set)


if __name__ == "__main__":
    sys.exit(main())
