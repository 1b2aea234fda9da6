"""The settings of an emulated engine: one list, from which the command line and the cluster both read."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from backends.emulated.model import EngineConfig, StepTime
from backends.emulated.profile import read_step_time

SURFACES = ("chat", "completions", "responses", "messages", "embeddings", "rerank", "tokenize")
STEP_TIME = ("prefill_rate", "decode_step", "decode_sequence", "context_token")


def _setting(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedOptions:
    """Each field is a flag of `python -m backends.emulated`. Raises ValueError for values that make no engine.

    `profile` is read when the options are made, and again for each engine.
    """

    num_gpu_blocks: int = _setting(2048, "KV blocks in all")
    block_size: int = _setting(16, "tokens in a KV block")
    max_num_seqs: int = _setting(64, "sequences that run at the same time")
    max_model_len: int = _setting(32768, "tokens of prompt and answer together; never more than the KV memory holds")
    max_num_batched_tokens: int = _setting(2048, "tokens computed in one step")
    prefill_rate: float = _setting(8000.0, "prompt tokens computed in a second")
    decode_step: float = _setting(0.010, "seconds that every step takes")
    decode_sequence: float = _setting(0.00005, "seconds more for each sequence that decodes in the step")
    context_token: float = _setting(0.00000002, "seconds more for each token of context read in the step")
    profile: str | None = _setting(None, "JSON file of a calibration, whose step time stands for these four")
    time_scale: float = _setting(1.0, "how many modelled seconds pass in a real one")
    seed: int = _setting(0, "seed of the text that answers unscripted prompts")
    script: str | None = _setting(None, "JSON file with what the engine says")
    faults: bool = _setting(False, "obey the header X-Emulated-Fault and POST /emulated/exit")
    kv_events: bool = _setting(False, "publish over ZeroMQ what the prefix cache takes in and lets go")
    surfaces: str = _setting(",".join(SURFACES), "the surfaces that it has, with commas between them")
    dev_mode: bool = _setting(False, "be a vLLM server for development: /sleep, /wake_up, /is_sleeping, /server_info")

    def __post_init__(self) -> None:
        if self.max_model_len < 2:
            raise ValueError("max_model_len must be at least 2")
        for name in ("prefill_rate", "time_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0")
        for name in ("decode_step", "decode_sequence", "context_token"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative")
        for option in fields(self):
            if self.profile and option.name in STEP_TIME and getattr(self, option.name) != option.default:
                raise ValueError(f"profile and {option.name} both say how long a step takes: leave one of them out")
        for name in self.serves:
            if name not in SURFACES:
                raise ValueError(f"surfaces: no surface named {name!r} (surfaces: {', '.join(SURFACES)})")
        self.engine_config()

    @property
    def serves(self) -> list[str]:
        return [name.strip() for name in self.surfaces.split(",")]

    def engine_config(self) -> EngineConfig:
        return EngineConfig(
            num_gpu_blocks=self.num_gpu_blocks,
            block_size=self.block_size,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            step_time=self.step_time(),
        )

    def step_time(self) -> StepTime:
        """Raises ProfileError for a profile that cannot be read."""
        if self.profile:
            return read_step_time(Path(self.profile))
        return StepTime(
            fixed=self.decode_step,
            prefill_token=1 / self.prefill_rate,
            decode_sequence=self.decode_sequence,
            context_token=self.context_token,
        )

    @property
    def longest(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return min(self.max_model_len, self.num_gpu_blocks * self.block_size)

    def flags(self) -> list[str]:
        """The command line that gives these options."""
        words = []
        for option in fields(self):
            value = getattr(self, option.name)
            if value is True:
                words.append(_flag(option.name))
            elif value is not None and value is not False:
                words.append(f"{_flag(option.name)}={value}")
        return words


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for each option, with its default and meaning."""
    for option in fields(EmulatedOptions):
        meaning = option.metadata["help"]
        if isinstance(option.default, bool):
            parser.add_argument(_flag(option.name), action="store_true", help=meaning)
        else:
            kind = str if option.default is None else type(option.default)
            parser.add_argument(
                _flag(option.name), type=kind, default=option.default, help=f"{meaning} (default: %(default)s)"
            )


def options_from(arguments: argparse.Namespace) -> EmulatedOptions:
    """The options among parsed arguments. Raises ValueError."""
    return EmulatedOptions(**{option.name: getattr(arguments, option.name) for option in fields(EmulatedOptions)})


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
