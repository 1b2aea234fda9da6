"""How each coding agent is started headless: its configuration, its environment and its command line.

Every one gets a home of its own and is told not to report, fetch or update anything; who would still reach out finds
nobody there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

MODEL = "cortex-emulated"
KEY = "CORTEX_API_KEY"


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A command line and the variables that go with it."""

    words: list[str]
    environ: Mapping[str, str]


def claude(home: Path, url: str, key: str, task: str) -> Start:
    environ = {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_AUTH_TOKEN": key,
        "ANTHROPIC_MODEL": MODEL,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": MODEL,
        "CLAUDE_CONFIG_DIR": str(home / "claude"),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_ERROR_REPORTING": "1",
    }
    return Start(words=["claude", "-p", task, "--allowedTools", "Agent,Read"], environ=environ)


def codex(home: Path, url: str, key: str, task: str) -> Start:
    (home / "codex").mkdir()
    (home / "codex" / "config.toml").write_text(
        f"""
        model = "{MODEL}"
        model_provider = "cortex"
        check_for_update_on_startup = false
        [analytics]
        enabled = false
        [features]
        plugins = false
        [model_providers.cortex]
        name = "Cortex"
        base_url = "{url}/v1"
        wire_api = "responses"
        env_key = "{KEY}"
        """
    )
    words = ["codex", "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", task]
    return Start(words=words, environ={"CODEX_HOME": str(home / "codex"), KEY: key})


def opencode(home: Path, url: str, key: str, task: str) -> Start:
    configuration = {
        "autoupdate": False,
        "share": "disabled",
        "model": f"cortex/{MODEL}",
        "small_model": f"cortex/{MODEL}",
        "permission": {"*": "allow"},
        "provider": {
            "cortex": {
                "npm": "@ai-sdk/openai-compatible",
                "options": {"baseURL": f"{url}/v1", "apiKey": f"{{env:{KEY}}}"},
                "models": {MODEL: {"limit": {"context": 100_000, "output": 8_000}}},
            }
        },
    }
    file = home / "opencode.json"
    file.write_text(json.dumps(configuration))
    environ = {
        "OPENCODE_CONFIG": str(file),
        "OPENCODE_DISABLE_AUTOUPDATE": "1",
        "OPENCODE_DISABLE_MODELS_FETCH": "1",
        "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
        KEY: key,
    }
    return Start(words=["opencode", "run", task], environ=environ)


PROGRAMS: Mapping[str, Callable[[Path, str, str, str], Start]] = {
    "claude-code": claude,
    "codex": codex,
    "opencode": opencode,
}


def surroundings(home: Path, commands: Path) -> dict[str, str]:
    """The variables that all of them have: folders of their own, and a proxy where nobody listens."""
    folders = {name: str(home / name.lower()) for name in ("DATA", "CONFIG", "STATE", "CACHE")}
    return {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "HOME": str(home),
        "TERM": "dumb",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "127.0.0.1",
        **{f"XDG_{name}_HOME": folder for name, folder in folders.items()},
    }
